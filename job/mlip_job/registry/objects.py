"""Read objects whose hash is known, replace objects by compare-and-swap, make calls in parallel."""

from __future__ import annotations

import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mlip_job.errors import (
    IntegrityError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from mlip_job.store.base import CALLS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from mlip_job.store.base import ObjectStore

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRIES = 2  # a transfer that was damaged is repeated once


def fetch_bytes(store: ObjectStore, key: str, sha256: str) -> bytes:
    """Return an object's bytes; raise `IntegrityError` if it is missing or has another hash."""

    def read() -> tuple[bytes, str]:
        data = store.get(key)
        return data, hashlib.sha256(data).hexdigest()

    return _checked(store, key, sha256, read)


def fetch_file(store: ObjectStore, key: str, sha256: str, path: Path) -> None:
    """Download an object; raise `IntegrityError` if it is missing or has another hash.

    An existing file is replaced only by the right content.
    """
    temporary = path.with_name(f".fetch-{secrets.token_hex(8)}")
    try:
        _checked(store, key, sha256, lambda: (None, store.download(key, temporary)))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _checked(
    store: ObjectStore, key: str, expected: str, read: Callable[[], tuple[Result, str]]
) -> Result:
    sha256 = ""
    for _ in range(_TRIES):
        try:
            result, sha256 = read()
        except ObjectNotFoundError:
            raise IntegrityError(f"{key} is missing from {store.url}") from None
        if sha256 == expected:
            return result
    raise damaged(key, expected, sha256)


def damaged(key: str, expected: str, found: str) -> IntegrityError:
    """Return the error for an object of another hash than the one expected."""
    return IntegrityError(
        f"{key} has the sha256 {found[:16]}… instead of {expected[:16]}…",
        hint="it was changed or damaged after it was written; restore it from a backup",
    )


def swapped(store: ObjectStore, key: str, data: bytes, version: str | None) -> bool:
    """Write an object unless a concurrent writer was faster; return whether it was written.

    The version is the one that was read; None or empty where there was no object.
    """
    try:
        if version:
            store.put_if_match(key, data, version)
        else:
            store.put_if_absent(key, data)
    except (ObjectExistsError, ObjectChangedError):
        return False
    return True


def at_once(call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the results of a call of the store for each item, in order; several run at a time."""
    with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="store") as pool:
        return [*pool.map(call, items)]
