"""The fit by pacemaker: input, linear fit, segments of the process, result and export."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from mlip_job.errors import IntegrityError, MlipJobError, TrainingError
from mlip_job.paths import reported
from mlip_job.runtime.environment import usable_cores
from mlip_job.training.pacemaker import PacemakerFiles
from mlip_job.training.pacemaker.basis import potential_section, start_mode
from mlip_job.training.pacemaker.callbacks import mlip_job_callbacks
from mlip_job.training.pacemaker.input import (
    Segment,
    StartPotential,
    build_input,
    dump_input,
    remaining_segments,
    weighting_policy,
)
from mlip_job.training.pacemaker.linear_fit import (
    LinearTask,
    run_linear_fit,
    summarise_linear_fit,
    undetermined,
)
from mlip_job.training.pacemaker.log import LogParser
from mlip_job.training.pacemaker.potential_file import (
    POTENTIAL,
    as_start,
    convert_to_yace,
    count_functions,
    elements_of,
    perturbed,
    read_potential,
    write_active_set,
    write_potential,
)
from mlip_job.training.pacemaker.results import summarise_run
from mlip_job.training.pacemaker.snapshot import (
    configure_callback,
    count_iterations,
    make_final,
    read_best,
    take_snapshot,
    write_tables,
)
from mlip_job.training.pacemaker.tables import TableFollower, read_table
from mlip_job.training.pacemaker.weighting import FITTED, rows_beyond_policy, rows_left_out
from mlip_job.training.process import failure, run_trainer
from mlip_job.training.programs import (
    find_program,
    gpu_unseen,
    trainer_command,
    trainer_environment,
)
from mlip_job.training.trainer import FitPosition, Snapshot
from mlip_job.training.with_device import NO_DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from mlip_job.config import TrainingConfig
    from mlip_job.training.pacemaker.tables import Offset
    from mlip_job.training.summary import CurvePoint, LinearStart, RunSummary
    from mlip_job.training.trainer import FitData, Monitor, SecondSet

# Files of one segment that the next one must not read.
_LEFT_BY_PACEMAKER = (
    "*metrics.txt",
    "interim_potential_*.yaml",
    "current_extended_potential.yaml",
    "target_potential.yaml",
    "output_potential.yaml",
    "log.txt",
)
_LINEAR_FIT = FitPosition(ladder_step=0, iteration=0, step_done=False, last_step=True)


class PacemakerWrapper:
    """A fit by pacemaker, in one segment or more: implements `Trainer`."""

    def __init__(self, training: TrainingConfig, directory: Path) -> None:
        self.files = PacemakerFiles(directory)
        self.finished = False
        self._training = training
        self._data: FitData | None = None
        self._segments: dict[Path, Segment] = {}
        self._segment: Segment | None = None
        self._changing = Lock()

    def require_programs(self, *, active_set: bool) -> None:
        """Raise a ConfigError if one is not installed."""
        for name in ("pacemaker", "pace_yaml2yace", *(["pace_activeset"] if active_set else [])):
            find_program(name)

    def basis(self, elements: Sequence[str]) -> dict[str, Any]:
        """Return the ``potential`` section of a fit from scratch."""
        return potential_section(self._training, elements)

    # -- the start -------------------------------------------------------------------------------

    @property
    def parent_files(self) -> Mapping[str, Path]:
        """The potential in B-basis."""
        return {POTENTIAL: self.files.parent_potential}

    def start_mode(
        self, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
    ) -> Literal["continue", "extend"]:
        """Decide whether the basis is the parent's or contains it."""
        return start_mode(self._training, elements, parent_basis, parent)

    def prepare_parent(self) -> None:
        """Remove the ZBL cores; add the noise that is configured."""
        start = as_start(read_potential(self.files.parent_potential))
        if self._training.start_noise:
            start = perturbed(start, self._training.start_noise, self._training.seed)
        write_potential(start, self.files.parent_potential)

    def begin(self, data: FitData, mode: Literal["continue", "extend"] | None) -> None:
        """Write input.yaml of an uninterrupted fit."""
        self._segments = {self.files.input_yaml: Segment(self._write_input(data, mode))}

    def restore(
        self, staging: Path, name: str, position: FitPosition, elements: Sequence[str]
    ) -> None:
        """Move the files of a checkpoint to the names of a work directory."""
        files = self.files
        moves = {POTENTIAL: files.checkpoint_potential, "metrics": files.history}
        required = {POTENTIAL}
        if position.finished:
            moves = {POTENTIAL: files.output_potential, "metrics": files.curves}
            moves[files.train_log.name] = files.train_log
            required |= {files.train_log.name, files.left_out.name}
        if missing := sorted(file for file in required if not (staging / file).exists()):
            raise IntegrityError(f"{name} has no {', '.join(missing)}")
        found = elements_of(read_potential(staging / POTENTIAL))
        if found != tuple(sorted(elements)):
            raise IntegrityError(f"{name} describes {', '.join(found)}")
        # Skip all other files: a program of the fit might read them.
        moves |= {p.name: files.directory / p.name for p in PacemakerFiles(staging).of_fit()}
        for source, target in moves.items():
            if (staging / source).exists():
                (staging / source).rename(target)

    def resume(
        self, data: FitData, mode: Literal["continue", "extend"] | None, position: FitPosition
    ) -> None:
        """Prepare the segments that remain from a position."""
        content = self._write_input(data, mode)
        self.finished = position.finished
        if not position.finished:
            section = potential_section(self._training, data.elements)
            name = self.files.checkpoint_potential.name
            segments = remaining_segments(position, content, section, name)
            self._segments = {self.files.segment_input(n): s for n, s in enumerate(segments, 1)}

    def _write_input(
        self, data: FitData, mode: Literal["continue", "extend"] | None
    ) -> dict[str, Any]:
        start = None
        if mode is not None:
            start = StartPotential(self.files.parent_potential.name, same_basis=mode == "continue")
        elif self._training.linear_start:
            start = StartPotential(self.files.linear_start.name, same_basis=True)
        self._data = data
        content = build_input(self._training, data, start)
        self.files.input_yaml.write_text(dump_input(content), encoding="utf-8")
        return content

    # -- the fit ---------------------------------------------------------------------------------

    @property
    def linear_fit_due(self) -> bool:
        """Whether input.yaml starts from a linear fit that is still to be made."""
        segment = self._segments.get(self.files.input_yaml)
        start = self.files.linear_start.name
        return segment is not None and segment.content["potential"] == start

    def fit_linearly(self, tell: Callable[[str], None]) -> LinearStart:
        """Make the linear potential that pacemaker starts from, or that is published."""
        task = LinearTask(self._training, self._given, str(self.files.directory), usable_cores())
        tell(f"linear fit to {self._given.structures} structures")
        made = run_linear_fit(task, tell)
        result = (
            f"linear fit of {made.functions} coefficients to {made.structures} structures: "
            f"loss {made.loss:.3g}"
        )
        tell(result)
        for note in undetermined(made):
            tell(f"note: {note}")
        if self._training.is_linear:
            self.files.train_log.write_text(f"{result}\n", encoding="utf-8")
        return made

    def fit(self, monitor: Monitor) -> None:
        """Run pacemaker on all segments.

        Raises
        ------
        ConfigError
            If pacemaker is not installed.
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
        with reported(self.files.directory):
            for number, (input_file, segment) in enumerate(self._segments.items()):
                if number > 0:
                    self._prepare_next()
                exit_code = self._run(input_file, segment, monitor)
                summary = summarise_run(self.files.directory, exit_code=exit_code)
                self._require_usable(summary, exit_code)
            best = read_best(self.files.best)
            if best is not None and summary.best is not None:
                make_final(best, self.files.output_potential)

    def snapshot(self, directory: Path) -> Snapshot | None:
        """Copy the newest potential; before the first segment, that of the linear fit."""
        with self._changing:
            if self._segment is not None:
                return take_snapshot(self.files, self._segment, self._given.elements, directory)
            if not self.files.linear_start.exists():
                return None
            return Snapshot(_LINEAR_FIT, 0, {POTENTIAL: self.files.linear_start})

    def finish(self) -> Snapshot:
        """Record the rows that were left out; return the state for a checkpoint."""
        files = self.files
        files.left_out.write_text(json.dumps(self._rows_left_out()), encoding="utf-8")
        rows = read_table(files.curves / "metrics.txt").rows
        self.finished = True
        position = FitPosition(
            ladder_step=max((row.ladder_step or 0 for row in rows), default=0),
            iteration=(rows[-1].iter_num or 0) if rows else 0,
            step_done=True,
            last_step=True,
            finished=True,
        )
        content = {
            POTENTIAL: files.output_potential,
            files.train_log.name: files.train_log,
            **{path.name: path for path in (*files.segment_inputs(), *files.records())},
            **files.tables(),
        }
        return Snapshot(position, count_iterations(rows), content)

    @property
    def _given(self) -> FitData:
        if self._data is None:
            raise ValueError("begin or resume comes first")
        return self._data

    def _run(self, input_file: Path, segment: Segment, monitor: Monitor) -> int:
        files, training = self.files, self._training
        input_file.write_text(dump_input(segment.content), encoding="utf-8")
        if segment.keeps_best:
            configure_callback(files, segment, training.early_stopping_patience)
        with self._changing:
            self._segment = segment
        second_set: SecondSet = "validation" if self._given.validation else "test"
        callbacks = str(Path(mlip_job_callbacks.__file__).parent)
        try:
            exit_code = run_trainer(
                # Its predictions and plots of the training data would cost two more graphs.
                [
                    *trainer_command("pacemaker", require_gpu=training.require_gpu),
                    "--no-predict",
                    input_file.name,
                ],
                trainer_environment() | {"PYTHONPATH": callbacks},
                files.train_log,
                PacemakerOutput(files, segment.offset, second_set),
                monitor,
            )
        except MlipJobError:
            with suppress(OSError):  # the curve is for display only
                write_tables(files, segment, files.curves)
            raise
        if training.require_gpu and exit_code == NO_DEVICE:
            raise gpu_unseen()
        write_tables(files, segment, files.curves)
        return exit_code

    def _prepare_next(self) -> None:
        """Make the result of a segment the start of the next one."""
        files = self.files
        with self._changing:
            self._segment = None
            start = as_start(read_potential(files.output_potential))
            write_potential(start, files.checkpoint_potential)
            shutil.rmtree(files.history, ignore_errors=True)
            shutil.copytree(files.curves, files.history)
            for pattern in _LEFT_BY_PACEMAKER:
                for path in files.directory.glob(pattern):
                    path.unlink()

    def _require_usable(self, summary: RunSummary, exit_code: int) -> None:
        if (cause := summary.cause or self._unusable(summary)) is not None:
            raise failure("pacemaker", exit_code, cause, self.files.train_log)

    def _unusable(self, summary: RunSummary) -> str | None:
        """Return why the result of a successful exit is unusable; pacemaker does not report it."""
        for side, sizes in summary.structures.items():
            if sizes.kept != sizes.found:
                return f"only {sizes.kept} of {sizes.found} {side} structures were taken"
        try:
            potential = read_potential(self.files.output_potential)
        except TrainingError as error:
            return error.message
        found, expected = elements_of(potential), tuple(sorted(self._given.elements))
        if found != expected:
            return f"the potential describes {', '.join(found)}, not {', '.join(expected)}"
        written = count_functions(potential)
        if summary.functions not in (None, written):
            return f"only {written} of the potential's {summary.functions} functions were written"
        return None

    def _rows_left_out(self) -> dict[str, tuple[int, ...]]:
        """Return the rows that energy-based weighting excluded.

        Test rows that the weighting would exclude do not count in the errors either.
        """
        policy, data = weighting_policy(self._training), self._given
        directory = self.files.directory
        if policy is None:
            return {}
        fitted, second, tested = (
            [directory / name for name in names] for names in (data.train, data.second, data.test)
        )
        train = rows_left_out(directory / FITTED["train"], fitted)
        aside = rows_left_out(directory / FITTED["test"], second)
        if second == tested:
            return {"train": train, "test": aside}
        test = rows_beyond_policy(policy, (*fitted, *second), tested)
        return {"train": tuple(sorted((*train, *aside))), "test": test}

    # -- the result ------------------------------------------------------------------------------

    def summary(self, linear_start: LinearStart | None) -> RunSummary:
        """Return errors, curves and warnings of the finished fit."""
        if self._training.is_linear and linear_start is not None:
            return summarise_linear_fit(linear_start)
        return summarise_run(self.files.directory, exit_code=0)

    def left_out(self) -> dict[str, tuple[int, ...]]:
        """Return the rows that the weighting excluded, by side."""
        rows: dict[str, list[int]] = json.loads(self.files.left_out.read_text(encoding="utf-8"))
        return {side: tuple(numbers) for side, numbers in rows.items()}

    def export(self) -> None:
        """Convert the potential to ``.yace``."""
        convert_to_yace(self.potential, self.exported)

    def write_active_set(self, frames: Sequence[str], kind: Literal["linear", "full"]) -> Path:
        """Make the active set of data frames, relative to the work directory."""
        return write_active_set(self.potential, frames, kind)

    @property
    def potential(self) -> Path:
        """The potential in B-basis."""
        return self.files.output_potential

    @property
    def exported(self) -> Path:
        """The potential as ``.yace``."""
        return self.files.yace

    @property
    def active_set(self) -> Path:
        """The active set of the potential in B-basis."""
        return self.files.active_set

    def artefacts(self) -> dict[str, Path]:
        """Return input, log, potentials, active set and tables."""
        files = self.files
        published = {
            "input.yaml": files.input_yaml,
            "train.log": files.train_log,
            POTENTIAL: files.output_potential,
            "potential.yace": files.yace,
        }
        optional = [path for path in (files.active_set,) if path.exists()]
        named = {path.name: path for path in (*optional, *files.segment_inputs())}
        return published | named | files.tables()


class PacemakerOutput:
    """Pacemaker's log and tables during a run, with positions in the whole fit."""

    def __init__(self, files: PacemakerFiles, offset: Offset, second_set: SecondSet) -> None:
        self._log = LogParser()
        self._offset = offset
        self._metrics = TableFollower(files.table("metrics"))
        self._test_metrics = TableFollower(files.table("test_metrics"))
        self.test_point: CurvePoint | None = None
        self.second_set = second_set

    @property
    def phase(self) -> str:
        """The present phase."""
        return self._log.phase.value

    def feed(self, line: str) -> None:
        """Take a line of the log."""
        self._log.feed(line)

    def poll(self) -> Sequence[CurvePoint]:
        """Return the points of the training curve that were written since the last call."""
        if tested := self._test_metrics.poll():
            self.test_point = self._offset.shift(tested[-1]).point
        return [self._offset.shift(row).point for row in self._metrics.poll()]

    def phase_seconds(
        self, begun: datetime | None = None, until: datetime | None = None
    ) -> dict[str, float]:
        """Return the seconds in each phase."""
        return self._log.state.phase_seconds(begun, until)
