"""Cache of the dataset last built for a query: ``queries/<key>.json``.

A hint that saves an export, nothing more: any of these objects may be removed or rewritten. A
dataset is what its record says, and is found only if that has the hash that was noted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mlip_job.dataset.record import DatasetRecord, SelectedRows
from mlip_job.errors import IntegrityError, ObjectNotFoundError
from mlip_job.paths import DatasetFiles
from mlip_job.registry.objects import fetch_bytes
from mlip_job.store.base import Sha256, StoredName

if TYPE_CHECKING:
    from mlip_job.paths import FamilyKeys
    from mlip_job.store.base import ObjectStore


class KnownQuery(BaseModel):
    """Content of ``queries/<key>.json``.

    Attributes
    ----------
    rows
        The rows that the query gave.
    dataset
        Id of the dataset that was made of them.
    record_sha256
        Of its record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    rows: SelectedRows
    dataset: StoredName
    record_sha256: Sha256


class Queries:
    """The queries of one family.

    Parameters
    ----------
    store, keys
        Where they are.
    """

    def __init__(self, store: ObjectStore, keys: FamilyKeys) -> None:
        self._store = store
        self._keys = keys

    def find(self, key: str, rows: SelectedRows) -> tuple[DatasetRecord, str] | None:
        """Return the dataset that the query gave from these very rows, and its record's sha256."""
        known = self.read(key)
        if known is None or known.rows.sha256 != rows.sha256:
            return None
        key = self._keys.dataset(known.dataset, DatasetFiles.RECORD)
        try:
            data = fetch_bytes(self._store, key, known.record_sha256)
            return DatasetRecord.from_json(data, key=key), known.record_sha256
        except IntegrityError:
            return None

    def read(self, key: str) -> KnownQuery | None:
        """Return the record of a query."""
        try:
            return KnownQuery.model_validate_json(self._store.get(self._keys.query(key)))
        except (ObjectNotFoundError, ValidationError):
            return None

    def remember(self, key: str, known: KnownQuery) -> None:
        """Record the result of a query, replacing the previous record."""
        data = (known.model_dump_json(indent=2) + "\n").encode()
        self._store.put(self._keys.query(key), data)
