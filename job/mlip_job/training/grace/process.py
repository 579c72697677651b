"""The fit by gracemaker: input, process, progress, checkpoints and result."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from mlip_job.errors import IntegrityError, TrainingError
from mlip_job.paths import reported
from mlip_job.training.grace import GraceFiles
from mlip_job.training.grace.input import (
    ADAM,
    build_input,
    describe_basis,
    optimizer_of,
    require_same_basis,
)
from mlip_job.training.grace.metrics import MetricsFollower, best_iteration, best_row, read_curve
from mlip_job.training.grace.potential_file import (
    count_functions,
    elements_of,
    read_potential,
    require_architecture,
)
from mlip_job.training.process import (
    Output,
    PhaseLog,
    describe_exit,
    failure,
    is_out_of_memory,
    read_lines,
    run_trainer,
)
from mlip_job.training.programs import write_active_set
from mlip_job.training.summary import DIVERGED, BestPotential, FitCycle, RunSummary, SetSizes
from mlip_job.training.trainer import FitPosition, Snapshot, Trainer, dump_input

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import TrainingConfig
    from mlip_job.training.summary import LinearStart
    from mlip_job.training.trainer import FitData, Monitor, StartMode

_STAMP = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) [DIWEC] - (.*)")
_ITERATION = re.compile(r"Iteration #(\d+)/")
_PARAMETERS = re.compile(r"Number of trainable parameters: (\d+)")
_VERSION = re.compile(r"(GRACEmaker|Tensorflow) version: (\S+)")
_PROGRAMS = {"GRACEmaker": "tensorpotential", "Tensorflow": "tensorflow"}
_NEWEST = tuple(f"checkpoints/{name}" for name in GraceFiles.CHECKPOINT)
_BEST = ("checkpoints/best.index", "checkpoints/best.data-00000-of-00001")
"""Names in our checkpoints."""
_PHASES = {
    "Loading training data": "loading_data",
    "Saving model config to": "building_graph",
    "Iteration #": "fitting",
    "Loading best test loss model": "exporting",
    "Saving model to": "exporting",
    "Exporting FS-model done": "finished",
    "Exporting to `saved_model.yaml` done": "finished",
}
_SIDES: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass
class GraceState(PhaseLog):
    """The content of the log of one start so far; `checkpoints` are iterations and times."""

    checkpoints: list[tuple[int, datetime]] = field(default_factory=list)
    iteration: int = 0
    resumed_from: int | None = None
    optimiser_message: str | None = None
    parameters: int | None = None
    versions: dict[str, str] = field(default_factory=dict)


class GraceLog:
    """Parse gracemaker's output; `state` is reset at each start of the program."""

    def __init__(self) -> None:
        self.state = GraceState()

    def feed(self, line: str) -> None:
        """Take a line."""
        stamped = _STAMP.match(line)
        if stamped is None:
            self.state.note_exception(line)
            return
        time = datetime.strptime(stamped.group(1), "%Y/%m/%d %H:%M:%S")  # noqa: DTZ007 - local
        message = stamped.group(2)
        if "Start GRACEmaker" in message:
            self.state = GraceState()
            self.state.enter("starting", time)
        phase = next((p for begin, p in _PHASES.items() if message.startswith(begin)), None)
        self.state.enter(phase, time)
        self._take(message, time)

    def _take(self, message: str, time: datetime) -> None:
        state = self.state
        if found := _ITERATION.match(message):
            state.iteration = int(found.group(1))
            if state.resumed_from is None:
                state.resumed_from = state.iteration - 1
        elif message.startswith("Regular checkpointing"):
            state.checkpoints.append((state.iteration, time))
        elif found := _PARAMETERS.match(message):
            state.parameters = int(found.group(1))
        elif found := _VERSION.match(message):
            state.versions[_PROGRAMS[found.group(1)]] = found.group(2)
        elif message.startswith("L-BFGS-B optimization results"):
            state.optimiser_message = message.partition("message=")[2] or message


