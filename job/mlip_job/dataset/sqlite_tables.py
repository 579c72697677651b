"""ASE's tables in an SQLite file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip_job.dataset.connection import sqlite_uri
from mlip_job.dataset.structures import VOIGT
from mlip_job.dataset.tables import (
    COLUMNS,
    IDS_AT_ONCE,
    NO_STRESS,
    RawPage,
    decoder,
    make_page,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mlip_job.dataset.structures import IndexArray

_TIMEOUT = 20.0
"""Seconds to wait for someone who writes; ASE's own."""

_VECTOR = 3 * 8
_TENSOR = 9 * 8
_NO_STRESS_BYTES = NO_STRESS.astype("<f8").tobytes()


class SqliteTables:
    """Reads page by page, so that nobody who writes has to wait for the end.

    Parameters
    ----------
    database
        ASE's object for the file.
    """

    def __init__(self, database: Any) -> None:
        uri = sqlite_uri(Path(database.filename))
        # Each statement names other ids: to keep them would take 50 kB for each.
        self._connection = sqlite3.connect(uri, uri=True, timeout=_TIMEOUT, cached_statements=0)
        self._decode = decoder(database.decode)

    def columns(self) -> set[str]:
        """See `Tables.columns`."""
        return {row[1] for row in self._connection.execute("PRAGMA table_info(systems)")}

    def ids(self, sql: str, values: Sequence[Any]) -> Iterator[list[tuple[int, float]]]:
        """See `Tables.ids`."""
        with closing(self._connection.execute(sql, values)) as cursor:
            while rows := cursor.fetchmany(IDS_AT_ONCE):
                yield rows

    def pages(
        self,
        select: Callable[[str], tuple[str, Sequence[Any]]],  # noqa: ARG002 - the ids suffice
        ids: IndexArray,
        size: int,
    ) -> Iterator[RawPage]:
        """See `Tables.pages`."""
        for first in range(0, len(ids), size):
            wanted = ", ".join(map(str, ids[first : first + size].tolist()))
            with closing(
                self._connection.execute(
                    f"SELECT {', '.join(COLUMNS)} FROM systems"  # noqa: S608 - whole numbers
                    f" WHERE id IN ({wanted}) ORDER BY id"
                )
            ) as cursor:
                rows = cursor.fetchall()
            yield make_page(rows, _Blobs(), self._decode)

    def close(self) -> None:
        """See `Tables.close`."""
        self._connection.close()


class _Blobs:
    """Arrays are their bytes, little-endian; their shape follows from their length."""

    def count_atoms(self, row: Sequence[Any]) -> int:
        """See `Layout.count_atoms`."""
        _, _, numbers, positions, cell, pbc, _, _, forces, stress, _ = row
        size = len(numbers)
        fits = (
            bytes is type(numbers) is type(positions) is type(forces) is type(cell)
            and len(positions) == _VECTOR // 4 * size == len(forces)
            and len(cell) == _TENSOR
            and (stress is None or len(stress) == 8 * VOIGT)
            and isinstance(pbc, int)
            and size % 4 == 0
        )
        return size // 4 if fits else 0

    def join(self, arrays: Iterable[bytes | None], dtype: str) -> np.ndarray[Any, Any]:
        """See `Layout.join`."""
        return np.frombuffer(
            b"".join([_NO_STRESS_BYTES if array is None else array for array in arrays]), dtype
        )
