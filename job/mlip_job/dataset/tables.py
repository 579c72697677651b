"""Read ASE's own tables in SQLite and PostgreSQL: the values that ASE gives, many times faster.

ASE makes an object of each row and fetches whole results; here the arrays of many rows are joined
as the bytes that they are stored as. A row that does not look as ASE writes it is left to ASE.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mlip_job.dataset.connection import sqlite_uri
from mlip_job.dataset.structures import VOIGT, Structures, present, starts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_VERSIONS = (8, 9)
"""Known versions of ASE's tables: 9 differs from 8 in the column ``data``, which is not read."""

_COLUMNS = (
    "id", "mtime", "numbers", "positions", "cell", "pbc",
    "energy", "free_energy", "forces", "stress", "key_value_pairs",
)  # fmt: skip

_IDS_AT_ONCE = 2_000
_NO_STRESS = np.full(VOIGT, np.nan)
_SQLITE_TIMEOUT = 20.0
"""Seconds to wait for a writer; ASE's own."""

_DOUBLE, _INTEGER = 701, 23
"""PostgreSQL's numbers for these types (pg_type.dat)."""


def open_tables(database: Any) -> Tables | str:
    """Return the tables below an ASE database, or the reason why ASE has to read them."""
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


@dataclass(frozen=True)
class TableRows:
    """Rows in the order of their ids.

    Attributes
    ----------
    structures
        The complete ones.
    mtimes
        When each of these was last written, in ASE's unit.
    others
        Ids of rows that ASE has to read.
    """

    structures: Structures
    mtimes: Sequence[float]
    others: list[int]


class Tables(ABC):
    """The tables of one database, over a connection of their own."""

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
    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterator[list[Any]]:
        """Yield the rows that a statement of ASE's selects, in pieces."""

    @abstractmethod
    def count_atoms(self, row: Sequence[Any]) -> int:
        """Return the number of atoms of a row; 0 where an array is not as it should be."""

    @abstractmethod
    def join(self, arrays: Sequence[Any], dtype: str) -> np.ndarray[Any, Any]:
        """Return the numbers of arrays, one after the other; NaN for a missing stress."""

    def read(self, ids: Sequence[int]) -> TableRows:
        """Read rows by ascending id; rows that were removed are missing."""
        listed = ", ".join(map(str, ids))
        sql = f"SELECT {self.selected} FROM systems WHERE id IN ({listed}) ORDER BY id"  # noqa: S608 - whole numbers
        complete: list[Sequence[Any]] = []
        pairs: list[dict[str, Any]] = []
        counts: list[int] = []
        others: list[int] = []
        for row in (row for rows in self.fetch(sql) for row in rows):
            try:
                atoms = self.count_atoms(row) if _is_energy(row[6]) and _is_energy(row[7]) else 0
                pair = self._decode(row[10])
            except (TypeError, ValueError, AttributeError, RecursionError):  # JSON nested too deep
                atoms, pair = 0, {}
            if atoms > 0:
                complete.append(row)
                pairs.append(pair)
                counts.append(atoms)
            else:
                others.append(row[0])
        columns = list(zip(*complete, strict=True)) or [()] * len(_COLUMNS)
        return TableRows(self._structures(columns, counts, pairs), columns[1], others)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _structures(
        self, columns: Sequence[Sequence[Any]], counts: Sequence[int], pairs: Sequence[Any]
    ) -> Structures:
        ids, _, numbers, positions, cells, pbc, energies, free, forces, stresses, _ = columns
        voigt = np.array(self.join(stresses, "<f8")).reshape(-1, VOIGT)
        voigt[~np.isfinite(voigt).all(axis=1)] = np.nan
        directions = np.array(pbc, dtype=np.int64).reshape(-1, 1) & np.array([1, 2, 4])
        return Structures(
            ids=np.array(ids, dtype=np.int64),
            starts=starts_of(counts),
            numbers=self.join(numbers, "<i4"),
            positions=self.join(positions, "<f8").reshape(-1, 3),
            forces=self.join(forces, "<f8").reshape(-1, 3),
            cells=self.join(cells, "<f8").reshape(-1, 3, 3),
            pbc=directions.astype(np.bool_),
            energies=np.array(energies, dtype=np.float64),
            has_energy=present(energies),
            free_energies=np.array(free, dtype=np.float64),
            has_free_energy=present(free),
            stresses=voigt,
            pairs=np.array(pairs, dtype=np.object_),
        )


