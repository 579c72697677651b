"""Local files: private to this user, hashed, with readable error messages."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, DiskError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.errors import MlipJobError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPACE_HINT = "free some space there, then run the same command again"
_NO_SPACE_BYTES = 64 << 10  # a program that fails to write leaves a few blocks over


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it that are absent, for this user only.

    Existing directories are not changed.
    """
    absent = [directory for directory in path.parents if not directory.exists()]
    for directory in (*reversed(absent), path):
        directory.mkdir(mode=0o700, exist_ok=True)


def private(path: str, flags: int) -> int:
    """Open a file so that only this user can read it: the `opener` of Python's `open`."""
    return os.open(path, flags, 0o600)


def cant_write(path: Path, error: OSError, *, hint: str) -> MlipJobError:
    """Return the error for a user-chosen path that can't be written.

    Parameters
    ----------
    path
        The place.
    error
        The error of the file system.
    hint
        What to do if another place would be better; a full disk has its own hint.
    """
    text = f"can't write to {path}: {error.strerror or error}"
    if says_full(error):
        return DiskError(text, hint=_SPACE_HINT)
    return ConfigError(text, hint=hint)


@contextmanager
def reported(directory: Path) -> Iterator[None]:
    """Raise a `DiskError` in this context if a disk is full, read-only or failing.

    Parameters
    ----------
    directory
        What to name where the file system does not.
    """
    try:
        yield
    except OSError as error:
        place = error.filename or directory
        raise DiskError(
            f"can't write in {place}: {error.strerror or error}",
            hint=_SPACE_HINT if says_full(error) else "check that disk, or set work_dir to another",
        ) from None


def says_full(error: OSError) -> bool:
    """Return whether an error means that the disk is full."""
    return error.errno in _FULL


def is_full(directory: Path, text: str) -> bool:
    """Return whether a program with output `text` failed because `directory` is full."""
    said = any(os.strerror(number) in text for number in _FULL)
    return said or shutil.disk_usage(directory).free < _NO_SPACE_BYTES


def full(directory: Path) -> DiskError:
    """Return the error for such a program."""
    return DiskError(f"the disk of {directory} is full", hint=_SPACE_HINT)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
