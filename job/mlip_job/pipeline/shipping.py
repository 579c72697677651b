"""Bring what a run has reached into the store, while it runs and when it is stopped."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mlip_job.registry import AttemptPart, Checkpoint, TrainingState
from mlip_job.training.checkpoint import POTENTIAL, FitPosition
from mlip_job.training.pacemaker.snapshot import count_iterations
from mlip_job.training.pacemaker.tables import read_table
from mlip_job.training.process import copy_without_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlip_job.naming import WorkFiles
    from mlip_job.registry import Registry, Timings
    from mlip_job.training.trainer import Trainer

TRAIN_LOG = "train.log"


class Shipper:
    """Ships the checkpoints, the log and the tables of one attempt.

    Parameters
    ----------
    registry, generation, attempt
        Where they go.
    files
        The attempt's work directory.
    training
        What the attempt does; its own part is the last of ``attempts``.
    timings
        Tells where its time went until now.

    Attributes
    ----------
    saved
        The newest position that is in the store.
    """

    def __init__(
        self,
        registry: Registry,
        generation: int,
        attempt: str,
        files: WorkFiles,
        training: TrainingState,
        timings: Callable[[], Timings],
    ) -> None:
        self.saved: FitPosition | None = None
        self._registry = registry
        self._generation = generation
        self._attempt = attempt
        self._files = files
        self._training = training
        self._timings = timings
        self._number = 0
        self._one_at_a_time = Lock()

    def ship_linear_start(self) -> None:
        """Store the linear fit, which no later attempt has to repeat then."""
        start = FitPosition(ladder_step=0, iteration=0, step_done=False, last_step=True)
        with self._one_at_a_time:
            self._save(start, 0, {POTENTIAL: self._files.linear_start})

    def ship_progress(self, trainer: Trainer) -> None:
        """Store a checkpoint where the fit has gone on since the last one; log and tables too."""
        with self._one_at_a_time, tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
            snapshot = trainer.snapshot(Path(temporary))
            if snapshot is not None and (
                self.saved is None or snapshot.position.order() > self.saved.order()
            ):
                self._save(snapshot.position, snapshot.iterations, snapshot.files)
                self._ship_log(snapshot.files, Path(temporary))

    def ship_end(self, notes: Sequence[Path]) -> None:
        """Store what pacemaker ended with, and `notes`: nothing but publishing is left to do."""
        files = self._files
        rows = read_table(files.curves / "metrics.txt").rows
        position = FitPosition(
            ladder_step=max((row.ladder_step or 0 for row in rows), default=0),
            iteration=(rows[-1].iter_num or 0) if rows else 0,
            step_done=True,
            last_step=True,
            finished=True,
        )
        content = {
            POTENTIAL: files.output_potential,
            TRAIN_LOG: files.train_log,
            **{path.name: path for path in (*files.leg_inputs(), *notes)},
            **files.tables(),
        }
        with self._one_at_a_time:
            self._save(position, count_iterations(rows), content)

    def parts(self, iterations: int) -> tuple[AttemptPart, ...]:
        """Return what each attempt contributed to a learning curve of so many iterations.

        And where its time went: that of this one until now.
        """
        *before, mine = self._training.attempts
        own = iterations - sum(part.iterations for part in before)
        return (*before, mine.model_copy(update={"iterations": own, "timings": self._timings()}))

    def _save(self, position: FitPosition, iterations: int, files: dict[str, Path]) -> None:
        self._number += 1
        training = self._training.model_copy(update={"attempts": self.parts(iterations)})
        self._registry.checkpoints(self._generation).save(
            files,
            lambda hashes: Checkpoint(
                attempt=self._attempt,
                number=self._number,
                saved=datetime.now(UTC),
                position=position,
                iterations=iterations,
                training=training,
                files=hashes,
            ),
        )
        self.saved = position

    def _ship_log(self, tables: dict[str, Path], temporary: Path) -> None:
        log = temporary / TRAIN_LOG
        copy_without_host(self._files.train_log, log)
        shown = {name: path for name, path in tables.items() if name != POTENTIAL}
        for name, path in {TRAIN_LOG: log, **shown}.items():
            key = self._registry.own.attempt(self._generation, self._attempt, name)
            self._registry.store.upload(path, key)
