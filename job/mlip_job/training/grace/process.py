"""The fit by gracemaker: input, process, progress, checkpoints and result."""

from __future__ import annotations

import math
import re
import shutil
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from mlip_job.errors import IntegrityError, TrainingError
from mlip_job.paths import reported
from mlip_job.training.grace import GraceFiles
from mlip_job.training.grace.input import (
    build_input,
    describe_basis,
    dump_input,
    require_same_basis,
)
from mlip_job.training.grace.metrics import MetricsFollower, best_epoch, best_row, read_curve
from mlip_job.training.grace.potential_file import (
    count_functions,
    elements_of,
    read_potential,
    require_architecture,
    write_active_set,
)
from mlip_job.training.loss import DIVERGED
from mlip_job.training.process import (
    describe_exit,
    failure,
    is_out_of_memory,
    read_lines,
    run_trainer,
)
from mlip_job.training.programs import (
    find_program,
    gpu_unseen,
    trainer_command,
    trainer_environment,
)
from mlip_job.training.summary import BestPotential, FitCycle, RunSummary, SetSizes
from mlip_job.training.trainer import FitPosition, Snapshot, added
from mlip_job.training.with_device import NO_DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import TrainingConfig
    from mlip_job.training.summary import CurvePoint, LinearStart
    from mlip_job.training.trainer import FitData, Monitor, SecondSet

_STAMP = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) [DIWEC] - (.*)")
_ITERATION = re.compile(r"Iteration #(\d+)/")
_PARAMETERS = re.compile(r"Number of trainable parameters: (\d+)")
_VERSION = re.compile(r"(GRACEmaker|Tensorflow) version: (\S+)")
_PROGRAMS = {"GRACEmaker": "tensorpotential", "Tensorflow": "tensorflow"}
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception)(?::.*)?$")
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


