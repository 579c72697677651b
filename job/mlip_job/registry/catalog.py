"""``catalog.json``: what a list of all generations shows, in one object.

It is derived from the manifests, so that a list needs no request per generation. An entry counts
only as long as the listing of the store shows the very manifest that it was made of; others are
read from their manifests. So a catalog that is old, damaged or absent costs time and nothing else.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mlip_job.errors import ObjectNotFoundError
from mlip_job.registry.manifest import DatasetReference, Headline, Parent
from mlip_job.registry.swapping import swapped
from mlip_job.store.keys import StoredName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.registry.manifest import Manifest
    from mlip_job.store.base import ObjectInfo, ObjectStore

_TRIES = 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerationSummary(_Part):
    """What a list says of a generation; the fields are those of its `Manifest`.

    ``yace_sha256`` is the hash of the potential that LAMMPS reads, where there is one.
    """

    family: str
    generation: int
    attempt: StoredName
    started: datetime
    ended: datetime
    elements: tuple[str, ...]
    parent: Parent | None
    dataset: DatasetReference
    headline: Headline
    yace_sha256: str | None

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return the summary of a manifest."""
        yace = manifest.artefacts.get("potential.yace")
        shared = cls.model_fields.keys() & type(manifest).model_fields.keys()
        return cls(
            **{name: getattr(manifest, name) for name in shared},
            yace_sha256=yace.sha256 if yace is not None else None,
        )


class _Stamp(_Part):
    """What a listing shows of a manifest; where it shows no version, the time has to do."""

    size: int
    version: str
    modified: float | None

    @classmethod
    def of(cls, info: ObjectInfo) -> Self:
        return cls(
            size=info.size,
            version=info.version,
            modified=None if info.version else info.modified,
        )


class _Entry(_Part):
    manifest: _Stamp
    summary: GenerationSummary


class _Content(_Part):
    schema_version: Literal[1] = 1
    generations: dict[int, _Entry] = {}


class Catalog:
    """The catalog of one family.

    Parameters
    ----------
    store, key
        Where it is.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key

    def summaries(self, manifests: Mapping[int, ObjectInfo]) -> dict[int, GenerationSummary]:
        """Return what the catalog knows of the manifests in a listing."""
        entries = self._read()[0].generations
        return {
            number: entries[number].summary
            for number, info in manifests.items()
            if number in entries and entries[number].manifest == _Stamp.of(info)
        }

    def add(self, manifests: Mapping[int, tuple[Manifest, ObjectInfo]]) -> bool:
        """Enter generations; return whether anything was to be entered.

        Where others write it all the time, it is left to them: the next repair makes it good.
        """
        entries = {
            number: _Entry(manifest=_Stamp.of(info), summary=GenerationSummary.of(manifest))
            for number, (manifest, info) in manifests.items()
        }
        for _ in range(_TRIES):
            content, version = self._read()
            merged = content.generations | entries
            if merged == content.generations:
                return False
            data = _Content(generations=dict(sorted(merged.items()))).model_dump_json().encode()
            if swapped(self._store, self._key, data, version):
                break
        return True

    def _read(self) -> tuple[_Content, str]:
        """Return the catalog and its version; an empty one where it can't be read."""
        try:
            data, version = self._store.get_versioned(self._key)
        except ObjectNotFoundError:
            return _Content(), ""
        try:
            return _Content.model_validate_json(data), version
        except ValidationError:
            return _Content(), version
