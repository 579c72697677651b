"""How far a fit is, and who watches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.errors import MlipJobError
    from mlip_job.training.pacemaker.tables import MetricsRow


def added(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return the sums by name, in the order in which the names come first."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.items():
            sums[name] = round(sums.get(name, 0.0) + seconds, 3)
    return sums


PhaseSeconds = Callable[[datetime, datetime], "Mapping[str, float]"]
"""Seconds in each phase between two times, by the stamps of a trainer's log."""


class _Start(NamedTuple):
    ended: dict[str, float]
    phases: PhaseSeconds | None
    begun: datetime


class PhaseClock:
    """Adds up the phases of all starts of pacemaker; may be asked by another thread.

    Attributes
    ----------
    first_start
        When pacemaker was started first, by `time.monotonic`; None before.
    """

    def __init__(self) -> None:
        self.first_start: float | None = None
        self._now = _Start({}, None, _local_time())

    def start(self, phases: PhaseSeconds) -> None:
        """Note that the trainer is started."""
        if self.first_start is None:
            self.first_start = time.monotonic()
        self._now = _Start(self.seconds(), phases, _local_time())

    def end(self) -> None:
        """Note that it has ended."""
        self._now = _Start(self.seconds(), None, _local_time())

    def seconds(self) -> dict[str, float]:
        """Return the seconds in each phase so far."""
        ended, phases, begun = self._now
        if phases is None:
            return ended
        return added(ended, phases(begun, _local_time()))


def _local_time() -> datetime:
    return datetime.now()  # noqa: DTZ005 - as trainers stamp their logs


@dataclass(frozen=True)
class Progress:
    """How far a fit is.

    Attributes
    ----------
    phase
        What pacemaker is doing, in words.
    elapsed_s
        Seconds since its start.
    row
        The newest row of the training metrics, if there is any yet.
    seconds_per_iteration
        Mean over the iterations seen in this ladder step, or None before the second.
    test_row
        The newest row of the second set, where one is measured.
    timings_s
        Seconds in each phase so far, up to pacemaker's last message.
    second_set
        What the second set is.
    """

    phase: str
    elapsed_s: float
    row: MetricsRow | None = None
    seconds_per_iteration: float | None = None
    test_row: MetricsRow | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    second_set: str = "test"


@dataclass(frozen=True)
class Monitor:
    """Whoever watches a fit, and may end it.

    Attributes
    ----------
    observe
        Called with the progress about twice a second.
    show_line
        Called with every line that pacemaker prints.
    interruption
        Asked as often; the error that it returns is raised when pacemaker has been stopped.
    stall_timeout
        Seconds without iteration, output and CPU use after which pacemaker is ended.
    phases
        Told how long pacemaker's phases take.
    """

    observe: Callable[[Progress], None]
    show_line: Callable[[str], None]
    interruption: Callable[[], MlipJobError | None]
    stall_timeout: float
    phases: PhaseClock = field(default_factory=PhaseClock)
