"""Run a fit by pacemaker segment by segment, and check the result."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mlip_job.errors import MlipJobError, TrainingError
from mlip_job.paths import full, is_full, reported
from mlip_job.training.pacemaker.best import (
    EarlyStopping,
    is_kept_by,
    make_final,
    prepare,
    read_kept,
)
from mlip_job.training.pacemaker.callbacks import on_device
from mlip_job.training.pacemaker.input import dump_input
from mlip_job.training.pacemaker.log import LogParser
from mlip_job.training.pacemaker.potential_file import (
    as_start,
    count_functions,
    elements_of,
    read_potential,
    write_potential,
)
from mlip_job.training.pacemaker.programs import GPU, find_program, gpu_unseen, trainer_environment
from mlip_job.training.pacemaker.results import summarise_run
from mlip_job.training.pacemaker.snapshot import take_snapshot, write_tables
from mlip_job.training.pacemaker.tables import TableFollower
from mlip_job.training.process import last_lines, run_trainer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from mlip_job.paths import WorkFiles
    from mlip_job.training.checkpoint import Snapshot
    from mlip_job.training.pacemaker.input import Segment
    from mlip_job.training.pacemaker.tables import Offset
    from mlip_job.training.summary import CurvePoint, RunSummary
    from mlip_job.training.trainer import Monitor

# Files of one segment that the next one must not read.
_LEFT_BY_PACEMAKER = (
    "*metrics.txt",
    "interim_potential_*.yaml",
    "current_extended_potential.yaml",
    "target_potential.yaml",
    "output_potential.yaml",
    "log.txt",
)


class PacemakerWrapper:
    """A fit by pacemaker, in one segment or more.

    Parameters
    ----------
    files
        Its work directory, with the data frames and potentials that its inputs name.
    elements
        Required elements of the potential.
    monitor
        Receives the progress, and may stop it.
    require_gpu
        Whether it must not train on the CPU.
    stopping
        Criterion for early stopping, if its inputs store the best potential.
    """

    def __init__(
        self,
        files: WorkFiles,
        elements: Sequence[str],
        monitor: Monitor,
        *,
        require_gpu: bool = False,
        stopping: EarlyStopping | None = None,
    ) -> None:
        self._files = files
        self._stopping = stopping or EarlyStopping()
        self._elements = tuple(sorted(elements))
        self._monitor = monitor
        self._require_gpu = require_gpu
        self._segment: Segment | None = None
        self._changing = Lock()

    def fit(self, segments: Mapping[Path, Segment]) -> RunSummary:
        """Run pacemaker to its end and return the result of the whole fit.

        Parameters
        ----------
        segments
            The segments by input file, which are written here.

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
        with reported(self._files.directory):
            for number, (input_file, segment) in enumerate(segments.items()):
                if number > 0:
                    self._prepare_next()
                exit_code = self._run(input_file, segment)
                summary = summarise_run(self._files.directory, exit_code=exit_code)
                self._require_usable(summary, exit_code)
            kept = read_kept(self._files.best)
            if kept is not None and summary.best is not None:
                make_final(kept, self._files.output_potential)
        return summary

    def snapshot(self, directory: Path) -> Snapshot | None:
        """Copy a resumable state into an empty directory; thread-safe."""
        with self._changing:
            if self._segment is None:
                return None
            return take_snapshot(self._files, self._segment, self._elements, directory)

    def _run(self, input_file: Path, segment: Segment) -> int:
        input_file.write_text(dump_input(segment.content), encoding="utf-8")
        if is_kept_by(segment.content):
            prepare(self._files, segment, self._stopping)
        with self._changing:
            self._segment = segment
        try:
            exit_code = run_trainer(
                # Its predictions and plots of the training data would cost two more graphs.
                [*_program(self._require_gpu), "--no-predict", input_file.name],
                trainer_environment() | {"PYTHONPATH": str(Path(on_device.__file__).parent)},
                self._files.train_log,
                PacemakerOutput(self._files, segment.offset),
                self._monitor,
            )
        except MlipJobError:
            with suppress(OSError):  # the curve is for display only
                write_tables(self._files, segment, self._files.curves)
            raise
        if self._require_gpu and exit_code == on_device.NO_DEVICE:
            raise gpu_unseen()
        write_tables(self._files, segment, self._files.curves)
        return exit_code

    def _prepare_next(self) -> None:
        """Make the result of a segment the start of the next one."""
        files = self._files
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
        cause = summary.cause or self._unusable(summary)
        if cause is not None:
            if is_full(self._files.directory, cause):
                raise full(self._files.directory)
            log = self._files.train_log
            raise TrainingError(
                f"pacemaker failed (exit code {exit_code}): {cause}\n"
                f"last lines of {log}:\n{last_lines(log)}"
            )

    def _unusable(self, summary: RunSummary) -> str | None:
        """Return why the result of a successful exit is unusable; pacemaker does not report it."""
        for side, sizes in summary.structures.items():
            if sizes.kept != sizes.found:
                return f"only {sizes.kept} of {sizes.found} {side} structures were taken"
        try:
            potential = read_potential(self._files.output_potential)
        except TrainingError as error:
            return error.message
        found = elements_of(potential)
        if found != self._elements:
            return f"the potential describes {', '.join(found)}, not {', '.join(self._elements)}"
        written = count_functions(potential)
        if summary.functions not in (None, written):
            return f"only {written} of the potential's {summary.functions} functions were written"
        return None


class PacemakerOutput:
    """Pacemaker's log and tables during a run, with positions in the whole fit."""

    def __init__(self, files: WorkFiles, offset: Offset) -> None:
        self._log = LogParser()
        self._offset = offset
        self._metrics = TableFollower(files.table("metrics"))
        self._test_metrics = TableFollower(files.table("test_metrics"))
        self.test_point: CurvePoint | None = None

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


def _program(require_gpu: bool) -> list[str]:
    """Return pacemaker's command; one that must have a GPU ends with `NO_DEVICE` without it.

    TensorFlow starts once, in the process that trains: a separate check would cost seconds.
    """
    # -P keeps the modules in that file's folder from being imported by mistake.
    launcher = [sys.executable, "-P", on_device.__file__, GPU] if require_gpu else []
    return [*launcher, str(find_program("pacemaker"))]