class GraceLog:
    """Gracemaker's output so far; reset at each start of the program."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.phases: list[tuple[str, datetime]] = []
        self.last_time: datetime | None = None
        self.checkpoints: list[tuple[int, datetime]] = []
        self.iteration = 0
        self.resumed_from: int | None = None
        self.optimiser_message: str | None = None
        self.parameters: int | None = None
        self.versions: dict[str, str] = {}
        self.exception: str | None = None

    def feed(self, line: str) -> None:
        """Take a line."""
        stamped = _STAMP.match(line)
        if stamped is None:
            if _EXCEPTION.match(line.strip()):
                self.exception = line.strip()
            return
        time = datetime.strptime(stamped.group(1), "%Y/%m/%d %H:%M:%S")  # noqa: DTZ007 - local
        message = stamped.group(2)
        if "Start GRACEmaker" in message:
            self._start()
            self.phases.append(("starting", time))
        self.last_time = time
        phase = next((p for begin, p in _PHASES.items() if message.startswith(begin)), None)
        if phase is not None and (not self.phases or self.phases[-1][0] != phase):
            self.phases.append((phase, time))
        self._take(message, time)

    def _take(self, message: str, time: datetime) -> None:
        if found := _ITERATION.match(message):
            self.iteration = int(found.group(1))
            if self.resumed_from is None:
                self.resumed_from = self.iteration - 1
        elif message.startswith("Regular checkpointing"):
            self.checkpoints.append((self.iteration, time))
        elif found := _PARAMETERS.match(message):
            self.parameters = int(found.group(1))
        elif found := _VERSION.match(message):
            self.versions[_PROGRAMS[found.group(1)]] = found.group(2)
        elif message.startswith("L-BFGS-B optimization results"):
            self.optimiser_message = message.partition("message=")[2] or message

    @property
    def phase(self) -> str:
        """The present phase."""
        return self.phases[-1][0] if self.phases else "starting"

    def phase_seconds(
        self, begun: datetime | None = None, until: datetime | None = None
    ) -> dict[str, float]:
        """Return the seconds in each phase; without `until` the last stamp is the end."""
        phases = [*([("starting", begun)] if begun is not None else []), *self.phases]
        end = until or self.last_time
        if not phases or end is None:
            return {}
        spans = pairwise([*phases, ("", end)])
        return added(
            *({name: (stop - start).total_seconds()} for (name, start), (_, stop) in spans)
        )


class GraceOutput:
    """Log and metrics of a running fit."""

    def __init__(self, files: GraceFiles, log: GraceLog, second_set: SecondSet) -> None:
        self.second_set = second_set
        self.test_point: CurvePoint | None = None
        self._log = log
        self._train = MetricsFollower(files.metrics("train"), "train")
        self._second = MetricsFollower(files.metrics("test"), "test")
        self._train.poll()  # of earlier starts
        self._second.poll()

    @property
    def phase(self) -> str:
        """The present phase."""
        return self._log.phase

    def feed(self, line: str) -> None:
        """Take a line of the log."""
        self._log.feed(line)

    def poll(self) -> Sequence[CurvePoint]:
        """Return the points that were written since the last call."""
        if second := self._second.poll():
            self.test_point = second[-1].point
        return [row.point for row in self._train.poll()]

    def phase_seconds(
        self, begun: datetime | None = None, until: datetime | None = None
    ) -> dict[str, float]:
        """Return the seconds in each phase."""
        return self._log.phase_seconds(begun, until)


class GraceWrapper:
    """A fit by gracemaker: implements `Trainer`."""

    linear_fit_due = False

    def __init__(self, training: TrainingConfig, directory: Path) -> None:
        self.files = GraceFiles(directory, training.seed)
        self.finished = False
        self._training = training
        self._data: FitData | None = None
        self._remaining = training.max_iter
        self._resumed_from = 0
        self._published = ""  # the suffix of the checkpoint that was exported
        self._log = GraceLog()

    def require_programs(self, *, active_set: bool) -> None:
        """Raise a ConfigError if one is not installed."""
        for name in ("gracemaker", *(["pace_activeset"] if active_set else [])):
            find_program(name)

    def basis(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return cutoff, elements and the ``potential`` section."""
        return describe_basis(self._training, elements)

    # -- the start -------------------------------------------------------------------------------

    @property
    def parent_files(self) -> Mapping[str, Path]:
        """Potential, architecture and coefficients."""
        files = self.files
        return {
            "potential.yaml": files.parent_potential,
            files.MODEL: files.start_model,
            **{name: files.parent_checkpoint(name) for name in files.CHECKPOINT},
        }

    def start_mode(
        self, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
    ) -> Literal["continue", "extend"]:
        """Require the basis of the parent."""
        require_same_basis(self._training, elements, parent_basis, parent)
        return "continue"

    def prepare_parent(self) -> None:
        """Check the architecture: gracemaker starts from the files as they are."""
        require_architecture(self.files.start_model)

    def begin(self, data: FitData, mode: Literal["continue", "extend"] | None) -> None:
        """Write input.yaml of an uninterrupted fit."""
        files = self.files
        checkpoint = files.parent_checkpoint(files.CHECKPOINT[0]).name if mode else None
        model = files.start_model.name if mode else None
        self._write_input(data, model, checkpoint)

    def restore(
        self, staging: Path, name: str, position: FitPosition, elements: Sequence[str]
    ) -> None:
        """Move the files of a checkpoint to gracemaker's folder."""
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

    def resume(
        self, data: FitData, mode: Literal["continue", "extend"] | None, position: FitPosition
    ) -> None:
        """Write input.yaml for the remaining iterations: gracemaker counts from its start."""
        del mode
        self.finished = position.finished
        self._resumed_from = position.iteration
        # A fit that was stopped in its export does one more: gracemaker's start needs one.
        self._remaining = max(1, self._training.max_iter - position.iteration)
        self._write_input(data, self.files.start_model.name, None)

    def _write_input(self, data: FitData, model: str | None, checkpoint: str | None) -> None:
        self._data = data
        content = build_input(
            self._training, data, remaining=self._remaining, model=model, checkpoint=checkpoint
        )
        self.files.input_yaml.write_text(dump_input(content), encoding="utf-8")

    # -- the fit ---------------------------------------------------------------------------------

    def fit_linearly(self, tell: Callable[[str], None]) -> LinearStart:
        """Raise a ValueError: none is ever due."""
        del tell
        raise ValueError("gracemaker makes no linear fit")

    def fit(self, monitor: Monitor) -> None:
        """Run gracemaker to its end.

        Raises
        ------
        ConfigError
            If gracemaker is not installed.
        GpuRequiredError
            If TensorFlow sees no GPU, and one is required.
        MlipJobError
            The error that the monitor stopped it with.
        TrainingError
            If it failed or left no usable potential; the message has the cause and the last lines
            of the log.
        """
        files = self.files
        self._run(["-rl"] if self._resumed_from else [], monitor)
        self._published = files.BEST if files.checkpoint(files.BEST)[0].is_file() else ""
        # Gracemaker exports the best iteration since its last start, but an earlier one may be it.
        best, kept = self._best_epoch(), files.checkpoint(files.EARLIER)[0].is_file()
        if kept and best is not None and best <= self._resumed_from:
            self._run(["-rs", files.EARLIER, "-s"], monitor)
            self._published = files.EARLIER

    def _run(self, options: Sequence[str], monitor: Monitor) -> None:
        """Run gracemaker; with ``-s`` it exports a checkpoint, without a fit."""
        files, require_gpu = self.files, self._training.require_gpu
        program = trainer_command("gracemaker", require_gpu=require_gpu)
        environment = trainer_environment() | {"TF_USE_LEGACY_KERAS": "1"}
        second_set: SecondSet = "validation" if self._given.validation else "test"
        with reported(files.directory):
            exit_code = run_trainer(
                [*program, *options, "-sf", files.input_yaml.name],
                environment,
                files.train_log,
                GraceOutput(files, self._log, second_set),
                monitor,
            )
            if "-s" in options and files.exported_again.is_file():
                files.exported_again.replace(files.potential)
        if require_gpu and exit_code == NO_DEVICE:
            raise gpu_unseen()
        if (cause := self._why_failed(exit_code)) is not None:
            raise failure("gracemaker", exit_code, cause, files.train_log)

    def _best_epoch(self) -> int | None:
        return best_epoch(read_curve(self.files.metrics("test"), "test")[0])

    def _why_failed(self, exit_code: int) -> str | None:
        """Return why there is no usable potential; an exit code of 0 is not enough."""
        if exit_code != 0:
            return self._why_ended(exit_code)
        rows, _ = read_curve(self.files.metrics("train"), "train")
        if not any(row.epoch > self._resumed_from for row in rows):
            return "the optimiser did not make one iteration"
        if not all(math.isfinite(row.loss) for row in rows):
            return DIVERGED
        try:
            found = elements_of(read_potential(self.files.potential))
        except TrainingError as error:
            return error.message
        expected = tuple(sorted(self._given.elements))
        if found != expected:
            return f"the potential describes {', '.join(found)}, not {', '.join(expected)}"
        return None

    def _why_ended(self, exit_code: int) -> str:
        exception = self._log.exception or ""
        if is_out_of_memory(exception):
            return "out of memory: reduce training.batch_size or give the job more memory"
        phase = self._log.phase.replace("_", " ")
        return describe_exit(exit_code) or exception or f"it ended while {phase}"

    def snapshot(self, directory: Path) -> Snapshot | None:
        """Copy gracemaker's newest checkpoint, written every few iterations, with the metrics.

        None if there is none yet, or if it was being written.
        """
        files = self.files
        newest = files.checkpoint()
        try:
            before = [path.stat().st_mtime_ns for path in newest]
            content = _named(_NEWEST, _copied(newest, directory))
            unchanged = before == [path.stat().st_mtime_ns for path in newest]
        except FileNotFoundError:
            return None
        written = datetime.fromtimestamp(before[0] / 1e9)  # noqa: DTZ006 - as the log's stamps
        iterations = [number for number, time in self._log.checkpoints if time <= written]
        if not unchanged or not iterations:
            return None
        content |= _named(_BEST, self._best_until(iterations[-1], before[0], directory))
        shown = {}
        for side in ("train", "test"):
            if files.metrics(side).is_file():
                copy = directory / f"{side}_metrics.yaml"
                shutil.copyfile(files.metrics(side), copy)
                shown[f"metrics/{copy.name}"] = copy
        content[files.MODEL] = files.model
        position = FitPosition(
            ladder_step=0, iteration=iterations[-1], step_done=False, last_step=True
        )
        return Snapshot(position, iterations[-1], content | shown, shown)

    def _best_until(self, iteration: int, written_ns: int, directory: Path) -> Sequence[Path]:
        """Copy the best checkpoint until that of an iteration; nothing if it is a later one."""
        files, best = self.files, self._best_epoch()
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
        """Return the state of the finished fit."""
        self.finished = True
        rows, _ = read_curve(self.files.metrics("train"), "train")
        position = FitPosition(
            ladder_step=0,
            iteration=rows[-1].epoch if rows else 0,
            step_done=True,
            last_step=True,
            finished=True,
        )
        content = {
            "potential.yaml": self.files.potential,
            self.files.train_log.name: self.files.train_log,
            **_named(_NEWEST, self.files.checkpoint(self._published)),
            self.files.MODEL: self.files.model,
            **self._metrics(),
        }
        return Snapshot(position, position.iteration, content)

    @property
    def _given(self) -> FitData:
        if self._data is None:
            raise ValueError("begin or resume comes first")
        return self._data

    def _metrics(self) -> dict[str, Path]:
        paths = (self.files.metrics(side) for side in ("train", "test"))
        return {f"metrics/{path.name}": path for path in paths if path.is_file()}

    # -- the result ------------------------------------------------------------------------------

    def summary(self, linear_start: LinearStart | None) -> RunSummary:
        """Return errors, curves and warnings of the finished fit."""
        del linear_start
        train, dropped = read_curve(self.files.metrics("train"), "train")
        second, _ = read_curve(self.files.metrics("test"), "test")
        log = GraceLog()
        for line in read_lines(self.files.train_log):
            log.feed(line)
        best = best_row(train, second, log.resumed_from or 0)
        tested = {row.epoch: row for row in second}
        test = tested.get(best.epoch) if best is not None else None
        chosen = None
        if best is not None and test is not None and best is not train[-1]:
            last = tested.get(train[-1].epoch)
            chosen = BestPotential(
                ladder_step=0,
                cycle=0,
                iteration=best.epoch,
                loss=test.loss,
                last_loss=last.loss if last is not None and math.isfinite(last.loss) else None,
            )
        iterations = train[-1].epoch if train else 0
        final_loss = train[-1].point.loss if train else None
        cycle = FitCycle(
            ladder_step=0, cycle=0, functions=None, iterations=iterations, final_loss=final_loss
        )
        held_out = len(self._given.validation)
        structures: dict[Literal["train", "test"], SetSizes] = {
            "train": _sizes(self._given.structures - held_out)
        }
        if held_out:
            structures["test"] = _sizes(held_out)
        return RunSummary(
            status="succeeded",
            cause=None,
            exit_code=0,
            train=best.errors if best is not None else None,
            test=test.errors if test is not None else None,
            loss_shares=best.loss_shares if best is not None else None,
            second_set="validation" if self._given.validation else "test",
            best=chosen,
            iterations=iterations,
            functions=count_functions(read_potential(self.potential)),
            parameters=log.parameters,
            ladder=False,
            cycles=(cycle,),
            early_stopping=None,
            optimiser_message=log.optimiser_message,
            structures=structures,
            versions=log.versions,
            timings_s=log.phase_seconds(),
            train_curve=tuple(row.point for row in train),
            test_curve=tuple(row.point for row in second),
            warnings=(f"train_metrics.yaml: {dropped} unreadable lines left out",)
            if dropped
            else (),
        )

    def left_out(self) -> dict[str, tuple[int, ...]]:
        """Return no rows: all structures are fitted."""
        return {}

    def export(self) -> None:
        """Do nothing: the fit ends with the published potential."""

    def write_active_set(self, frames: Sequence[str], kind: Literal["linear", "full"]) -> Path:
        """Make the active set of data frames, relative to the work directory.

        Raises
        ------
        TrainingError
            For another kind than the linear one.
        """
        if kind != "linear":
            raise TrainingError(
                "gracemaker makes linear active sets only",
                hint="set evaluation.active_set: linear",
            )
        return write_active_set(self.potential, [self.files.directory / name for name in frames])

    @property
    def potential(self) -> Path:
        """The FS potential."""
        return self.files.potential

    @property
    def exported(self) -> Path:
        """The same file."""
        return self.files.potential

    @property
    def active_set(self) -> Path:
        """The active set of the potential."""
        return self.files.active_set

    def artefacts(self) -> dict[str, Path]:
        """Return input, log, potential, active set, metrics, and what a later fit starts from."""
        published = {
            "input.yaml": self.files.input_yaml,
            "train.log": self.files.train_log,
            "potential.yaml": self.files.potential,
            self.files.MODEL: self.files.model,
            **_named(self.files.CHECKPOINT, self.files.checkpoint(self._published)),
        }
        if self.files.active_set.exists():
            published["potential.asi"] = self.files.active_set
        return published | self._metrics()


def _sizes(structures: int) -> SetSizes:
    return SetSizes(found=structures, kept=structures, fitted=structures)


def _named(names: Sequence[str], paths: Sequence[Path]) -> dict[str, Path]:
    return dict(zip(names, paths, strict=False))


def _copied(paths: Sequence[Path], directory: Path) -> Sequence[Path]:
    copies = [directory / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        shutil.copyfile(path, copy)
    return copies
