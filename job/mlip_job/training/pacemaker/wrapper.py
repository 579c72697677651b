"""A fit by pacemaker: its legs run one after the other, and how it ended is judged."""

from __future__ import annotations

import shutil
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

from mlip_job.disk import full, is_full, reported
from mlip_job.errors import MlipJobError, TrainingError
from mlip_job.training.pacemaker.best import EarlyStopping, is_kept_by, prepare, read_kept, take
from mlip_job.training.pacemaker.input import dump_input
from mlip_job.training.pacemaker.potential_file import (
    as_start,
    count_functions,
    elements_of,
    read_potential,
    write_potential,
)
from mlip_job.training.pacemaker.process import last_lines, run_pacemaker
from mlip_job.training.pacemaker.results import summarise_run
from mlip_job.training.pacemaker.snapshot import take_snapshot, write_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mlip_job.naming import WorkFiles
    from mlip_job.training.checkpoint import Snapshot
    from mlip_job.training.pacemaker.input import Leg
    from mlip_job.training.summary import RunSummary
    from mlip_job.training.trainer import Monitor

# What one leg leaves and the next must not find.
_LEFT_BY_PACEMAKER = (
    "*metrics.txt",
    "interim_potential_*.yaml",
    "current_extended_potential.yaml",
    "target_potential.yaml",
    "output_potential.yaml",
    "log.txt",
)


class PacemakerWrapper:
    """A fit by pacemaker, in one leg or more.

    Parameters
    ----------
    files
        Its work directory, holding the data frames and potentials that its inputs name.
    elements
        What the potential has to describe.
    monitor
        Who is told how it goes, and who may end it.
    require_gpu
        Whether it must not train on the CPU.
    stopping
        When it ends for want of a better potential, where its inputs have the best one kept.
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
        self._leg: Leg | None = None
        self._changing = Lock()

    def fit(self, legs: Mapping[Path, Leg]) -> RunSummary:
        """Run pacemaker to its end and return what the whole fit achieved.

        Parameters
        ----------
        legs
            What to start it with, one after the other, by input file; those files are written
            here.

        Raises
        ------
        ConfigError
            If pacemaker is not installed.
        GpuRequiredError
            If TensorFlow sees no GPU, and one is required.
        MlipJobError
            What the monitor ended it with.
        DiskError
            If the disk is full or fails.
        TrainingError
            If it failed, or what it left is no potential; the message has the cause in words and
            the last lines of the log.
        """
        with reported(self._files.directory):
            for number, (input_file, leg) in enumerate(legs.items()):
                if number > 0:
                    self._prepare_next()
                exit_code = self._run(input_file, leg)
                summary = summarise_run(self._files.directory, exit_code=exit_code)
                self._require_usable(summary, exit_code)
            kept = read_kept(self._files.best)
            if kept is not None and summary.best is not None:
                take(kept, self._files.output_potential)
        return summary

    def snapshot(self, directory: Path) -> Snapshot | None:
        """Copy what another run could go on from; may be called by another thread.

        Parameters
        ----------
        directory
            An empty one.
        """
        with self._changing:
            if self._leg is None:
                return None
            return take_snapshot(self._files, self._leg, self._elements, directory)

    def _run(self, input_file: Path, leg: Leg) -> int:
        input_file.write_text(dump_input(leg.content), encoding="utf-8")
        if is_kept_by(leg.content):
            prepare(self._files, leg, self._stopping)
        with self._changing:
            self._leg = leg
        try:
            exit_code = run_pacemaker(
                self._files,
                input_file,
                leg.offset,
                self._monitor,
                require_gpu=self._require_gpu,
            )
        except MlipJobError:
            with suppress(OSError):  # how far it came is for people to see, no more
                write_tables(self._files, leg, self._files.curves)
            raise
        write_tables(self._files, leg, self._files.curves)
        return exit_code

    def _prepare_next(self) -> None:
        """Make what a leg left the beginning of the next one."""
        files = self._files
        with self._changing:
            self._leg = None
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
        """Return what makes a fit that succeeded useless; pacemaker passes over it in silence."""
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
