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
from mlip_job.training.pacemaker.callbacks import mlip_job_callbacks
from mlip_job.training.pacemaker.input import (
    Segment,
    StartPotential,
    build_input,
    potential_section,
    remaining_segments,
    start_mode,
    weighting_policy,
)
from mlip_job.training.pacemaker.linear_fit import LinearTask, run_linear_fit
from mlip_job.training.pacemaker.log import LogParser
from mlip_job.training.pacemaker.outcome import summarise_linear_fit, summarise_run, undetermined
from mlip_job.training.pacemaker.potential_file import (
    POTENTIAL,
    as_start,
    convert_to_yace,
    count_functions,
    elements_of,
    perturbed,
    read_potential,
    write_potential,
)
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
from mlip_job.training.process import Output, failure, run_trainer
from mlip_job.training.programs import write_active_set
from mlip_job.training.trainer import FitPosition, Snapshot, Trainer, dump_input

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlip_job.config import TrainingConfig
    from mlip_job.training.summary import LinearStart, RunSummary
    from mlip_job.training.trainer import FitData, Monitor, StartMode

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


class PacemakerWrapper(Trainer):
    """A fit by pacemaker, in one segment or more."""

    program_names = ("pacemaker", "pace_yaml2yace")

    def __init__(self, training: TrainingConfig, directory: Path) -> None:
        super().__init__(training)
        self.files = files = PacemakerFiles(directory)
        self.potential, self.exported = files.output_potential, files.yace
        self.active_set = files.active_set
        self.parent_files = {POTENTIAL: files.parent_potential}
        self._segments: dict[Path, Segment] = {}
        self._segment: Segment | None = None
        self._changing = Lock()

    def basis(self, elements: Sequence[str]) -> dict[str, Any]:
        return potential_section(self._training, elements)

    # -- the start -------------------------------------------------------------------------------

    def start_mode(
        self, elements: Sequence[str], parent_basis: Mapping[str, Any], parent: str
    ) -> StartMode:
        return start_mode(self._training, elements, parent_basis, parent)

    def prepare_parent(self) -> None:
        start = as_start(read_potential(self.files.parent_potential))
        if self._training.start_noise:
            start = perturbed(start, self._training.start_noise, self._training.seed)
        write_potential(start, self.files.parent_potential)

    def begin(self, data: FitData, mode: StartMode | None) -> None:
        self._segments = {self.files.input_yaml: Segment(self._write_input(data, mode))}

    def restore(
        self, staging: Path, name: str, position: FitPosition, elements: Sequence[str]
    ) -> None:
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

    def resume(self, data: FitData, mode: StartMode | None, position: FitPosition) -> None:
        content = self._write_input(data, mode)
        self.finished = position.finished
        if not position.finished:
            section = potential_section(self._training, data.elements)
            name = self.files.checkpoint_potential.name
            segments = remaining_segments(position, content, section, name)
            self._segments = {self.files.segment_input(n): s for n, s in enumerate(segments, 1)}

    def _write_input(self, data: FitData, mode: StartMode | None) -> dict[str, Any]:
        start = None
        if mode is not None:
            start = StartPotential(self.files.parent_potential.name, same_basis=mode == "continue")
        elif self._training.linear_start:
            start = StartPotential(self.files.linear_start.name, same_basis=True)
        self._given = data
        content = build_input(self._training, data, start)
        self.files.input_yaml.write_text(dump_input(content), encoding="utf-8")
        return content

    # -- the fit ---------------------------------------------------------------------------------

    @property
    def linear_fit_due(self) -> bool:
        segment = self._segments.get(self.files.input_yaml)
        start = self.files.linear_start.name
        return segment is not None and segment.content["potential"] == start

    def fit_linearly(self, tell: Callable[[str], None]) -> LinearStart:
        task = LinearTask(self._training, self._data, str(self.files.directory), usable_cores())
        tell(f"linear fit to {self._data.structures} structures")
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
        # Before the first segment, the linear fit.
        with self._changing:
            if self._segment is not None:
                return take_snapshot(self.files, self._segment, self._data.elements, directory)
            if not self.files.linear_start.exists():
                return None
            return Snapshot(_LINEAR_FIT, 0, {POTENTIAL: self.files.linear_start})

    def finish(self) -> Snapshot:
        files = self.files
        files.left_out.write_text(json.dumps(self._rows_left_out()), encoding="utf-8")
        rows = read_table(files.curves / "metrics.txt").rows
        self.finished = True
        position = FitPosition.end(
            (rows[-1].iter_num or 0) if rows else 0,
            max((row.ladder_step or 0 for row in rows), default=0),
        )
        content = {
            POTENTIAL: files.output_potential,
            files.train_log.name: files.train_log,
            **{path.name: path for path in (*files.segment_inputs(), *files.records())},
            **files.tables(),
        }
        return Snapshot(position, count_iterations(rows), content)

    def _run(self, input_file: Path, segment: Segment, monitor: Monitor) -> int:
        files, training = self.files, self._training
        input_file.write_text(dump_input(segment.content), encoding="utf-8")
        if segment.keeps_best:
            configure_callback(files, segment, training.early_stopping_patience)
        with self._changing:
            self._segment = segment
        log = LogParser()
        train, second = (TableFollower(files.table(name)) for name in ("metrics", "test_metrics"))
        output = Output(
            log.feed,
            lambda: log.state,
            lambda: [segment.offset.shift(row).point for row in train.poll()],
            lambda: [segment.offset.shift(row).point for row in second.poll()],
            self._data.second_set,
        )
        try:
            exit_code = run_trainer(
                "pacemaker",
                # Its predictions and plots of the training data would cost two more graphs.
                ["--no-predict", input_file.name],
                files.train_log,
                output,
                monitor,
                variables={"PYTHONPATH": str(Path(mlip_job_callbacks.__file__).parent)},
                require_gpu=training.require_gpu,
            )
        except MlipJobError:
            with suppress(OSError):  # the curve is for display only
                write_tables(files, segment, files.curves)
            raise
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
        if (wrong := self._wrong_elements(elements_of(potential))) is not None:
            return wrong
        written = count_functions(potential)
        if summary.functions not in (None, written):
            return f"only {written} of the potential's {summary.functions} functions were written"
        return None

    def _rows_left_out(self) -> dict[str, tuple[int, ...]]:
        """Return the rows that energy-based weighting excluded.

        Test rows that the weighting would exclude do not count in the errors either.
        """
        policy, data = weighting_policy(self._training), self._data
        directory = self.files.directory
        if policy is None:
            return {}
        fitted, second, tested = (
            [directory / name for name in names] for names in (data.train, data.second, data.test)
        )
        train = rows_left_out(directory / FITTED["train"], fitted)
        second_rows = rows_left_out(directory / FITTED["test"], second)
        if second == tested:
            return {"train": train, "test": second_rows}
        test = rows_beyond_policy(policy, (*fitted, *second), tested)
        return {"train": tuple(sorted((*train, *second_rows))), "test": test}

    # -- the result ------------------------------------------------------------------------------

    def summary(self, linear_start: LinearStart | None) -> RunSummary:
        if self._training.is_linear and linear_start is not None:
            return summarise_linear_fit(linear_start)
        return summarise_run(self.files.directory, exit_code=0)

    def left_out(self) -> dict[str, tuple[int, ...]]:
        rows: dict[str, list[int]] = json.loads(self.files.left_out.read_text(encoding="utf-8"))
        return {side: tuple(numbers) for side, numbers in rows.items()}

    def export(self) -> None:
        convert_to_yace(self.potential, self.exported)

    def write_active_set(self, frames: Sequence[str], kind: Literal["linear", "full"]) -> Path:
        # All atoms, not only those whose forces are described well: then a grade above 1 means
        # outside of the training data, and data that is taken in batches needs it anyway.
        suffix = {"linear": ".asi", "full": ".asi.nonlinear"}[kind]
        options = ("--all-atoms", "-V", *(["--full"] if kind == "full" else []))
        paths = [self.files.directory / name for name in frames]
        return write_active_set(self.potential, paths, *options, suffix=suffix)

    def artefacts(self) -> dict[str, Path]:
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