class GraceWrapper(Trainer):
    """A fit by gracemaker."""

    program_names = ("gracemaker",)

    def __init__(self, training: TrainingConfig, directory: Path) -> None:
        super().__init__(training)
        self.files = files = GraceFiles(directory, training.seed)
        self.potential = self.exported = files.potential
        self.active_set = files.active_set
        self.parent_files = {
            "potential.yaml": files.parent_potential,
            files.MODEL: files.start_model,
            **{name: files.parent_checkpoint(name) for name in files.CHECKPOINT},
        }
        self._resumed_from = 0
        self._published = ""  # the suffix of the checkpoint that was exported
        self._log = GraceLog()

    def basis(self, elements: Sequence[str]) -> dict[str, Any]:
        return describe_basis(self._training, elements)

    # -- the start -------------------------------------------------------------------------------

    def start_mode(
        self, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
    ) -> StartMode:
        require_same_basis(self._training, elements, parent_basis, parent)
        return "continue"

    def prepare_parent(self) -> None:
        require_architecture(self.files.start_model)

    def begin(self, data: FitData, mode: StartMode | None) -> None:
        files = self.files
        checkpoint = files.parent_checkpoint(files.CHECKPOINT[0]).name if mode else None
        self._write_input(data, files.start_model.name if mode else None, checkpoint)

    def restore(
        self, staging: Path, name: str, position: FitPosition, elements: Sequence[str]
    ) -> None:
        files = self.files
        moves = {"metrics/train_metrics.yaml": files.metrics("train")}
        moves |= _named(_NEWEST, files.checkpoint())
        if position.finished:
            moves |= {"potential.yaml": files.potential, files.train_log.name: files.train_log}
            moves[files.MODEL] = files.model
        else:
            moves[files.MODEL] = files.start_model
        if missing := sorted(source for source in moves if not (staging / source).is_file()):
            raise IntegrityError(f"{name} has no {', '.join(missing)}")
        require_architecture(staging / files.MODEL)
        if position.finished:
            found = elements_of(read_potential(staging / "potential.yaml"))
            if found != tuple(sorted(elements)):
                raise IntegrityError(f"{name} describes {', '.join(found)}")
        moves |= _named(_BEST, files.checkpoint(files.EARLIER))
        moves["metrics/test_metrics.yaml"] = files.metrics("test")
        files.checkpoints.mkdir(parents=True, exist_ok=True)
        for source, target in moves.items():
            if (staging / source).is_file():
                (staging / source).rename(target)

    def resume(self, data: FitData, mode: StartMode | None, position: FitPosition) -> None:
        del mode
        self.finished = position.finished
        self._resumed_from = position.iteration
        self._write_input(data, self.files.start_model.name, None)

    def _write_input(self, data: FitData, model: str | None, checkpoint: str | None) -> None:
        self._given = data
        content = build_input(
            self._training, data, done=self._resumed_from, model=model, checkpoint=checkpoint
        )
        self.files.input_yaml.write_text(dump_input(content), encoding="utf-8")

    # -- the fit ---------------------------------------------------------------------------------

    def fit(self, monitor: Monitor) -> None:
        files = self.files
        self._run(["-rl"] if self._resumed_from else [], monitor)
        self._published = files.BEST if files.checkpoint(files.BEST)[0].is_file() else ""
        # Gracemaker exports the best iteration since its last start, but an earlier one may be it.
        best, kept = self._best_iteration(), files.checkpoint(files.EARLIER)[0].is_file()
        if kept and best is not None and best <= self._resumed_from:
            self._run(["-rs", files.EARLIER, "-s"], monitor)
            self._published = files.EARLIER

    def _run(self, options: Sequence[str], monitor: Monitor) -> None:
        """Run gracemaker; with ``-s`` it exports a checkpoint, without a fit."""
        files = self.files
        train, second = (MetricsFollower(files.metrics(side), side) for side in _SIDES)
        train.poll()  # of earlier starts
        second.poll()
        second_set = self._data.second_set
        output = Output(
            self._log.feed, lambda: self._log.state, train.points, second.points, second_set
        )
        with reported(files.directory):
            exit_code = run_trainer(
                "gracemaker",
                [*options, "-sf", files.input_yaml.name],
                files.train_log,
                output,
                monitor,
                variables={"TF_USE_LEGACY_KERAS": "1"},
                require_gpu=self._training.require_gpu,
            )
            if "-s" in options and files.exported_again.is_file():
                files.exported_again.replace(files.potential)
        if (cause := self._why_failed(exit_code)) is not None:
            raise failure("gracemaker", exit_code, cause, files.train_log)

    def _best_iteration(self) -> int | None:
        return best_iteration(read_curve(self.files.metrics("test"), "test")[0])

    def _why_failed(self, exit_code: int) -> str | None:
        """Return why there is no usable potential; an exit code of 0 is not enough."""
        if exit_code != 0:
            return self._why_ended(exit_code)
        rows, _ = read_curve(self.files.metrics("train"), "train")
        if not any(row.iteration > self._resumed_from for row in rows):
            return "the optimiser did not make one iteration"
        if any(row.loss is None for row in rows):
            return DIVERGED
        try:
            found = elements_of(read_potential(self.potential))
        except TrainingError as error:
            return error.message
        return self._wrong_elements(found)

    def _why_ended(self, exit_code: int) -> str:
        exception = self._log.state.exception or ""
        if is_out_of_memory(exception):
            return (
                "out of memory: give the job more memory, or reduce training.batch_size and start "
                "over with --fresh"
            )
        phase = self._log.state.phase.replace("_", " ")
        return describe_exit(exit_code) or exception or f"it ended while {phase}"

    def snapshot(self, directory: Path) -> Snapshot | None:
        # Gracemaker writes a checkpoint every few iterations; none while it is being written.
        files, newest = self.files, self.files.checkpoint()
        try:
            before = [path.stat().st_mtime_ns for path in newest]
            content = _named(_NEWEST, _copied(newest, directory))
            unchanged = before == [path.stat().st_mtime_ns for path in newest]
        except FileNotFoundError:
            return None
        written = datetime.fromtimestamp(before[0] / 1e9)  # noqa: DTZ006 - as the log's stamps
        iterations = [number for number, time in self._log.state.checkpoints if time <= written]
        if not unchanged or not iterations:
            return None
        content |= _named(_BEST, self._best_until(iterations[-1], before[0], directory))
        shown = self._metrics()
        shown = _named(tuple(shown), _copied(tuple(shown.values()), directory))
        position = FitPosition(
            ladder_step=0, iteration=iterations[-1], step_done=False, last_step=True
        )
        content[files.MODEL] = files.model
        return Snapshot(position, iterations[-1], content | shown, shown)

    def _best_until(self, iteration: int, written_ns: int, directory: Path) -> Sequence[Path]:
        """Copy the best checkpoint until that of an iteration; nothing if it is a later one."""
        files, best = self.files, self._best_iteration()
        if best is None or best > iteration:
            return ()
        if best == iteration:
            return _copied(files.checkpoint(), directory)
        source = files.checkpoint(files.EARLIER if best <= self._resumed_from else files.BEST)
        try:
            if source[0].stat().st_mtime_ns > written_ns:
                return ()
            return _copied(source, directory)
        except FileNotFoundError:
            return ()

    def finish(self) -> Snapshot:
        self.finished = True
        rows, _ = read_curve(self.files.metrics("train"), "train")
        position = FitPosition.end(rows[-1].iteration if rows else 0)
        content = {
            "potential.yaml": self.potential,
            self.files.train_log.name: self.files.train_log,
            **_named(_NEWEST, self.files.checkpoint(self._published)),
            self.files.MODEL: self.files.model,
            **self._metrics(),
        }
        return Snapshot(position, position.iteration, content)

    def _metrics(self) -> dict[str, Path]:
        paths = (self.files.metrics(side) for side in _SIDES)
        return {f"metrics/{path.name}": path for path in paths if path.is_file()}

    # -- the result ------------------------------------------------------------------------------

    def summary(self, linear_start: LinearStart | None) -> RunSummary:
        del linear_start
        train, dropped = read_curve(self.files.metrics("train"), "train")
        second, _ = read_curve(self.files.metrics("test"), "test")
        log = GraceLog()
        for line in read_lines(self.files.train_log):
            log.feed(line)
        best = best_row(train, second, log.state.resumed_from or 0)
        tested = {row.iteration: row for row in second}
        test = tested.get(best.iteration) if best is not None else None
        chosen = None
        if test is not None and test.loss is not None and best is not train[-1]:
            last = tested.get(train[-1].iteration)
            chosen = BestPotential(
                ladder_step=0,
                cycle=0,
                iteration=test.iteration,
                loss=test.loss,
                last_loss=last.loss if last is not None else None,
            )
        iterations, loss = (train[-1].iteration, train[-1].loss) if train else (0, None)
        held_out = len(self._data.validation)
        sizes = dict(zip(_SIDES, (self._data.structures - held_out, held_out), strict=True))
        return RunSummary(
            status="succeeded",
            cause=None,
            exit_code=0,
            # Adam's are means over an iteration in which the coefficients change.
            train=best.errors
            if best is not None and optimizer_of(self._training) != ADAM
            else None,
            test=test.errors if test is not None else None,
            loss_shares=best.loss_shares if best is not None else None,
            second_set=self._data.second_set,
            best=chosen,
            iterations=iterations,
            functions=count_functions(read_potential(self.potential)),
            parameters=log.state.parameters,
            ladder=False,
            cycles=(
                FitCycle(
                    ladder_step=0, cycle=0, functions=None, iterations=iterations, final_loss=loss
                ),
            ),
            early_stopping=None,
            optimiser_message=log.state.optimiser_message,
            structures={
                side: SetSizes(found=n, kept=n, fitted=n) for side, n in sizes.items() if n
            },
            versions=log.state.versions,
            timings_s=log.state.phase_seconds(),
            train_curve=tuple(row.point for row in train),
            test_curve=tuple(row.point for row in second),
            warnings=(f"train_metrics.yaml: {dropped} unreadable lines left out",)
            if dropped
            else (),
        )

    def export(self) -> None:
        """Do nothing: the fit ends with the published potential."""

    def write_active_set(self, frames: Sequence[str], kind: Literal["linear", "full"]) -> Path:
        if kind != "linear":
            raise TrainingError(
                "gracemaker makes linear active sets only", hint="set evaluation.active_set: linear"
            )
        return write_active_set(self.potential, [self.files.directory / name for name in frames])

    def artefacts(self) -> dict[str, Path]:
        published = {
            "input.yaml": self.files.input_yaml,
            "train.log": self.files.train_log,
            "potential.yaml": self.potential,
            self.files.MODEL: self.files.model,
            **_named(self.files.CHECKPOINT, self.files.checkpoint(self._published)),
        }
        if self.active_set.exists():
            published["potential.asi"] = self.active_set
        return published | self._metrics()


def _named(names: Sequence[str], paths: Sequence[Path]) -> dict[str, Path]:
    return dict(zip(names, paths, strict=False))


def _copied(paths: Sequence[Path], directory: Path) -> Sequence[Path]:
    copies = [directory / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        shutil.copyfile(path, copy)
    return copies
