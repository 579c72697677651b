"""Incremental parser of pacemaker's log.

The same messages come in two forms, ``2026-11-23 22:42:37,630 I - message`` in ``log.txt`` and
``2026-11-23 22:42:37,630 - logger - INFO - message`` on the console; blocks of statistics and
tracebacks span lines without a stamp.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from mlip_job.training.process import PhaseLog, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?:[DIWEC] - |- [\w.]+ - [A-Z]+ - )(.*)", re.DOTALL
)


# Two decimals each, which tells them apart where wide ones have grown together.
_NUMBER = re.compile(r"-?\d+\.\d\d|-?inf|nan")

_TITLE = re.compile(
    r"-{44}(INIT STATS|FIT STATS|Cycle last iteration:"
    r"|INIT TEST STATS|TEST STATS|TEST Cycle last iteration:)-{44}"
)


# Each line has errors of energies, of those of low energy, of force components, of those of low
# energy.
_FIGURES: Mapping[str, tuple[str, str]] = {
    "RMSE": ("rmse_energy_mev_per_atom", "rmse_force_mev_per_angstrom"),
    "MAE": ("mae_energy_mev_per_atom", "mae_force_mev_per_angstrom"),
    "MAX_AE": ("max_energy_mev_per_atom", "max_force_mev_per_angstrom"),
}
_FIGURES_PER_LINE = 4


@dataclass
class DatasetSizes:
    """Structures of one set: in the files, and after building neighbour lists."""

    found: int | None = None
    kept: int | None = None


@dataclass(frozen=True)
class OptimiserResult:
    """The end of scipy's minimiser; status 1 (too many iterations) is the normal one."""

    success: bool
    status: int
    message: str


@dataclass
class LogState(PhaseLog):
    """The content of a log of one run so far."""

    versions: dict[str, str] = field(default_factory=dict)
    datasets: list[DatasetSizes] = field(default_factory=list)
    fitted_train: int | None = None
    fitted_test: int | None = None
    functions: int | None = None
    parameters: int | None = None
    kappa: float | None = None
    starting_potential: str | None = None
    ladder: bool = False
    optimiser_results: list[OptimiserResult] = field(default_factory=list)
    early_stopping: str | None = None
    best_cycle: int = 0
    batch_sizes: list[tuple[int, int]] = field(default_factory=list)
    extreme_energies: bool = False
    potential_saved: bool = False
    out_of_memory: bool = False
    blocks: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    """Blocks of statistics: pacemaker's title, such as ``FIT STATS``, and errors by name."""


class LogParser:
    """Parse a log line by line; `state` is reset for each run in the log."""

    def __init__(self) -> None:
        self.state = LogState()
        self._block: dict[str, float] | None = None
        self._in_traceback = False

    def feed(self, line: str) -> None:
        """Parse one line, with or without its line break."""
        line = line.rstrip("\r\n")
        stamped = _STAMP.match(line)
        if stamped is None:
            self._unstamped(line)
            return
        try:
            time = datetime.fromisoformat(stamped.group(1))
        except ValueError:
            return
        self._block, self._in_traceback = None, False
        self._message(stamped.group(2), time)

    def _message(self, message: str, time: datetime) -> None:
        if message.startswith("Start pacemaker"):
            self.state = LogState()
        self.state.enter(self._phase_of(message), time)
        for pattern, handle in _HANDLERS.items():
            if match := pattern.match(message):
                handle(self.state, match)
        self._note_memory(message)

    def _phase_of(self, message: str) -> str | None:
        if message.startswith("Initial state:"):
            # The test set has a separate graph, built after the first evaluation.
            has_test = self.state.fitted_test is not None and "tensorpot" in self.state.versions
            return "building_test_graph" if has_test else "fitting"
        return next((p for start, p in _PHASES.items() if message.startswith(start)), None)

    def _unstamped(self, line: str) -> None:
        if title := _TITLE.match(line):
            self._block = {}
            self.state.blocks.append((title.group(1), self._block))
        elif self._block is not None:
            self._block_line(self._block, line)
        elif line.startswith("Traceback (most recent call last)"):
            self._in_traceback = True
        elif self._in_traceback:
            # TensorFlow says "ValueError: in user code:" and the error itself further down.
            self.state.note_exception(line)
        elif "are too extreme" in line:
            self.state.extreme_energies = True
        self._note_memory(line)

    @staticmethod
    def _block_line(block: dict[str, float], line: str) -> None:
        name, _, rest = line.partition(":")
        names, numbers = _FIGURES.get(name.strip()), _NUMBER.findall(rest)
        if names is not None and len(numbers) == _FIGURES_PER_LINE:
            found = zip(names, map(float, numbers[::2]), strict=True)
            block.update((name, number) for name, number in found if math.isfinite(number))

    def _note_memory(self, text: str) -> None:
        if is_out_of_memory(text):
            self.state.out_of_memory = True


