"""Whether a store honours conditions: without them, two jobs could publish one generation."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from mlip_job.errors import ObjectChangedError, ObjectExistsError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.store.base import ObjectStore

_FOLDER = ".mlip-job-probe"
_HINT = "use a store that honours conditional writes (AWS S3, a recent MinIO, Ceph, a directory)"


def check_conditions(store: ObjectStore) -> None:
    """Write a probe object, overwrite it in allowed and forbidden ways, and remove it.

    Raises
    ------
    StoreError
        If the store can't be written to, ignores a condition, or refuses one that is met.
    """
    folder = f"{_FOLDER}/{secrets.token_hex(8)}"
    key, absent = f"{folder}/object", f"{folder}/absent"
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
        _, version = store.get_versioned(key)
        _require_acceptance(store, version, lambda: store.put_if_match(key, b"fourth", version))
        _require_refusal(
            store,
            "If-Match on an object that does not exist",
            ObjectChangedError,
            lambda: store.put_if_match(absent, b"fifth", version),
        )
    finally:
        store.delete(key)
        store.delete(absent)


def _require_acceptance(store: ObjectStore, version: str, write: Callable[[], None]) -> None:
    try:
        write()
    except ObjectChangedError:
        weak = version.startswith("W/")
        raise StoreError(
            f"{store.url} refuses If-Match (compare and swap) with the current version of an "
            "object: heartbeats and the latest generation could not be written",
            hint="its ETags are weak: switch off compression in the proxy before the store"
            if weak
            else _HINT,
        ) from None


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
        hint=_HINT,
    )
