"""Shared state of a run's stages: the configuration, the store, the claim, the clock."""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Protocol

from mlip_job.errors import MlipJobError
from mlip_job.paths import WorkFiles
from mlip_job.registry import AttemptPart, Timings
from mlip_job.runtime.environment import process_age_s
from mlip_job.runtime.processes import StopRequest
from mlip_job.training.trainer import PhaseClock, added

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.registry.claim import HeldClaim
    from mlip_job.training.trainer import Progress

_START_UP = "start_up"
_MISSED_HEARTBEATS = 10  # in a row; then an attempt counts as dead

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receives messages and progress of a run."""

    def message(self, text: str) -> None:
        """Receive a message for the log."""

    def progress(self, progress: Progress) -> None:
        """Receive the progress of the trainer."""

    def trainer_line(self, line: str) -> None:
        """Receive a line that the trainer printed."""


class StageClock:
    """Measures the wall time of a run's stages; other threads may read it.

    Parameters
    ----------
    age_s
        Seconds since the job started.
    """

    def __init__(self, age_s: float = 0.0) -> None:
        self.phases = PhaseClock()
        self._begun = time.monotonic() - age_s
        self._seconds: dict[str, float] = {}
        self._stage: tuple[str, float] | None = None

    @classmethod
    def of_process(cls) -> StageClock:
        """Return a clock that started with this process, to include the time of imports."""
        return cls(process_age_s())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage; repeated stages are summed."""
        started = time.monotonic()
        if not self._seconds:
            self._seconds = {_START_UP: round(started - self._begun, 3)}
        self._stage = (name, started)
        try:
            yield
        finally:
            self._seconds, self._stage = self._so_far(), None

    def timings(self) -> Timings:
        """Return the times until now, including the current stage."""
        first = self.phases.first_start
        return Timings(
            to_trainer_s=None if first is None else round(first - self._begun, 3),
            stages_s=self._so_far(),
            phases_s=self.phases.seconds(),
        )

    def _so_far(self) -> dict[str, float]:
        if self._stage is None:
            return self._seconds
        name, started = self._stage
        return added(self._seconds, {name: time.monotonic() - started})


def _new_attempt() -> AttemptPart:
    started = datetime.now(UTC)
    name = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return AttemptPart(attempt=name, started=started, iterations=0)


@dataclass(frozen=True)
class Run:
    """One attempt at a generation: the argument of all its stages.

    ``attempt`` is the record of this attempt for later ones. ``claim`` is None until it is held.
    """

    config: JobConfig
    generation: int
    registry: Registry
    observer: Observer
    stop: StopRequest = field(default_factory=StopRequest)
    clock: StageClock = field(default_factory=StageClock)
    attempt: AttemptPart = field(default_factory=_new_attempt)
    claim: HeldClaim | None = None

    @property
    def files(self) -> WorkFiles:
        """The work directory of this attempt."""
        folder = self.registry.own.folder(self.generation)
        return WorkFiles(Path(self.config.work_dir) / folder / self.attempt.attempt)

    def interruption(self) -> MlipJobError | None:
        """Return the reason to stop: a signal, or a claim that another attempt took over."""
        return self.stop.error() or self._lost()

    def raise_if_lost(self) -> None:
        """Raise a ConflictError if another attempt took the claim over."""
        if (lost := self._lost()) is not None:
            raise lost

    def _lost(self) -> MlipJobError | None:
        return self.claim.loss() if self.claim is not None else None


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes
    ----------
    manifest
        Manifest of the generation; of the member if other members are missing.
    created
        False if it was already published.
    missing
        Members of the ensemble that are not trained yet; the generation is unpublished.
    """

    manifest: Manifest
    created: bool
    missing: tuple[int, ...] = ()


@contextmanager
def claimed(run: Run) -> Iterator[Run]:
    """Hold the claim on the run's generation, with a heartbeat.

    Raises
    ------
    ConflictError
        If another attempt holds it.
    """
    settings = run.config.run
    stale_after_s = _MISSED_HEARTBEATS * settings.heartbeat_interval
    claim = run.registry.claim(run.generation, run.attempt.attempt, stale_after_s=stale_after_s)
    if claim.takeover is not None:
        run.observer.message(
            f"taking over from attempt {claim.takeover.attempt}, {claim.takeover.reason}"
        )
    try:
        with every(settings.heartbeat_interval, claim.beat, "heartbeat"):
            yield replace(run, claim=claim)
    finally:
        within(settings.stop_timeout, claim.release, "releasing the claim")


@contextmanager
def every(interval: float, action: Callable[[], None], what: str) -> Iterator[None]:
    """Call `action` in a thread, every `interval` seconds.

    An error is logged under the name `what`, and the next call retries.
    """
    done = Event()

    def loop() -> None:
        while not done.wait(interval):
            _try(action, what)

    Thread(target=loop, name=what, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def within(timeout: float, action: Callable[[], None], what: str) -> bool:
    """Call `action` and wait at most `timeout` seconds; return whether it succeeded in time.

    A scheduler kills a job soon after its signal, so the end of a run must not hang.
    """
    succeeded: list[bool] = []
    thread = Thread(target=lambda: succeeded.append(_try(action, what)), name=what, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        _log.warning("%s did not end within %.0f s", what, timeout)
    return succeeded == [True]


def _try(action: Callable[[], None], what: str) -> bool:
    try:
        action()
    except MlipJobError as error:
        _log.warning("%s failed: %s", what, error.message)
    except OSError as error:
        _log.warning("%s failed: %s", what, error)
    except Exception:  # noqa: BLE001 - logged in full
        # An unexpected error must not end the heartbeat and all further checkpoints.
        _log.exception("%s failed", what)
    else:
        return True
    return False