_PHASES: Mapping[str, str] = {
    "Start pacemaker": "starting",
    "Search for dataset": "loading_data",
    "Running fit backend": "building_graph",
    "Decrease batch size": "building_graph",  # again, out of GPU memory
    "Initial(TEST)": "fitting",
    "Iteration   #": "fitting",
    "Final potential is saved": "finished",
    "Making predictions": "predicting",
}


def _version(state: LogState, match: re.Match[str]) -> None:
    name = match.group(1).replace("pacemaker/pyace", "pacemaker").removesuffix("_version").strip()
    state.versions[name] = match.group(2)


def _found(state: LogState, match: re.Match[str]) -> None:
    if state.datasets:
        # A set may be in several files.
        state.datasets[-1].found = (state.datasets[-1].found or 0) + int(match.group(1))


def _kept(state: LogState, match: re.Match[str]) -> None:
    kept = int(match.group(1))
    if state.datasets and state.datasets[-1].kept is None:
        state.datasets[-1].kept = kept
    elif state.datasets:
        # `data.test_size`: no separate file; these were split off the training set.
        train = state.datasets[-1]
        train.found, train.kept = (train.found or 0) - kept, (train.kept or 0) - kept
        state.datasets.append(DatasetSizes(found=kept, kept=kept))


def _size(state: LogState, match: re.Match[str]) -> None:
    state.functions, state.parameters = int(match.group(1)), int(match.group(2))


def _optimised(state: LogState, match: re.Match[str]) -> None:
    success, status, message = match.groups()
    state.optimiser_results.append(OptimiserResult(success == "True", int(status), message))


def _batch(state: LogState, match: re.Match[str]) -> None:
    state.batch_sizes.append((int(match.group(1)), int(match.group(2))))


def _setter(name: str, convert: Callable[[str], object]) -> Callable[..., None]:
    def handle(state: LogState, match: re.Match[str]) -> None:
        setattr(state, name, convert(match.group(1)))

    return handle


_HANDLERS: Mapping[re.Pattern[str], Callable[[LogState, re.Match[str]], None]] = {
    re.compile(pattern): handle
    for pattern, handle in {
        r"(pacemaker/pyace|ace_evaluator +|tensorpot)[ _]?version: (\S+)": _version,
        r"Search for (dataset) file": lambda state, _: state.datasets.append(DatasetSizes()),
        r"\s*(\d+) structures found": _found,
        r"Dataframe size after transform: (\d+)": _kept,
        r"Fitting dataset size: (\d+) structures": _setter("fitted_train", int),
        r"Test dataset size: (\d+) structures": _setter("fitted_test", int),
        r"Total number of functions: (\d+) / number of parameters: (\d+)": _size,
        r"Loss function specification: \w+\(kappa=(?:[\w.]+\()?([\d.e+-]+)": _setter(
            "kappa", float
        ),
        r"Target potential loaded from file '(.+)'": _setter("starting_potential", str),
        r"(Ladder)-scheme fitting is ON": _setter("ladder", bool),
        r"Optimization result\(success=(\w+), status=(\d+), message=(.*), nfev=\d+": _optimised,
        r"(EARLY STOPPING: .*)": _setter("early_stopping", str),
        r"Best fitting attempt is #(\d+)": _setter("best_cycle", lambda text: int(text) - 1),
        r"Decrease batch size \(by factor [\d.]+\): (\d+) -> (\d+)": _batch,
        r"(Final potential is saved to) output_potential\.yaml": _setter("potential_saved", bool),
    }.items()
}
