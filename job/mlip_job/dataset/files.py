"""Output files, and the index of a dataset: the side of each row."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from isal import isal_zlib

from mlip_job.dataset.record import FileRecord
from mlip_job.dataset.rows import FINGERPRINT, SIDES, Side
from mlip_job.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.dataset.rows import Entries, Structures
    from mlip_job.dataset.split import Split

_INDEX_COLUMNS = ["row_id", "fingerprint", "group", "side"]
_LINES_AT_ONCE = 500


_PIECE = 1 << 20
_GZIP = 31
"""zlib's ``wbits`` for a gzip header; it holds no name and no time."""


def write_index(file: OutputFile, entries: Entries, split: Split) -> str:
    """Write one line per entry; return the sha256 of the text, which no compressor changes."""
    digest = hashlib.sha256()
    groups = (*entries.groups, "")  # the last place is that of -1, no group
    header = [_INDEX_COLUMNS]
    for first in range(0, max(1, len(entries)), _LINES_AT_ONCE):
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerows(header)
        header = []
        part = slice(first, first + _LINES_AT_ONCE)
        columns = (
            entries.row_ids[part].tolist(),
            [fingerprint.hex() for fingerprint in entries.fingerprints[part].tolist()],
            [groups[code] for code in entries.group_codes[part].tolist()],
            [SIDES[tested] for tested in split.tested[part].tolist()],
        )
        writer.writerows(zip(*columns, strict=True))
        text = lines.getvalue().encode()
        digest.update(text)
        file.write(text)
    return digest.hexdigest()


def read_index(path: Path, dataset: str = "a dataset") -> Iterator[tuple[int, str, str, Side]]:
    """Yield row id, fingerprint, group (``""`` for none) and side of every row.

    Raise `IntegrityError` if the index can't be read; the message names `dataset`.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if next(reader, None) != _INDEX_COLUMNS:
                raise ValueError("unknown columns")  # noqa: TRY301 - one way out
            for row_id, fingerprint, group, side in reader:
                if side not in SIDES:
                    raise ValueError(f"{side!r} is no side")  # noqa: TRY301
                if len(bytes.fromhex(fingerprint)) != FINGERPRINT.itemsize:
                    raise ValueError(f"{fingerprint!r} is no fingerprint")  # noqa: TRY301
                yield int(row_id), fingerprint, group, side
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise IntegrityError(f"{path}: the index of {dataset} can't be read: {error}") from None


def common_test_rows(index: Path, other: Path) -> frozenset[int]:
    """Return the test rows of an index whose structures are test structures in `other` too."""
    tested = {fingerprint for _, fingerprint, _, side in read_index(other) if side == "test"}
    return frozenset(
        row_id
        for row_id, fingerprint, _, side in read_index(index)
        if side == "test" and fingerprint in tested
    )


class OutputFile:
    """A file that is hashed, and optionally gzip-compressed, while it is written.

    Compression is fast rather than thorough: random digits of coordinates gain little.
    """

    def __init__(self, path: Path, *, compressed: bool = False) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._file = path.open("wb")
        self._compressor = isal_zlib.compressobj(level=1, wbits=_GZIP) if compressed else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, _error: object, _traceback: object) -> None:
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

    def record(self) -> FileRecord:
        """Return hash and size; call it after closing."""
        return FileRecord(sha256=self._digest.hexdigest(), size=self._size)

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._size += len(data)
        self._file.write(data)


class ContentHash:
    """Hash a stream of structures, independent of how it is divided into blocks.

    Each column is hashed separately: numbers as in memory, texts prefixed by their lengths. The
    result is the hash of these hashes.
    """

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def update(self, structures: Structures) -> None:
        """Add structures with the energies to train on."""
        # NaN means no stress: use a single bit pattern for it.
        stresses = np.where(np.isnan(structures.stresses), np.nan, structures.stresses)
        for name, values, dtype in (
            ("row_id", structures.ids, "<i8"),
            ("atoms", structures.counts, "<i8"),
            ("numbers", structures.numbers, "<i4"),
            ("positions", structures.positions, "<f8"),
            ("forces", structures.forces, "<f8"),
            ("cell", structures.cells, "<f8"),
            ("pbc", structures.pbc, "u1"),
            ("stress", stresses, "<f8"),
            ("energy", structures.energies, "<f8"),
        ):
            self._column(name).update(np.ascontiguousarray(values, dtype))
        texts = b"".join(_counted(pairs.get("config_type")) for pairs in structures.pairs)
        self._column("config_type").update(texts)

    def hexdigest(self) -> str:
        """Return the hash of the structures added."""
        digest = hashlib.sha256()
        for name, column in sorted(self._columns.items()):
            digest.update(f"{name} {column.hexdigest()}\n".encode())
        return digest.hexdigest()

    def _column(self, name: str) -> Any:
        return self._columns.setdefault(name, hashlib.sha256())


def _counted(text: str | None) -> bytes:
    if text is None:
        return b"-"
    encoded = text.encode()
    return b"%d:%b" % (len(encoded), encoded)