def _is_energy(value: Any) -> bool:
    return value is None or isinstance(value, float)


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

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterator[list[Any]]:
        with closing(self._connection.execute(sql, values)) as cursor:
            while rows := cursor.fetchmany(_IDS_AT_ONCE):
                yield rows

    def count_atoms(self, row: Sequence[Any]) -> int:
        _, _, numbers, positions, cell, pbc, _, _, forces, stress, _ = row
        atoms, rest = divmod(len(numbers), 4)
        fits = (
            bytes is type(numbers) is type(positions) is type(forces) is type(cell)
            and rest == 0
            and len(positions) == 24 * atoms == len(forces)
            and len(cell) == 9 * 8
            and (stress is None or len(stress) == 8 * VOIGT)
            and isinstance(pbc, int)
        )
        return atoms if fits else 0

    def join(self, arrays: Sequence[bytes | None], dtype: str) -> np.ndarray[Any, Any]:
        absent = _NO_STRESS.astype("<f8").tobytes()
        return np.frombuffer(b"".join([absent if a is None else a for a in arrays]), dtype)


class _PostgresqlTables(Tables):
    """Arrays are as ``array_send`` gives them (arrayfuncs.c), in network byte order.

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

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterator[list[Any]]:
        with closing(self._connection.cursor("rows")) as cursor:  # named: it is on the server
            cursor.execute(sql.replace("?", "%s"), values)  # as ASE's back end does
            while rows := cursor.fetchmany(_IDS_AT_ONCE):
                yield rows

    def count_atoms(self, row: Sequence[Any]) -> int:
        _, _, numbers, positions, cell, pbc, _, _, forces, stress, _ = row
        atoms = (len(numbers) - len(_header(_INTEGER, 1))) // 8
        vectors = _header(_DOUBLE, atoms, 3)
        fits = (
            atoms > 0
            and _is_array(numbers, _header(_INTEGER, atoms), 8 * atoms)
            and _is_array(positions, vectors, 3 * 12 * atoms)
            and _is_array(forces, vectors, 3 * 12 * atoms)
            and _is_array(cell, _header(_DOUBLE, 3, 3), 9 * 12)
            and (stress is None or _is_array(stress, _header(_DOUBLE, VOIGT), VOIGT * 12))
            and isinstance(pbc, int)
        )
        return atoms if fits else 0

    def join(self, arrays: Sequence[memoryview | None], dtype: str) -> np.ndarray[Any, Any]:
        element = np.dtype([("length", ">i4"), ("value", dtype.replace("<", ">"))])
        absent = np.zeros(VOIGT, element)
        absent["value"] = _NO_STRESS if dtype == "<f8" else 0
        nothing = absent.tobytes()
        # A header has 12 bytes, and 8 for each dimension.
        parts = [nothing if a is None else a[12 + 8 * bytes(a[3:4])[0] :] for a in arrays]
        return np.frombuffer(b"".join(parts), element)["value"].astype(dtype)


@lru_cache(512)
def _header(kind: int, *shape: int) -> bytes:
    bounds = [number for length in shape for number in (length, 1)]
    return struct.pack(f">{3 + len(bounds)}i", len(shape), 0, kind, *bounds)


def _is_array(value: memoryview, header: bytes, size: int) -> bool:
    return len(value) == len(header) + size and bytes(value[: len(header)]) == header
