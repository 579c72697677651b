"""Checkpoints of a generation in training: written during a run, resumed from by the next.

::

    attempts/<attempt>/checkpoints/000007/   potential.yaml  metrics/*.txt  state.json

A checkpoint is never overwritten; its ``state.json`` comes last and names the hashes of the rest,
so that an incomplete one is recognised, and the previous one is still there.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from mlip_job.errors import IntegrityError, ObjectNotFoundError
from mlip_job.models import Frozen
from mlip_job.paths import sha256_of
from mlip_job.registry.manifest import AttemptPart, DatasetReference, Parent
from mlip_job.registry.objects import fetch_file
from mlip_job.store.base import Sha256, StoredName, StoredPath, unreadable
from mlip_job.training.size import BasisSize
from mlip_job.training.summary import LinearStart
from mlip_job.training.trainer import FitPosition

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mlip_job.paths import FamilyKeys
    from mlip_job.store.base import ObjectStore

_STATE = "state.json"
_KEPT = 2


class TrainingState(Frozen):
    """The inputs and settings of an attempt; the next attempt resumes with the same.

    Attributes
    ----------
    attempts
        All attempts so far, the current one last.
    started
        When the first of them began.
    config
        The configuration in full.
    dataset
        The dataset that is trained on: a generation's first attempt decides it.
    parent
        The generation that the fit started from.
    elements
        What the potential describes.
    basis
        How large it is; older versions took the number in ``config``.
    linear_start
        The linear fit that the fit started from, if it did.
    job
        The scheduler's job that began it (`mlip_job.runtime.environment.job_of_this_start`); later
        attempts keep it.
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


class Checkpoint(Frozen):
    """Content of a checkpoint's ``state.json``.

    ``files`` are the sha256 of the other files by name; ``iterations`` is the length of the
    learning curve up to here.
    """

    schema_version: Literal[1] = 1
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
    """The checkpoints of one generation.

    Parameters
    ----------
    store, keys, generation
        Where they are.
    """

    def __init__(self, store: ObjectStore, keys: FamilyKeys, generation: int) -> None:
        self._store = store
        self._keys = keys
        self._generation = generation

    def save(
        self, files: Mapping[str, Path], describe: Callable[[dict[str, str]], Checkpoint]
    ) -> None:
        """Store a checkpoint, its state last; remove obsolete ones.

        Parameters
        ----------
        files
            Local file of each name.
        describe
            Makes the state from the hashes of the files.
        """
        hashes = {name: sha256_of(path) for name, path in files.items()}
        checkpoint = describe(hashes)
        for name, path in files.items():
            self._store.upload(path, self._key(checkpoint, name))
        data = (checkpoint.model_dump_json(indent=2) + "\n").encode()
        self._store.put(self._key(checkpoint, _STATE), data)
        self._remove_before(checkpoint)

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
        """Download a checkpoint's files and check their hashes.

        Raises
        ------
        IntegrityError
            If one is missing or differs.
        """
        for name, expected in checkpoint.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch_file(self._store, self._key(checkpoint, name), expected, path)
            except IntegrityError as error:
                raise IntegrityError(f"{checkpoint} is damaged: {error.message}") from None

    def discard(self, *, but_of: str | None = None) -> None:
        """Remove checkpoints, the states first: without one, the rest is no checkpoint.

        Parameters
        ----------
        but_of
            A scheduler's job, whose checkpoints are kept.
        """
        kept = tuple(
            key.removesuffix(_STATE)
            for key, state in self._states().items()
            if isinstance(state, Checkpoint) and state.training.was_begun_by(but_of)
        )
        keys = [info.key for info in self._objects() if not info.key.startswith(kept)]
        for key in sorted(keys, key=lambda key: not key.endswith(f"/{_STATE}")):
            self._store.delete(key)

    def _remove_before(self, checkpoint: Checkpoint) -> None:
        """Keep this one and the previous complete one."""
        prefix = self._keys.attempt(self._generation, checkpoint.attempt, "checkpoints/")
        keys = [info.key for info in self._store.list(prefix)]
        complete = [key.removesuffix(_STATE) for key in keys if key.endswith(f"/{_STATE}")]
        superfluous = [key for key in keys if key < min(complete[-_KEPT:])]
        for key in sorted(superfluous, key=lambda key: not key.endswith(_STATE)):
            self._store.delete(key)

    def _objects(self) -> Any:
        prefix = self._keys.generation(self._generation, "attempts/")
        return (info for info in self._store.list(prefix) if "/checkpoints/" in info.key)

    def _state_keys(self) -> list[str]:
        return [info.key for info in self._objects() if info.key.endswith(f"/{_STATE}")]

    def _states(self) -> dict[str, Checkpoint | IntegrityError]:
        return {key: self._read(key) for key in self._state_keys()}

    def _read(self, key: str) -> Checkpoint | IntegrityError:
        try:
            return Checkpoint.model_validate_json(self._store.get(key))
        except ValidationError as error:
            return unreadable(f"{key} can't be read", error)
        except ObjectNotFoundError:
            return IntegrityError(f"{key} can't be read: it is gone")

    def _key(self, checkpoint: Checkpoint, name: str) -> str:
        return self._keys.checkpoint(self._generation, checkpoint.attempt, checkpoint.number, name)
