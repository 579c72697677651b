"""Read ASE's tables in SQLite and PostgreSQL directly, many times faster than ASE.

ASE makes several objects of each row and fetches whole results. Rows in an unusual format are read
through ASE.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from abc import ABC, abstractmethod
from contextlib import closing
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mlip_job.dataset.connection import sqlite_uri
from mlip_job.dataset.rows import VOIGT, StructureRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_VERSIONS = (8, 9)
"""Known versions of ASE's tables: 9 differs from 8 in the column ``data``, which is not read."""

_COLUMNS = (
    "id", "mtime", "numbers", "positions", "cell", "pbc",
    "energy", "free_energy", "forces", "stress", "key_value_pairs",
)  # fmt: skip

_ROWS_AT_ONCE = 2_000
_SQLITE_TIMEOUT = 20.0
"""Seconds to wait for a writer; ASE's own."""

_POSTGRESQL_TYPES = {23: "<i4", 701: "<f8"}
"""``integer`` and ``double precision`` in pg_type.dat."""


def open_tables(database: Any) -> Tables | str:
    """Return the tables of an ASE database, or the reason to read them through ASE."""
    kinds: dict[str, Callable[[Any], Tables]] = {
        "db": _SqliteTables,
        "postgresql": _PostgresqlTables,
    }
    with database.managed_connection():
        pass  # makes ASE look for the version
    if database.type not in kinds:
        return f"there is no faster way for {database.type}"
    if database.version not in _VERSIONS:
        return f"its tables have the version {database.version}"
    tables = kinds[database.type](database)
    missing = set(_COLUMNS) - tables.columns()
    if missing:
        tables.close()
        return f"its table of structures lacks {', '.join(sorted(missing))}"
    return tables


class Tables(ABC):
    """The tables of one database, over a separate connection."""

    selected: ClassVar[str]
    """SQL of `_COLUMNS`, with arrays as bytes."""

    def __init__(self, connection: Any, decode: Callable[[str], Any]) -> None:
        self._connection = connection

        @lru_cache(256)
        def decode_once(text: str) -> dict[str, Any]:  # rows often share their pairs
            pairs = decode(text)
            return {key: pairs[key] for key in sorted(pairs)}

        self._decode = decode_once

    @abstractmethod
    def columns(self) -> set[str]:
        """Return the names of the columns of ``systems``."""

    @abstractmethod
    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Sequence[Any]]:
        """Yield the rows that a statement of ASE's selects."""

    @abstractmethod
    def array(self, stored: Any, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
        """Return an array; raise a `ValueError` if type or shape are wrong."""

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, float, StructureRow | None]]:
        """Yield id, time of writing, and the row (None if ASE has to read it), by ascending id."""
        listed = ", ".join(map(str, ids))
        sql = f"SELECT {self.selected} FROM systems WHERE id IN ({listed}) ORDER BY id"  # noqa: S608 - whole numbers
        for row in self.fetch(sql):
            yield row[0], row[1], self._convert(row)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _convert(self, row: Sequence[Any]) -> StructureRow | None:
        id_, _, numbers, positions, cell, pbc, energy, free_energy, forces, stress, pairs = row
        try:
            found = StructureRow(
                id=id_,
                numbers=self.array(numbers, "<i4", -1),
                positions=self.array(positions, "<f8", -1, 3),
                cell=self.array(cell, "<f8", 3, 3),
                pbc=np.array([pbc & 1, pbc & 2, pbc & 4], dtype=np.bool_),
                energy=energy,
                free_energy=free_energy,
                forces=None if forces is None else self.array(forces, "<f8", -1, 3),
                stress=None if stress is None else self.array(stress, "<f8", VOIGT),
                key_value_pairs=self._decode(pairs),
            )
        except (TypeError, ValueError, AttributeError, RecursionError):  # JSON nested too deep
            return None
        atoms = len(found.numbers)
        usual = (
            all(e is None or isinstance(e, float) for e in (energy, free_energy))
            and (found.stress is None or bool(np.isfinite(found.stress).all()))
            and len(found.positions) == atoms > 0
            and (found.forces is None or len(found.forces) == atoms)
        )
        return found if usual else None


class _SqliteTables(Tables):
    """Arrays are little-endian bytes without a shape."""

    selected = ", ".join(_COLUMNS)

    def __init__(self, database: Any) -> None:
        uri = sqlite_uri(Path(database.filename))
        # Each statement names other ids: to keep them would take 50 kB for each.
        super().__init__(
            sqlite3.connect(uri, uri=True, timeout=_SQLITE_TIMEOUT, cached_statements=0),
            database.decode,
        )

    def columns(self) -> set[str]:
        return {row[1] for row in self._connection.execute("PRAGMA table_info(systems)")}

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Sequence[Any]]:
        with closing(self._connection.execute(sql, values)) as cursor:
            yield from cursor

    def array(self, stored: bytes, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(stored, dtype).reshape(shape)


class _PostgresqlTables(Tables):
    """Arrays are in the format of ``array_send`` (arrayfuncs.c), in network byte order.

    A header has the number of dimensions, whether there are NULLs, the type, and length and lower
    bound of each dimension. Behind it each element follows its length. All statements see one
    snapshot.
    """

    selected = (
        "id, mtime, array_send(numbers), array_send(positions), array_send(cell), pbc, energy, "
        "free_energy, array_send(forces), array_send(stress), key_value_pairs::text"
    )

    def __init__(self, database: Any) -> None:
        connection = import_module("psycopg2").connect(database.filename)
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        super().__init__(connection, lambda text: database.decode(json.loads(text)))

    def columns(self) -> set[str]:
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("SELECT * FROM systems LIMIT 0")
            return {column.name for column in cursor.description}

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Sequence[Any]]:
        with closing(self._connection.cursor("rows")) as cursor:  # named: it is on the server
            cursor.itersize = _ROWS_AT_ONCE
            cursor.execute(sql.replace("?", "%s"), values)  # as ASE's back end does
            yield from cursor

    def array(self, stored: memoryview, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
        dimensions, nulls, kind = struct.unpack_from(">3i", stored)
        found = struct.unpack_from(f">{2 * dimensions}i", stored, 12)[::2]
        fits = len(found) == len(shape) and all(
            wanted in (-1, size) for wanted, size in zip(shape, found, strict=True)
        )
        if nulls or _POSTGRESQL_TYPES.get(kind) != dtype or not fits:
            raise ValueError("another type or shape")
        element = np.dtype([("length", ">i4"), ("value", dtype.replace("<", ">"))])
        elements = np.frombuffer(stored, element, offset=12 + 8 * dimensions)
        return elements["value"].astype(dtype).reshape(found)
