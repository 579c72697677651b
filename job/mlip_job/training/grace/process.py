"""The fit by gracemaker: input, process, progress, checkpoints and result."""

from __future__ import annotations

import math
import re
import shutil
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from mlip_job.errors import ConfigError, IntegrityError, TrainingError
from mlip_job.paths import reported
from mlip_job.training.grace import GraceFiles
from mlip_job.training.grace.input import build_input, dump_input, potential_section
from mlip_job.training.grace.metrics import MetricsFollower, best_row, read_curve
from mlip_job.training.grace.potential_file import elements_of, read_potential, write_active_set
from mlip_job.training.loss import DIVERGED
from mlip_job.training.process import (
    describe_exit,
    failure,
    is_out_of_memory,
    read_lines,
    run_trainer,
)
from mlip_job.training.programs import find_program, trainer_environment
from mlip_job.training.summary import BestPotential, FitCycle, RunSummary, SetSizes
from mlip_job.training.trainer import FitPosition, Snapshot, added

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import TrainingConfig
    from mlip_job.training.summary import CurvePoint, LinearStart
    from mlip_job.training.trainer import FitData, Monitor, SecondSet, Trainer

_STAMP = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) [DIWEC] - (.*)")
_ITERATION = re.compile(r"Iteration #(\d+)/")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception)(?::.*)?$")
_PHASES = {
    "Loading training data": "loading_data",
    "Constructing model": "building_graph",
    "Iteration #": "fitting",
    "Loading best test loss model": "exporting",
    "Saving model to": "exporting",
    "Exporting FS-model done": "finished",
}
_CHECKPOINT = ("checkpoint.index", "checkpoint.data-00000-of-00001")


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
        if found := _ITERATION.match(message):
            self.iteration = int(found.group(1))
            if self.resumed_from is None:
                self.resumed_from = self.iteration - 1
        elif message.startswith("Regular checkpointing"):
            self.checkpoints.append((self.iteration, time))
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
    """A fit by gracemaker: implements `Trainer`.

    `stress_weight` is c in a·MSE(E/atom) + b·mean|ΔF|² + c·MSE(stress), in eV/Å³.
    """

    linear_fit_due = False

    def __init__(
        self, training: TrainingConfig, directory: Path, *, stress_weight: float = 0.0
    ) -> None:
        self.files = GraceFiles(directory, training.seed)
        self.finished = False
        self._training = training
        self._stress_weight = stress_weight
        self._data: FitData | None = None
        self._resumed_from = 0
        self._log = GraceLog()

    def require_programs(self, *, active_set: bool) -> None:
        """Raise a ConfigError if one is not installed."""
        for name in ("gracemaker", *(["pace_activeset"] if active_set else [])):
            find_program(name)

    def basis(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return cutoff, elements and the ``potential`` section."""
        section = potential_section(self._training)
        return {"elements": sorted(elements), "cutoff": self._training.cutoff, **section}

    # -- the start -------------------------------------------------------------------------------

    @property
    def parent_files(self) -> Mapping[str, Path]:
        """None: a fit always starts from nothing."""
        return {}

    def start_mode(
        self, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
    ) -> Literal["continue", "extend"]:
        """Refuse: gracemaker can't start from another potential yet."""
        del elements, parent_basis
        raise ConfigError(
            f"a fit by gracemaker can't start from {parent}", hint="set training.start_from: none"
        )

    def prepare_parent(self) -> None:
        """Do nothing: there is no parent."""

    def begin(self, data: FitData, mode: Literal["continue", "extend"] | None) -> None:
        """Write input.yaml of an uninterrupted fit."""
        del mode
        self._write_input(data, self._training.max_iter)

    def restore(
        self, staging: Path, name: str, position: FitPosition, elements: Sequence[str]
    ) -> None:
        """Move the files of a checkpoint to gracemaker's folder."""
        files = self.files
        moves = {"metrics/train_metrics.yaml": files.metrics("train")}
        if position.finished:
            moves |= {"potential.yaml": files.potential, files.train_log.name: files.train_log}
        else:
            moves |= {f"checkpoints/{part}": files.checkpoints / part for part in _CHECKPOINT}
        if missing := sorted(source for source in moves if not (staging / source).is_file()):
            raise IntegrityError(f"{name} has no {', '.join(missing)}")
        if position.finished:
            found = elements_of(read_potential(staging / "potential.yaml"))
            if found != tuple(sorted(elements)):
                raise IntegrityError(f"{name} describes {', '.join(found)}")
            moves["training_set.pkl.gz"] = files.training_set
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
        self._write_input(data, max(0, self._training.max_iter - position.iteration))

    def _write_input(self, data: FitData, remaining: int) -> None:
        self._data = data
        content = build_input(
            self._training, data, stress_weight=self._stress_weight, remaining=remaining
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
        MlipJobError
            The error that the monitor stopped it with.
        TrainingError
            If it failed or left no usable potential; the message has the cause and the last lines
            of the log.
        """
        files, resume = self.files, ["-rl"] if self._resumed_from else []
        program = str(find_program("gracemaker"))
        environment = trainer_environment() | {"TF_USE_LEGACY_KERAS": "1"}
        second_set: SecondSet = "validation" if self._given.validation else "test"
        with reported(files.directory):
            exit_code = run_trainer(
                [program, *resume, "-sf", files.input_yaml.name],
                environment,
                files.train_log,
                GraceOutput(files, self._log, second_set),
                monitor,
            )
        if (cause := self._why_failed(exit_code)) is not None:
            raise failure("gracemaker", exit_code, cause, files.train_log)

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
        sources = [self.files.checkpoints / part for part in _CHECKPOINT]
        try:
            before = [path.stat().st_mtime_ns for path in sources]
            for path in sources:
                shutil.copyfile(path, directory / path.name)
            unchanged = before == [path.stat().st_mtime_ns for path in sources]
        except FileNotFoundError:
            return None
        written = datetime.fromtimestamp(before[0] / 1e9)  # noqa: DTZ006 - as the log's stamps
        iterations = [number for number, time in self._log.checkpoints if time <= written]
        if not unchanged or not iterations:
            return None
        shown = {}
        for side in ("train", "test"):
            if self.files.metrics(side).is_file():
                copy = directory / f"{side}_metrics.yaml"
                shutil.copyfile(self.files.metrics(side), copy)
                shown[f"metrics/{copy.name}"] = copy
        checkpoint = {f"checkpoints/{path.name}": directory / path.name for path in sources}
        position = FitPosition(
            ladder_step=0, iteration=iterations[-1], step_done=False, last_step=True
        )
        return Snapshot(position, iterations[-1], checkpoint | shown, shown)

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
            "training_set.pkl.gz": self.files.training_set,
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
        fitted = self._given.structures - len(self._given.validation)
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
            functions=None,
            parameters=None,
            ladder=False,
            cycles=(cycle,),
            early_stopping=None,
            optimiser_message=log.optimiser_message,
            structures={"train": SetSizes(found=None, kept=None, fitted=fitted)},
            versions={},
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
        """Make the active set of gracemaker's copy of the training set, not of `frames`.

        Raises
        ------
        TrainingError
            For another kind than the linear one.
        """
        del frames
        if kind != "linear":
            raise TrainingError(
                "gracemaker makes linear active sets only",
                hint="set evaluation.active_set: linear",
            )
        return write_active_set(self.potential, self.files.training_set)

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
        """Return input, log, potential, active set and metrics."""
        published = {
            "input.yaml": self.files.input_yaml,
            "train.log": self.files.train_log,
            "potential.yaml": self.files.potential,
        }
        if self.files.active_set.exists():
            published["potential.asi"] = self.files.active_set
        return published | self._metrics()


if TYPE_CHECKING:
    _: type[Trainer] = GraceWrapper  # checked here as long as no configuration opens it
