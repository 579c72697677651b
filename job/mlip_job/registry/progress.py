"""Progress of a generation in training, read from the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import StoreError
from mlip_job.registry.claim import is_live, read_claim

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from mlip_job.registry.checkpoints import Checkpoint
    from mlip_job.registry.registry import Registry
    from mlip_job.runtime.environment import ProcessIdentity, SchedulerJob


@dataclass(frozen=True)
class TrainingProgress:
    """State in the store of a generation that is not published.

    Attributes
    ----------
    attempt
        The latest one.
    live
        Whether it may still be at work.
    certain
        Whether that is known. Without write access, a reader can't determine the age of a
        heartbeat.
    scheduler
        The job that it belongs to.
    process
        Which process it is.
    checkpoint
        The furthest one, from which the next attempt would resume.
    seconds_per_iteration
        Mean between the two newest checkpoints of one ladder step, where there are two.
    """

    attempt: str
    live: bool
    certain: bool
    scheduler: SchedulerJob | None
    process: ProcessIdentity
    checkpoint: Checkpoint | None
    seconds_per_iteration: float | None

    @property
    def saved(self) -> datetime | None:
        """When the furthest checkpoint was saved."""
        return self.checkpoint.saved if self.checkpoint is not None else None

    def seconds_left(self, max_iter: int) -> float | None:
        """Return the longest that the present ladder step may still take, by its checkpoints."""
        if self.checkpoint is None or self.seconds_per_iteration is None:
            return None
        return max(0, max_iter - self.checkpoint.position.iteration) * self.seconds_per_iteration


def read_progress(registry: Registry, generation: int) -> TrainingProgress | None:
    """Return the progress of a generation; None if no attempt has claimed it."""
    key = registry.own.claim(generation)
    claim = read_claim(registry.store, key)
    if claim is None:
        return None
    certain = True
    try:
        live = is_live(registry.store, key, claim)
    except StoreError:
        live, certain = not claim.released, False
    checkpoints = registry.checkpoints(generation).found()
    return TrainingProgress(
        attempt=claim.attempt,
        live=live,
        certain=certain,
        scheduler=claim.scheduler,
        process=claim.process,
        checkpoint=checkpoints[0] if checkpoints else None,
        seconds_per_iteration=_pace(checkpoints),
    )


def _pace(checkpoints: Sequence[Checkpoint]) -> float | None:
    if not checkpoints:
        return None
    newest = checkpoints[0]
    for older in checkpoints[1:]:
        same = older.attempt == newest.attempt
        if same and older.position.ladder_step == newest.position.ladder_step:
            iterations = newest.iterations - older.iterations
            seconds = (newest.saved - older.saved).total_seconds()
            return seconds / iterations if iterations > 0 else None
    return None
