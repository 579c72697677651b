"""The interface of a trainer: data, input, progress, checkpoints and result of a fit."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import yaml

from mlip_job.models import Frozen
from mlip_job.training import programs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import TrainingConfig
    from mlip_job.errors import MlipJobError
    from mlip_job.training.summary import CurvePoint, LinearStart, RunSummary

PhaseSeconds = Callable[[datetime, datetime], "Mapping[str, float]"]
"""Seconds in each phase between two times, by the stamps of a trainer's log."""

SecondSet = Literal["test", "validation"]
StartMode = Literal["continue", "extend"]
"""A fit starts from a parent with the same basis, or grows the parent's basis."""


@dataclass(frozen=True)
class FitData:
    """The data of a fit; files are data frames, relative to the work directory.

    Attributes
    ----------
    reference_energies
        eV per atom of each element.
    structures, atoms
        Of the training set, with its validation part.
    second
        Evaluated by the trainer during the fit: the validation part or the test set.
    validation
        Rows of the validation part, whose loss selects the iteration that is published.
    held_out
        Rows that choose the ridge of a linear fit. The final fit of a published linear potential
        includes them.
    notes
        Notes for the users of the potential.
    """

    elements: tuple[str, ...]
    reference_energies: Mapping[str, float]
    structures: int
    atoms: int
    train: tuple[str, ...]
    second: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    validation: frozenset[int] = frozenset()
    held_out: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def second_set(self) -> SecondSet:
        """Whether `second` is the validation part or the test set."""
        return "validation" if self.validation else "test"

    @property
    def files(self) -> dict[str, Any]:
        """The files as the input of both trainers names them."""
        named = {"filename": self.train, "test_filename": self.second}
        return {key: f[0] if len(f) == 1 else list(f) for key, f in named.items() if f}


# -- positions and states ------------------------------------------------------------------------


class FitPosition(Frozen):
    """A position from which a fit can resume.

    Attributes
    ----------
    ladder_step
        From 0; 0 without a ladder.
    iteration
        Iterations done in this step.
    last_step
        Whether the potential has all its functions: no step of a ladder follows.
    finished
        Whether the trainer has ended, and only publishing is left.
    """

    ladder_step: int
    iteration: int
    step_done: bool
    last_step: bool
    finished: bool = False

    @classmethod
    def end(cls, iteration: int, ladder_step: int = 0) -> FitPosition:
        """Return the position of a finished fit."""
        return cls(
            ladder_step=ladder_step,
            iteration=iteration,
            step_done=True,
            last_step=True,
            finished=True,
        )

    def order(self) -> tuple[bool, int, bool, int]:
        """Return a sort key: earlier positions of a fit come first."""
        return self.finished, self.ladder_step, self.step_done, self.iteration

    def __str__(self) -> str:
        """Name the position; ladder steps count from 1 here."""
        step = f"ladder step {self.ladder_step + 1}, " if self.ladder_step else ""
        if self.finished:
            return "the end of the fit"
        return f"{step}iteration {self.iteration}" if step or self.iteration else "the linear fit"


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state of a fit.

    `iterations` is the length of the learning curve up to there, over all steps and attempts.
    `files` are by their names in the checkpoint; `shown` are those that a user may want to see
    while the fit runs.
    """

    position: FitPosition
    iterations: int
    files: dict[str, Path]
    shown: Mapping[str, Path] = field(default_factory=dict)


# -- progress ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """The progress of a fit.

    Attributes
    ----------
    elapsed_s
        Since the trainer was started.
    point, test_point
        The newest point of the training curve, and of that of the second set; None before the
        first.
    seconds_per_iteration
        Mean over the iterations of this ladder step; None before the second.
    timings_s
        Seconds in each phase, up to the trainer's last message.
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


# -- the trainer ---------------------------------------------------------------------------------


