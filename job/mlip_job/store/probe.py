"""Whether a store honours conditions: without them, two jobs could publish one generation."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from mlip_job.errors import ObjectChangedError, ObjectExistsError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.store.base import ObjectStore

_FOLDER = ".mlip-job-probe"


def check_conditions(store: ObjectStore) -> None:
    """Write, try to overwrite in both forbidden ways, and remove a probe object.

    Raises
    ------
    StoreError
        If the store can't be written to, or ignores a condition.
    """
    key = f"{_FOLDER}/{secrets.token_hex(8)}"
    store.put_if_absent(key, b"first")
    try:
        _require_refusal(
            store,
            "If-None-Match (create only)",
            ObjectExistsError,
            lambda: store.put_if_absent(key, b"second"),
        )
        _require_refusal(
            store,
            "If-Match (compare and swap)",
            ObjectChangedError,
            lambda: store.put_if_match(key, b"third", '"0123456789abcdef0123456789abcdef"'),
        )
    finally:
        store.delete(key)


def _require_refusal(
    store: ObjectStore, condition: str, refusal: type[StoreError], write: Callable[[], None]
) -> None:
    try:
        write()
    except refusal:
        return
    raise StoreError(
        f"{store.url} ignores the condition {condition} on writes: two jobs could overwrite each "
        "other's generation",
        hint="use a store that honours conditional writes (AWS S3, MinIO, Ceph, a directory)",
    )
