"""Checkpoints of a generation in training: written during a run, resumed from by the next.

::

    attempts/<attempt>/checkpoints/000007/   potential.yaml  metrics/*.txt  state.json

A checkpoint is never overwritten; its ``state.json`` comes last and names the hashes of the rest,
so that an incomplete one is recognised, and the previous one is still there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mlip_job.errors import IntegrityError, ObjectNotFoundError, StoreError
from mlip_job.models import Frozen, VersionedRecord
from mlip_job.paths import sha256_of
from mlip_job.registry.claim import is_live, read_claim
from mlip_job.registry.manifest import AttemptPart, DatasetReference, Parent
from mlip_job.registry.objects import at_once, fetch_file
from mlip_job.store.base import Sha256, StoredName, StoredPath, unreadable
from mlip_job.training.size import BasisSize
from mlip_job.training.summary import LinearStart
from mlip_job.training.trainer import FitPosition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mlip_job.paths import FamilyKeys
    from mlip_job.registry.registry import Registry
    from mlip_job.runtime.environment import ProcessIdentity, SchedulerJob
    from mlip_job.store.base import ObjectStore

STATE = "state.json"
_FOLDER = "/checkpoints/"
_KEPT = 2


class TrainingState(Frozen):
    """The inputs and settings of an attempt; the next attempt resumes with the same.

    ``attempts`` are all so far, the current one last; ``started`` is the start of the first. The
    ``dataset`` is decided by a generation's first attempt. ``basis`` is missing in checkpoints of
    older versions, which took the number in ``config``. ``job`` is the scheduler's job that began
    it (`mlip_job.runtime.environment.job_of_this_start`); later attempts keep it.
    """

    attempts: tuple[AttemptPart, ...]
    started: datetime
    config: dict[str, Any]
    dataset: DatasetReference
    parent: Parent | None
    elements: tuple[str, ...]
    basis: BasisSize | None = None
    linear_start: LinearStart | None = None
    job: str | None = None

    def was_begun_by(self, job: str | None) -> bool:
        """Return whether a scheduler's job started it; None is no job."""
        return job is not None and self.job == job


class Checkpoint(VersionedRecord):
    """Content of a checkpoint's ``state.json``.

    ``files`` are the sha256 of the other files by name; ``iterations`` is the length of the
    learning curve up to here.
    """

    attempt: StoredName
    number: int
    saved: datetime
    position: FitPosition
    iterations: int
    training: TrainingState
    files: dict[StoredPath, Sha256]

    def __str__(self) -> str:
        """Return a name for messages."""
        return f"checkpoint {self.number} of attempt {self.attempt}"


class Checkpoints:
    """The checkpoints of one generation, or of a member's part of it."""

    def __init__(self, store: ObjectStore, keys: FamilyKeys, generation: int) -> None:
        self._store = store
        self._keys = keys
        self._generation = generation

    def save(
        self, files: Mapping[str, Path], describe: Callable[[dict[str, str]], Checkpoint]
    ) -> None:
        """Store local files, then the state; remove obsolete checkpoints.

        `describe` makes the state from the hashes of the files.
        """
        checkpoint = describe({name: sha256_of(path) for name, path in files.items()})
        for name, path in files.items():
            self._store.upload(path, self._key(checkpoint, name))
        self._store.put(self._key(checkpoint, STATE), checkpoint.to_json())
        prefix = self._keys.attempt(self._generation, checkpoint.attempt, "checkpoints/")
        keys = [info.key for info in self._store.list(prefix)]
        complete = [key.removesuffix(STATE) for key in keys if key.endswith(f"/{STATE}")]
        self._delete(key for key in keys if key < min(complete[-_KEPT:]))

    def found(self) -> list[Checkpoint]:
        """Return all readable checkpoints, the furthest first."""
        return sorted(
            (state for state in self._states().values() if isinstance(state, Checkpoint)),
            key=lambda state: (*state.position.order(), state.saved, state.number),
            reverse=True,
        )

    def unreadable(self) -> list[str]:
        """Return which states are damaged or incompatible, and why."""
        return [state.message for state in self._states().values() if isinstance(state, Exception)]

    def fetch(self, checkpoint: Checkpoint, directory: Path) -> None:
        """Download a checkpoint's files; raise `IntegrityError` if one is missing or differs."""
        for name, expected in checkpoint.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch_file(self._store, self._key(checkpoint, name), expected, path)
            except IntegrityError as error:
                raise IntegrityError(f"{checkpoint} is damaged: {error.message}") from None

    def discard(self, *, but_of: str | None = None) -> None:
        """Remove all checkpoints but those of a scheduler's job."""
        kept = tuple(
            key.removesuffix(STATE)
            for key, state in self._states().items()
            if isinstance(state, Checkpoint) and state.training.was_begun_by(but_of)
        )
        self._delete(key for key in self._objects() if not key.startswith(kept))

    def _delete(self, keys: Iterable[str]) -> None:
        """Remove objects, the states first: without one, the rest is no checkpoint."""
        for key in sorted(keys, key=lambda key: not key.endswith(f"/{STATE}")):
            self._store.delete(key)

    def _objects(self) -> list[str]:
        prefix = self._keys.generation(self._generation, "attempts/")
        return [info.key for info in self._store.list(prefix) if _FOLDER in info.key]

    def _states(self) -> dict[str, Checkpoint | IntegrityError]:
        keys = [key for key in self._objects() if key.endswith(f"/{STATE}")]
        read = at_once(lambda key: read_checkpoint(self._store, key), keys)
        return dict(zip(keys, read, strict=True))

    def _key(self, checkpoint: Checkpoint, name: str) -> str:
        return self._keys.checkpoint(self._generation, checkpoint.attempt, checkpoint.number, name)


def read_checkpoint(store: ObjectStore, key: str) -> Checkpoint | IntegrityError:
    """Return a checkpoint's state, or the error that says why it can't be read."""
    try:
        return Checkpoint.model_validate_json(store.get(key))
    except ValidationError as error:
        return unreadable(f"{key} can't be read", error)
    except ObjectNotFoundError:
        return IntegrityError(f"{key} can't be read: it is gone")


@dataclass(frozen=True)
class TrainingProgress:
    """State in the store of a generation that is not published.

    ``attempt`` is the latest one, ``live`` whether it may still be at work. That is not ``certain``
    without write access, when the age of a heartbeat is unknown. ``checkpoint`` is the one that the
    next attempt would resume from. ``seconds_per_iteration`` is the mean between the two newest
    checkpoints of one ladder step, where there are two.
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
        seconds_per_iteration=_seconds_per_iteration(checkpoints),
    )


def _seconds_per_iteration(checkpoints: Sequence[Checkpoint]) -> float | None:
    for older in checkpoints[1:]:
        newest = checkpoints[0]
        same = older.attempt == newest.attempt
        if same and older.position.ladder_step == newest.position.ladder_step:
            iterations = newest.iterations - older.iterations
            seconds = (newest.saved - older.saved).total_seconds()
            return seconds / iterations if iterations > 0 else None
    return None
