"""``latest.json``: which generation is in use. It moves by compare-and-swap."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError, model_validator

from mlip_job.errors import IntegrityError, ObjectNotFoundError, StoreError
from mlip_job.models import Record
from mlip_job.paths import generation_name
from mlip_job.registry.objects import swapped
from mlip_job.store.base import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.store.base import ObjectStore

_TRIES = 20


class LatestPointer(Record):
    """Content of ``latest.json``.

    ``forced`` says that a person chose a generation that the gate had rejected. ``passed_over`` is
    the highest generation at that time: accepted ones up to it don't move the pointer any more, so
    that a rollback lasts.
    """

    schema_version: Literal[1] = 1
    generation: int = Field(ge=1)
    name: str
    reason: str
    forced: bool
    moved: datetime
    passed_over: int = Field(ge=0)

    @model_validator(mode="after")
    def _names_the_generation(self) -> LatestPointer:
        if self.name != generation_name(self.generation):
            raise ValueError("the name is not that of the generation")
        return self

    def is_behind(self, generation: int) -> bool:
        """Return whether an accepted generation moves the pointer automatically."""
        return generation > max(self.generation, self.passed_over)


class Pointer:
    """The pointer of one family."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key

    def read(self) -> LatestPointer | None:
        """Return the pointer, or None if there is none; raise `IntegrityError` if unreadable."""
        return self._read()[0]

    def advance(self, generation: int, reason: str) -> bool:
        """Move it to an accepted generation if allowed; return whether it moved."""

        def decide(current: LatestPointer | None) -> LatestPointer | None:
            if current is not None and not current.is_behind(generation):
                return None
            return _pointing(generation, reason, forced=False, passed_over=0)

        return self._move(decide)

    def choose(
        self, generation: int, reason: str, *, forced: bool, highest: Callable[[], int]
    ) -> None:
        """Move it to a chosen generation; generations up to `highest` are skipped."""

        # Evaluated after the pointer was read: a generation published in between moves it, and then
        # this is retried.
        def decide(_: LatestPointer | None) -> LatestPointer:
            return _pointing(generation, reason, forced=forced, passed_over=highest())

        self._move(decide)

    def remove_unreadable(self) -> bool:
        """Delete a pointer that can't be read; return whether it was."""
        try:
            self._read()
        except IntegrityError:
            self._store.delete(self._key)
            return True
        return False

    def _move(self, decide: Callable[[LatestPointer | None], LatestPointer | None]) -> bool:
        for _ in range(_TRIES):
            current, version = self._read()
            wanted = decide(current)
            if wanted is None:
                return False
            if swapped(self._store, self._key, wanted.to_json(), version):
                return True
        raise StoreError(f"{self._key} changes faster than it can be updated")

    def _read(self) -> tuple[LatestPointer | None, str | None]:
        try:
            data, version = self._store.get_versioned(self._key)
            return LatestPointer.model_validate_json(data), version
        except ObjectNotFoundError:
            return None, None
        except ValidationError as error:
            what = f"{self._key} is no pointer to a generation"
            raise unreadable(what, error, hint="mlip-job repair writes it anew") from None


def _pointing(generation: int, reason: str, *, forced: bool, passed_over: int) -> LatestPointer:
    return LatestPointer(
        generation=generation,
        name=generation_name(generation),
        reason=reason,
        forced=forced,
        moved=datetime.now(UTC),
        passed_over=passed_over,
    )