class Trainer(ABC):
    """The fit of one attempt in its work directory, by pacemaker or another program.

    `begin` or, after `restore`, `resume` writes the input; `fit` and `finish` follow, and at last
    `export`. The size of the basis must be chosen before `begin`.

    Attributes
    ----------
    program_names
        Of a fit, without its active set.
    finished
        Whether nothing is left to fit, and `finish` was called by this or an earlier attempt.
    parent_files
        The artefacts of a parent that the fit starts from, the potential first; and where.
    potential
        The potential that the trainer writes.
    exported
        The potential that simulations use; may be the same file.
    active_set
        The active set of the potential; may not exist.
    """

    program_names: ClassVar[tuple[str, ...]]
    parent_files: Mapping[str, Path]
    potential: Path
    exported: Path
    active_set: Path

    def __init__(self, training: TrainingConfig) -> None:
        self.finished = False
        self._training = training
        self._given: FitData | None = None

    def require_programs(self, *, active_set: bool) -> None:
        """Raise a ConfigError if a program that the fit or its active set needs is missing."""
        for name in (*self.program_names, *(["pace_activeset"] if active_set else [])):
            programs.find_program(name)

    @property
    def _data(self) -> FitData:
        if self._given is None:
            raise ValueError("begin or resume comes first")
        return self._given

    def _wrong_elements(self, found: tuple[str, ...]) -> str | None:
        """Return what is wrong with the elements that a potential describes, if anything."""
        expected = tuple(sorted(self._data.elements))
        if found == expected:
            return None
        return f"the potential describes {', '.join(found)}, not {', '.join(expected)}"

    @abstractmethod
    def basis(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return the description of the basis for the manifest."""

    # the start

    @abstractmethod
    def start_mode(
        self, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
    ) -> StartMode:
        """Decide how a fit can start from a parent.

        Raise a ConfigError if it cannot; the message names each difference.
        """

    @abstractmethod
    def prepare_parent(self) -> None:
        """Make the fetched `parent_files` a start for this fit."""

    @abstractmethod
    def begin(self, data: FitData, mode: StartMode | None) -> None:
        """Write the input of a fit, from a parent or from nothing."""

    @abstractmethod
    def restore(
        self, staging: Path, name: str, position: FitPosition, elements: Sequence[str]
    ) -> None:
        """Move the files of a checkpoint from a folder to the work directory.

        Raise an IntegrityError or TrainingError if the checkpoint is incomplete or damaged; nothing
        was moved.
        """

    @abstractmethod
    def resume(self, data: FitData, mode: StartMode | None, position: FitPosition) -> None:
        """Write the input of the remaining fit."""

    # the fit

    @property
    def linear_fit_due(self) -> bool:
        """Whether a linear fit comes first."""
        return False

    def fit_linearly(self, tell: Callable[[str], None]) -> LinearStart:
        """Make the linear potential that the fit starts from, or that is published."""
        del tell
        raise NotImplementedError("no linear fit is due")

    @abstractmethod
    def fit(self, monitor: Monitor) -> None:
        """Run the trainer to its end.

        Raises
        ------
        ConfigError
            If it is not installed.
        GpuRequiredError
            If TensorFlow sees no GPU, and one is required.
        MlipJobError
            The error that the monitor stopped it with.
        DiskError
            If the disk is full or fails.
        TrainingError
            If it failed or left no usable potential; the message has the cause and the last lines
            of the log.
        """

    @abstractmethod
    def snapshot(self, directory: Path) -> Snapshot | None:
        """Copy a resumable state into an empty directory; thread-safe."""

    @abstractmethod
    def finish(self) -> Snapshot:
        """Return the state of the finished fit, of files in the work directory."""

    # the result

    @abstractmethod
    def summary(self, linear_start: LinearStart | None) -> RunSummary:
        """Return the result of the finished fit; `linear_start` is its linear fit, if any."""

    def left_out(self) -> dict[str, tuple[int, ...]]:
        """Return the rows that the weighting of the finished fit excluded, by side."""
        return {}

    @abstractmethod
    def export(self) -> None:
        """Write the potential that simulations use; raise a TrainingError if that fails."""

    @abstractmethod
    def write_active_set(self, frames: Sequence[str], kind: Literal["linear", "full"]) -> Path:
        """Make the active set of the potential from data frames, relative to the work directory.

        Raises a TrainingError if the program fails.
        """

    @abstractmethod
    def artefacts(self) -> dict[str, Path]:
        """Return the files to publish, by their published names."""


def dump_input(content: Mapping[str, Any]) -> str:
    """Return the content of an ``input.yaml`` as text."""
    return yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=100)


# -- phases --------------------------------------------------------------------------------------


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
