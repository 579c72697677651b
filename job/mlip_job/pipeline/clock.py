"""Where the time of a run goes, stage by stage."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlip_job.registry import Timings
from mlip_job.runtime.environment import process_age_s
from mlip_job.training.trainer import PhaseClock, added

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_UP = "start_up"


class StageClock:
    """Takes the wall time of a run's stages; may be asked by another thread.

    Parameters
    ----------
    age_s
        How long the job has been at it already.

    Attributes
    ----------
    phases
        Those of pacemaker.
    """

    def __init__(self, age_s: float = 0.0) -> None:
        self.phases = PhaseClock()
        self._begun = time.monotonic() - age_s
        self._seconds: dict[str, float] = {}
        self._stage: tuple[str, float] | None = None

    @classmethod
    def of_process(cls) -> StageClock:
        """Return one that began with this process: its imports count."""
        return cls(process_age_s())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Take the time of a stage; the same one again is added to it."""
        started = time.monotonic()
        if not self._seconds:
            self._seconds = {_START_UP: round(started - self._begun, 3)}
        self._stage = (name, started)
        try:
            yield
        finally:
            self._seconds, self._stage = self._so_far(), None

    def timings(self) -> Timings:
        """Return where the time went until now; a stage that goes on is in it."""
        first = self.phases.first_start
        return Timings(
            to_pacemaker_s=None if first is None else round(first - self._begun, 3),
            stages_s=self._so_far(),
            phases_s=self.phases.seconds(),
        )

    def _so_far(self) -> dict[str, float]:
        if self._stage is None:
            return self._seconds
        name, started = self._stage
        return added(self._seconds, {name: time.monotonic() - started})
