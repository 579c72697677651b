"""Incremental parser of pacemaker's log.

The same messages come in two forms, ``2026-11-23 22:42:37,630 I - message`` in ``log.txt`` and
``2026-11-23 22:42:37,630 - logger - INFO - message`` on the console; blocks of statistics and
tracebacks span lines without a stamp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from mlip_job.training.process import is_out_of_memory
from mlip_job.training.trainer import added

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LONGEST_LINE = 4096  # longer than any message of pacemaker

_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?:[DIWEC] - |- [\w.]+ - [A-Z]+ - )(.*)", re.DOTALL
)


# Two decimals each, which tells them apart where wide ones have grown together.
_NUMBER = re.compile(r"-?\d+\.\d\d|-?inf|nan")

_TITLE = re.compile(
    r"-{44}(INIT STATS|FIT STATS|Cycle last iteration:"
    r"|INIT TEST STATS|TEST STATS|TEST Cycle last iteration:)-{44}"
)

_EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Interrupt))(?::\s*(.*))?$")


class Phase(StrEnum):
    """A phase of pacemaker."""

    STARTING = "starting"
    LOADING_DATA = "loading_data"
    BUILDING_GRAPH = "building_graph"
    BUILDING_TEST_GRAPH = "building_test_graph"
    FITTING = "fitting"
    PREDICTING = "predicting"
    FINISHED = "finished"


@dataclass
class StatisticsBlock:
    """One block of statistics with pacemaker's title, such as ``FIT STATS``.

    Errors are by ``rmse``, ``mae`` and ``max``: of energies (eV/atom), those of low-energy
    structures, of force components (eV/Å), those of low-energy structures.
    """

    title: str
    errors: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)


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
class LogState:
    """The content of a log of one run so far."""

    phases: list[tuple[Phase, datetime]] = field(default_factory=list)
    last_time: datetime | None = None
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
    exception: str | None = None
    blocks: list[StatisticsBlock] = field(default_factory=list)

    def phase_seconds(
        self, begun: datetime | None = None, until: datetime | None = None
    ) -> dict[str, float]:
        """Return the seconds in each phase, those of a ladder's steps added up.

        Without `begun`, the start of the process, its imports are missing, which come before the
        first line; without `until` the last stamp is the end.
        """
        phases = list(self.phases)
        if begun is not None:
            phases = [(Phase.STARTING, begun), *phases]
        end = until if until is not None else self.last_time
        ends = [*(time for _, time in phases[1:]), *([end] if phases and end is not None else [])]
        return added(
            *(
                {phase.value: (stop - start).total_seconds()}
                for (phase, start), stop in zip(phases, ends, strict=False)
            )
        )


class LogParser:
    """Parse a log line by line; `state` is reset for each run in the log."""

    def __init__(self) -> None:
        self.state = LogState()
        self._block: StatisticsBlock | None = None
        self._in_traceback = False

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self.state.phases[-1][0] if self.state.phases else Phase.STARTING

    def feed(self, line: str) -> None:
        """Parse one line, with or without its line break."""
        line = line[:_LONGEST_LINE].rstrip("\r\n")
        stamped = _STAMP.match(line)
        if stamped is None:
            self._unstamped(line)
            return
        try:
            time = datetime.strptime(stamped.group(1), "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007 - local, only differences count
        except ValueError:
            return
        self._block, self._in_traceback = None, False
        self.state.last_time = time
        self._message(stamped.group(2), time)

    def _message(self, message: str, time: datetime) -> None:
        if message.startswith("Start pacemaker"):
            self.state = LogState(last_time=time)
        phase = self._phase_of(message)
        if phase is not None and (phase is not self.phase or not self.state.phases):
            self.state.phases.append((phase, time))
        for pattern, handle in _HANDLERS.items():
            if match := pattern.match(message):
                handle(self.state, match)
        self._note_memory(message)

    def _phase_of(self, message: str) -> Phase | None:
        if message.startswith("Initial state:"):
            # The test set has a separate graph, built after the first evaluation.
            has_test = self.state.fitted_test is not None and "tensorpot" in self.state.versions
            return Phase.BUILDING_TEST_GRAPH if has_test else Phase.FITTING
        for start, phase in _PHASE_STARTS.items():
            if message.startswith(start):
                return phase
        return None

    def _unstamped(self, line: str) -> None:
        if title := _TITLE.match(line):
            self._block = StatisticsBlock(title.group(1))
            self.state.blocks.append(self._block)
        elif self._block is not None:
            self._block_line(self._block, line)
        elif line.startswith("Traceback (most recent call last)"):
            self._in_traceback = True
        elif self._in_traceback and (match := _EXCEPTION.match(line.strip())):
            # TensorFlow says "ValueError: in user code:" and the error itself further down.
            self.state.exception = match.group(0)
        elif "are too extreme" in line:
            self.state.extreme_energies = True
        self._note_memory(line)

    @staticmethod
    def _block_line(block: StatisticsBlock, line: str) -> None:
        name, separator, rest = line.partition(":")
        kind = _ERROR_KINDS.get(name.strip())
        if not separator or kind is None:
            return
        numbers = [float(number) / 1000 for number in _NUMBER.findall(rest)]
        if len(numbers) == len(("energy", "low energy", "force", "low force")):
            block.errors[kind] = (numbers[0], numbers[1], numbers[2], numbers[3])

    def _note_memory(self, text: str) -> None:
        if is_out_of_memory(text):
            self.state.out_of_memory = True


_ERROR_KINDS: Mapping[str, str] = {"RMSE": "rmse", "MAE": "mae", "MAX_AE": "max"}

_PHASE_STARTS: Mapping[str, Phase] = {
    "Start pacemaker": Phase.STARTING,
    "Search for dataset": Phase.LOADING_DATA,
    "Running fit backend": Phase.BUILDING_GRAPH,
    "Decrease batch size": Phase.BUILDING_GRAPH,  # again, out of GPU memory
    "Initial(TEST)": Phase.FITTING,
    "Iteration   #": Phase.FITTING,
    "Final potential is saved": Phase.FINISHED,
    "Making predictions": Phase.PREDICTING,
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
