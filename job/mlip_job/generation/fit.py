"""The fit by the trainer; checkpoints are stored while it runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mlip_job.errors import ConflictError, InterruptedRunError, MlipJobError
from mlip_job.generation.context import every, within
from mlip_job.registry import AttemptPart, Checkpoint
from mlip_job.training.process import copy_without_host
from mlip_job.training.trainer import Monitor

if TYPE_CHECKING:
    from mlip_job.generation.context import Run
    from mlip_job.generation.prepare import Prepared
    from mlip_job.registry import TrainingState
    from mlip_job.training.summary import RunSummary
    from mlip_job.training.trainer import FitPosition, Snapshot, Trainer

SECONDS_WORTH_A_CHECKPOINT = 60.0
"""Shortest linear fit worth a checkpoint; a faster one is repeated by the next attempt."""
_LINEAR = "linear_start"


@dataclass(frozen=True)
class Fitted:
    """A finished fit; its potential is in the work directory.

    Attributes
    ----------
    summary
        Errors, curves and warnings, from the trainer's files.
    left_out
        Rows that the weighting excluded from the fit, by side.
    state
        State of the fit, as stored in checkpoints.
    saved
        Position of the newest checkpoint of this attempt; None if it wrote none.
    """

    summary: RunSummary
    left_out: dict[str, tuple[int, ...]]
    state: TrainingState
    saved: FitPosition | None


def fit(run: Run, prepared: Prepared) -> Fitted:
    """Run the rest of the fit; requires the claim.

    Raises
    ------
    TrainingError
        If the fit fails; the message names the stored checkpoint.
    InterruptedRunError
        If a stop signal was received; likewise.
    ConflictError
        If another attempt took over the claim.
    """
    trainer, state, is_linear = prepared.trainer, prepared.state, run.config.training.is_linear
    if trainer.linear_fit_due:
        with run.clock.stage(_LINEAR):
            made = trainer.fit_linearly(run.observer.message)
        state = state.model_copy(update={"linear_start": made})
    checkpoints = CheckpointWriter(run, state)
    with run.clock.stage("fit"):
        if not trainer.finished and is_linear:
            checkpoints.save_end(trainer)
        elif not trainer.finished:
            if run.clock.timings().stages_s.get(_LINEAR, 0.0) >= SECONDS_WORTH_A_CHECKPOINT:
                checkpoints.save_progress(trainer)
            _run(run, trainer, checkpoints)
        summary = trainer.summary(state.linear_start)
    return Fitted(summary, trainer.left_out(), state, checkpoints.saved)


def _run(run: Run, trainer: Trainer, checkpoints: CheckpointWriter) -> None:
    run.observer.message(f"training in {run.files.directory}")
    monitor = Monitor(
        observe=run.observer.progress,
        show_line=run.observer.trainer_line,
        interruption=run.interruption,
        stall_timeout=run.config.run.stall_timeout,
        phases=run.clock.phases,
    )

    def save() -> None:
        checkpoints.save_progress(trainer)

    with run.stop.deferred():
        try:
            with every(run.config.run.checkpoint_interval, save, "storing a checkpoint"):
                trainer.fit(monitor)
        except ConflictError:
            raise  # another attempt has resumed the fit already
        except MlipJobError as error:
            within(run.config.run.stop_timeout, save, "storing the last checkpoint")
            # Slurm signals the trainer too, which may end before we stop it.
            cause = run.stop.error() or error
            raise with_checkpoint(cause, checkpoints.saved, run) from None
        checkpoints.save_end(trainer)
    if (stopped := run.stop.error()) is not None:
        raise with_checkpoint(stopped, checkpoints.saved, run)


def contributions(run: Run, state: TrainingState, iterations: int) -> tuple[AttemptPart, ...]:
    """Split the total of iterations by attempts, and add the times of this one."""
    *before, mine = state.attempts
    own = iterations - sum(part.iterations for part in before)
    return (*before, mine.model_copy(update={"iterations": own, "timings": run.clock.timings()}))


def with_checkpoint(error: MlipJobError, saved: FitPosition | None, run: Run) -> MlipJobError:
    """Add the stored checkpoint of the fit to an error."""
    if saved is None:
        return error
    stored = f"the checkpoint of {saved} is in {run.registry.store.url}"
    if isinstance(error, InterruptedRunError):
        return InterruptedRunError(
            f"{error.message.partition(';')[0]}; {stored}",
            hint="run the same command again to resume from it",
        )
    error.message = f"{error.message}\n{stored}; the same command resumes from it"
    return error


class CheckpointWriter:
    """Stores checkpoints, the log and the tables of one attempt; ``saved`` is the newest position.

    `state` is that of the fit for checkpoints; this attempt is the last of its ``attempts``.
    """

    def __init__(self, run: Run, state: TrainingState) -> None:
        self.saved: FitPosition | None = None
        self._run = run
        self._state = state
        self._number = 0
        self._one_at_a_time = Lock()

    def save_progress(self, trainer: Trainer) -> None:
        """Store a checkpoint, the log and the tables if there is progress since the last one."""
        with self._one_at_a_time, tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
            snapshot = trainer.snapshot(Path(temporary))
            if snapshot is not None and (
                self.saved is None or snapshot.position.order() > self.saved.order()
            ):
                self._save(snapshot)
                self._upload_log(snapshot, Path(temporary))

    def save_end(self, trainer: Trainer) -> None:
        """Store the finished fit, so that a later attempt only has to publish it."""
        with self._one_at_a_time:
            self._save(trainer.finish())

    def _save(self, snapshot: Snapshot) -> None:
        self._number += 1
        attempts = contributions(self._run, self._state, snapshot.iterations)
        self._run.registry.checkpoints(self._run.generation).save(
            snapshot.files,
            lambda hashes: Checkpoint(
                attempt=self._run.attempt.attempt,
                number=self._number,
                saved=datetime.now(UTC),
                position=snapshot.position,
                iterations=snapshot.iterations,
                training=self._state.model_copy(update={"attempts": attempts}),
                files=hashes,
            ),
        )
        self.saved = snapshot.position

    def _upload_log(self, snapshot: Snapshot, temporary: Path) -> None:
        """Copy log and tables to the attempt's folder, for `mlip-job logs` and `status`."""
        files, registry = dict(snapshot.shown), self._run.registry
        if self._run.files.train_log.exists():
            log = temporary / self._run.files.train_log.name
            copy_without_host(self._run.files.train_log, log)
            files[log.name] = log
        for name, path in files.items():
            key = registry.own.attempt(self._run.generation, self._run.attempt.attempt, name)
            registry.store.upload(path, key)
