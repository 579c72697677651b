"""Read objects whose hash is known: the right content, or an error."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

from mlip_job.errors import IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.store.base import ObjectStore

_TRIES = 2  # what was damaged on its way comes whole the second time


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
