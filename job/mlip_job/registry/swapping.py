"""Compare and swap: replace an object only as it was when it was read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.errors import ObjectChangedError, ObjectExistsError

if TYPE_CHECKING:
    from mlip_job.store.base import ObjectStore


def swapped(store: ObjectStore, key: str, data: bytes, version: str | None) -> bool:
    """Write an object unless somebody else was faster; tell whether it was written.

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
