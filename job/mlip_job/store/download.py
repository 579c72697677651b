"""Write what a store sends into a local file."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from mlip_job.disk import cant_write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def save(blocks: Iterator[bytes], path: Path) -> str:
    """Write blocks into a file, whole or not at all, and return their sha256.

    Raises
    ------
    DiskError
        If the disk is full.
    ConfigError
        If the file can't be written otherwise.
    """
    digest = hashlib.sha256()
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as target:
            for block in blocks:
                digest.update(block)
                target.write(block)
        temporary.replace(path)
    except OSError as error:
        raise cant_write(path.parent, error, hint="choose another directory") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return digest.hexdigest()
