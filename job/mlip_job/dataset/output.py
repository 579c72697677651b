"""Files that are compressed and hashed while they are written."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

from isal import isal_zlib

from mlip_job.dataset.record import FileRecord

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

_PIECE = 1 << 20
_GZIP = 31
"""Argument of zlib's that asks for a gzip header; it has no name and no time of its file."""


class OutputFile:
    """A file to write, in a with block.

    Parameters
    ----------
    path
        Where it is.
    compressed
        Whether it is compressed, in the format of gzip: rather fast than thoroughly, as the random
        digits of coordinates don't become much smaller.
    """

    def __init__(self, path: Path, *, compressed: bool = False) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._file = path.open("wb")
        self._compressor = isal_zlib.compressobj(level=1, wbits=_GZIP) if compressed else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None and self._compressor is not None:
                self._put(self._compressor.flush())
            self._compressor = None  # its buffers are large

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        if self._compressor is None:
            self._put(data)
            return
        view = memoryview(data)
        for first in range(0, len(view), _PIECE):
            self._put(self._compressor.compress(view[first : first + _PIECE]))

    def writelines(self, texts: Iterable[bytes]) -> None:
        """Append texts as they come; as with any file, line breaks are their own affair."""
        for text in texts:
            self.write(text)

    def record(self) -> FileRecord:
        """Return hash and size, once it is closed."""
        return FileRecord(sha256=self._digest.hexdigest(), size=self._size)

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._size += memoryview(data).nbytes
        self._file.write(data)
