"""Keys that every store takes, and none that a store could misunderstand."""

from __future__ import annotations

from mlip_job.errors import StoreError

_LONGEST = 900  # bytes; S3 takes 1024 with the prefix of the URL


def check_key(key: str) -> str:
    """Return `key`, a path with ``/`` between non-empty parts, none of them ``.`` or ``..``.

    Raises
    ------
    StoreError
        If it is not one.
    """
    parts = key.split("/")
    unsafe = any(part in ("", ".", "..") or part.startswith(".tmp-") for part in parts)
    if unsafe or not key.isprintable() or "\\" in key or len(key.encode()) > _LONGEST:
        raise StoreError(f"{key!r} is no key of an object")
    return key
