"""Read objects whose hash is known, and replace objects by compare-and-swap."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from mlip_job.errors import (
    IntegrityError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.store.base import ObjectStore

_TRIES = 2  # a transfer that was damaged is repeated once


def fetch_bytes(store: ObjectStore, key: str, sha256: str) -> bytes:
    """Return an object's bytes.

    Raises
    ------
    IntegrityError
        If it is missing or has another hash.
    """
    data = b""

    def read() -> str:
        nonlocal data
        data = store.get(key)
        return hashlib.sha256(data).hexdigest()

    _require_hash(store, key, sha256, read)
    return data


def fetch_file(store: ObjectStore, key: str, sha256: str, path: Path) -> None:
    """Download an object; what was at `path` before is replaced only by the right content.

    Raises
    ------
    IntegrityError
        If it is missing or has another hash.
    """
    temporary = path.with_name(f".fetch-{secrets.token_hex(8)}")
    try:
        _require_hash(store, key, sha256, lambda: store.download(key, temporary))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _require_hash(store: ObjectStore, key: str, expected: str, read: Callable[[], str]) -> None:
    found = ""
    for _ in range(_TRIES):
        try:
            found = read()
        except ObjectNotFoundError:
            raise IntegrityError(f"{key} is missing from {store.url}") from None
        if found == expected:
            return
    raise damaged(key, expected, found)


def damaged(key: str, expected: str, found: str) -> IntegrityError:
    """Return the error for an object of another hash than the one expected."""
    return IntegrityError(
        f"{key} has the sha256 {found[:16]}… instead of {expected[:16]}…",
        hint="it was changed or damaged after it was written; restore it from a backup",
    )


def swapped(store: ObjectStore, key: str, data: bytes, version: str | None) -> bool:
    """Write an object unless a concurrent writer was faster; return whether it was written.

    Parameters
    ----------
    store, key, data
        Where, and what.
    version
        As it was read; nothing where there was no object.
    """
    try:
        if version:
            store.put_if_match(key, data, version)
        else:
            store.put_if_absent(key, data)
    except (ObjectExistsError, ObjectChangedError):
        return False
    return True
