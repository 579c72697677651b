"""ASE's tables in PostgreSQL."""

from __future__ import annotations

import json
import struct
from contextlib import closing
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

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

_ARRAYS = ("numbers", "positions", "cell", "forces", "stress")
_SELECTED = {name: f"array_send(systems.{name})" for name in _ARRAYS} | {
    "key_value_pairs": "systems.key_value_pairs::text"
}
_DOUBLE, _INTEGER = 701, 23
"""PostgreSQL's numbers for these types (pg_type.dat)."""


class PostgresqlTables:
    """Reads one snapshot with a cursor on the server, arrays in PostgreSQL's binary form.

    Parameters
    ----------
    database
        ASE's object for the server.
    """

    def __init__(self, database: Any) -> None:
        psycopg2 = import_module("psycopg2")
        self._connection = psycopg2.connect(database.filename)
        self._connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        self._decode = decoder(lambda text: database.decode(json.loads(text)))

    def columns(self) -> set[str]:
        """See `Tables.columns`."""
        with closing(self._connection.cursor()) as cursor:
            cursor.execute("SELECT * FROM systems LIMIT 0")
            return {column.name for column in cursor.description}

    def ids(self, sql: str, values: Sequence[Any]) -> Iterator[list[tuple[int, float]]]:
        """See `Tables.ids`."""
        return self._fetch("ids", sql, values, IDS_AT_ONCE)

    def pages(
        self,
        select: Callable[[str], tuple[str, Sequence[Any]]],
        ids: IndexArray,  # noqa: ARG002 - the snapshot gives the same rows again
        size: int,
    ) -> Iterator[RawPage]:
        """See `Tables.pages`."""
        what = ", ".join(_SELECTED.get(name, f"systems.{name}") for name in COLUMNS)
        for rows in self._fetch("rows", *select(what), size):
            yield make_page(rows, _Sent(), self._decode)

    def close(self) -> None:
        """See `Tables.close`."""
        self._connection.close()

    def _fetch(self, name: str, sql: str, values: Sequence[Any], size: int) -> Iterator[list[Any]]:
        with closing(self._connection.cursor(name)) as cursor:
            cursor.itersize = size
            cursor.execute(sql.replace("?", "%s"), values)  # as ASE's back end does
            while rows := cursor.fetchmany(size):
                yield rows


class _Sent:
    """Arrays are as ``array_send`` gives them (arrayfuncs.c), in network byte order.

    A header has the number of dimensions, whether there are NULLs, the type, and length and lower
    bound of each dimension. Behind it each element follows its length.
    """

    def count_atoms(self, row: Sequence[Any]) -> int:
        """See `Layout.count_atoms`."""
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

    def join(self, arrays: Iterable[memoryview | None], dtype: str) -> np.ndarray[Any, Any]:
        """See `Layout.join`."""
        element = _element(dtype)
        absent = np.zeros(VOIGT, element)
        absent["value"] = NO_STRESS if dtype == "<f8" else 0
        nothing = absent.tobytes()
        joined = b"".join(
            [
                nothing if array is None else array[12 + 8 * bytes(array[3:4])[0] :]
                for array in arrays
            ]
        )
        return np.frombuffer(joined, element)["value"].astype(dtype)


def _element(dtype: str) -> np.dtype[np.void]:
    return np.dtype([("length", ">i4"), ("value", dtype.replace("<", ">"))])


@lru_cache(512)
def _header(kind: int, *shape: int) -> bytes:
    bounds = [number for length in shape for number in (length, 1)]
    return struct.pack(f">{3 + len(bounds)}i", len(shape), 0, kind, *bounds)


def _is_array(value: memoryview, header: bytes, size: int) -> bool:
    return len(value) == len(header) + size and bytes(value[: len(header)]) == header
