"""The contract of a trainer: a fit, its progress, and the monitor that may stop it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlip_job.errors import MlipJobError
    from mlip_job.training.checkpoint import Snapshot
    from mlip_job.training.summary import CurvePoint, RunSummary

PhaseSeconds = Callable[[datetime, datetime], "Mapping[str, float]"]
"""Seconds in each phase between two times, by the stamps of a trainer's log."""


@dataclass(frozen=True)
class Progress:
    """The progress of a fit.

    Attributes
    ----------
    phase
        The trainer's current phase.
    elapsed_s
        Since the trainer was started.
    point, test_point
        The newest point of the training curve, and of that of the second set; None before the
        first.
    seconds_per_iteration
        Mean over the iterations of this ladder step; None before the second.
    timings_s
        Seconds in each phase, up to the trainer's last message.
    second_set
        ``test`` or ``validation``.
    """

    phase: str
    elapsed_s: float
    point: CurvePoint | None = None
    seconds_per_iteration: float | None = None
    test_point: CurvePoint | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    second_set: str = "test"


@dataclass(frozen=True)
class Monitor:
    """The caller's side of a running fit.

    Attributes
    ----------
    observe
        Called with the progress about twice a second.
    show_line
        Called with every line that the trainer prints.
    interruption
        Called as often; an error that it returns stops the trainer and is raised.
    stall_timeout
        Seconds without iteration, output and CPU use after which the trainer is stopped.
    phases
        Measures the phases of the trainer.
    """

    observe: Callable[[Progress], None]
    show_line: Callable[[str], None]
    interruption: Callable[[], MlipJobError | None]
    stall_timeout: float
    phases: PhaseClock = field(default_factory=lambda: PhaseClock())  # noqa: PLW0108 - defined below


class Trainer(Protocol):
    """A fit in the work directory of one attempt, by `PacemakerWrapper` or another program.

    A trainer's folder also has its input file, its programs, the parser of its output
    (`process.Output`) and its export.
    """

    def fit(self, segments: Mapping[Path, Any]) -> RunSummary:
        """Run the trainer on the remaining inputs, by file.

        Raises
        ------
        TrainingError
            If it failed or left no usable potential.
        MlipJobError
            The error that the monitor stopped it with.
        """

    def snapshot(self, directory: Path) -> Snapshot | None:
        """Copy a resumable state into an empty directory; thread-safe."""


class _Start(NamedTuple):
    ended: dict[str, float]
    phases: PhaseSeconds | None
    begun: datetime


class PhaseClock:
    """Sum of the phases over all starts of the trainer; thread-safe to read.

    ``first_start`` is the time of the first one by `time.monotonic`, None before.
    """

    def __init__(self) -> None:
        self.first_start: float | None = None
        self._now = _Start({}, None, _local_time())

    def start(self, phases: PhaseSeconds) -> None:
        """Begin to measure a start of the trainer."""
        if self.first_start is None:
            self.first_start = time.monotonic()
        self._now = _Start(self.seconds(), phases, _local_time())

    def end(self) -> None:
        """Stop measuring."""
        self._now = _Start(self.seconds(), None, _local_time())

    def seconds(self) -> dict[str, float]:
        """Return the seconds in each phase so far."""
        ended, phases, begun = self._now
        return ended if phases is None else added(ended, phases(begun, _local_time()))


def added(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return the sums by name, in the order in which the names come first."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.items():
            sums[name] = round(sums.get(name, 0.0) + seconds, 3)
    return sums


def _local_time() -> datetime:
    return datetime.now()  # noqa: DTZ005 - as trainers stamp their logs
