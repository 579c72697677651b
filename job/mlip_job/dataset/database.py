"""The selected rows of an ASE database, streamed in the order of their ids.

Known versions of ASE's tables in SQLite and PostgreSQL are read directly, many times faster than
ASE, which makes several objects of each row. Rows in an unusual format are read through ASE.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
import warnings
from array import array
from collections import Counter, defaultdict
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase.data import chemical_symbols
from ase.db.core import (
    bytes_to_object,
    check,
    convert_str_to_int_float_bool_or_str,
    parse_selection,
)

from mlip_job.dataset.connection import OpenedDatabase, open_database, sqlite_uri
from mlip_job.dataset.labels import describe_row, labels_elsewhere, values_in
from mlip_job.dataset.record import SelectedRows
from mlip_job.dataset.rows import VOIGT, Row, StructureRow, UnreadableRow, convert_row
from mlip_job.errors import ConfigError, ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlip_job.config.job import DatabaseConfig
    from mlip_job.dataset.rows import FloatArray, IndexArray

    Value = str | int | float | bool


PAGE = 500
"""Rows in a page; ASE fetches the whole result of a query before it yields the first row."""

Selection = list[str | tuple[str, str, int]]
"""ASE's parsed expressions, in a form to which comparisons can be added."""

_GAPS = 10
"""Ids for each row of a page, above which ASE reads the rows one by one: a sample has gaps."""

_KEY = re.compile(r"-?[A-Za-z_][A-Za-z0-9_]*")

_SELECTION_ERRORS = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, RecursionError,
)  # fmt: skip
"""ASE raises any of these for a selection that it can't parse and for a row that it can't decode
(RecursionError: JSON nested too deep)."""

_VERSIONS = (8, 9)
"""Known versions of ASE's tables: 9 differs from 8 in the column ``data``, which is not read."""

_COLUMNS = (
    "id", "mtime", "numbers", "positions", "cell", "pbc",
    "energy", "free_energy", "forces", "stress", "key_value_pairs",
)  # fmt: skip

_ROWS_AT_ONCE = 2_000
_SQLITE_TIMEOUT = 20.0
"""Seconds to wait for a writer; ASE's own."""

_EXACT = 2**53
"""Double precision, in which ASE compares numbers, distinguishes whole numbers below this."""


@dataclass(frozen=True)
class Selected:
    """Ascending ids of the selected rows, and when each was written (years since 2000)."""

    ids: IndexArray
    mtimes: FloatArray

    def summary(self) -> SelectedRows:
        """Return a state that changes whenever a row is added, removed or written."""
        digest = hashlib.sha256(
            self.ids.astype("<i8").tobytes() + self.mtimes.astype("<f8").tobytes()
        )
        return SelectedRows(
            count=len(self.ids),
            max_id=int(self.ids.max(initial=0)),
            max_mtime=float(self.mtimes.max(initial=0.0)),
            sha256=digest.hexdigest(),
        )


class StructureDatabase:
    """An ASE database, open for reading in a with block.

    `slow_because` says why it is read through ASE; None if its tables are read directly.

    Entering and reading raise `DatabaseError`, entering also `ConfigError` if the selection or the
    URL is not valid.
    """

    slow_because: str | None = None

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self._selection: Selection = []
        self._opened: OpenedDatabase | None = None
        self._tables: _Tables | None = None

    def __enter__(self) -> Self:
        self._selection = _parse_selection(self._config.select)
        self._opened = open_database(self._config)
        try:
            with self._failures() as database:
                # One connection for all queries: without it ASE opens one per query.
                database.__enter__()
                with database.managed_connection():
                    pass  # makes ASE look for the version
                if database.type not in ("db", "postgresql"):
                    self.slow_because = f"there is no faster way for {database.type}"
                elif database.version not in _VERSIONS:
                    self.slow_because = f"its tables have the version {database.version}"
                else:
                    self._tables = _Tables(database)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        opened, self._opened = self._open, None
        if self._tables is not None:
            self._tables.close()
        if opened.database.connection is None:
            return
        try:
            # Nothing was written; on an error ASE would roll back, which some back ends lack.
            opened.database.__exit__(None, None, None)
        except opened.driver_error as closing_error:
            if error is None:
                raise opened.failure(closing_error) from None

    def describe(self) -> str:
        """Return the database's URL without secrets."""
        return self._open.description

    def select(self) -> Selected:
        """Return which rows are selected."""
        return self._select_ids(self._selection)

    def pages(self, selected: Selected) -> Iterator[list[Row]]:
        """Yield rows in the order of their ids, except those no longer selected."""
        for first in range(0, len(selected.ids), PAGE):
            ids = selected.ids[first : first + PAGE].tolist()
            if self._tables is None:
                yield self._read_by_ase(ids)
            else:
                mtimes = dict(zip(ids, selected.mtimes[first : first + PAGE].tolist(), strict=True))
                yield self._read_directly(self._tables, mtimes)

    def rows(self) -> Iterator[Row]:
        """Yield the selected rows in the order of their ids."""
        for page in self.pages(self.select()):
            yield from page

    def row(self, id_: int) -> Row | None:
        """Return one row, or None if it is not selected (any more)."""
        try:
            found = self._ase_rows([*self._selection, ("id", "=", id_)])
            return convert_row(found[0]) if found else None
        except _SELECTION_ERRORS:
            return self._row_without_broken_columns(id_)

    def describe_row(self, id_: int) -> dict[str, str]:
        """Return how a row was computed, as texts by name, see `labels.describe_row`."""
        with suppress(*_SELECTION_ERRORS):
            (found,) = self._ase_rows([("id", "=", id_)])
            return describe_row(found)
        return {}

    def labels_elsewhere(self, id_: int) -> list[str]:
        """Return other places of a row's labels, see `labels.labels_elsewhere`."""
        with suppress(*_SELECTION_ERRORS):
            (found,) = self._ase_rows([("id", "=", id_)], include_data=True)
            return labels_elsewhere(found, found.data)
        return []

    def methods(self) -> Iterator[tuple[str | None, Any, int]]:
        """Yield the calculators of the selected rows, their parameters, and how many rows."""
        columns = f"systems.calculator, systems.calculator_parameters{self._as_text}"
        sql, values = self._statement(f"{columns}, count(*)", self._selection)
        for calculator, parameters, rows in self._execute(f"{sql}\nGROUP BY {columns}", values):
            yield calculator, self._decode(parameters), rows

    def charges(self) -> Iterator[tuple[int, float]]:
        """Yield id and sum of ASE's initial charges of the selected rows that are charged."""
        sql, values = self._statement("systems.id, systems.charge", self._selection)
        charged = f"SELECT * FROM ({sql}) AS found WHERE abs(charge) > 1e-3"  # noqa: S608 - ASE's
        yield from self._execute(charged, values)

    def data_values(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Counter[str]]]:
        """Yield places in the column ``data`` with wanted names, and how many rows have a value.

        Data of more than 64 kB, which are arrays, are not read.
        """
        sql, values = self._statement(f"systems.data{self._as_text} AS data", self._selection)
        small = f"SELECT data FROM ({sql}) AS found WHERE length(data) BETWEEN 3 AND 65536"  # noqa: S608 - ASE's
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)

        @lru_cache(256)
        def places(stored: str | bytes) -> list[tuple[str, str]]:
            return list(values_in(self._decode(stored), wanted))

        for (stored,) in self._execute(small, values):
            for place, value in places(stored):
                found[place][value] += 1
        yield from found.items()

    def count_by_status(self) -> dict[str, int]:
        """Count all rows of the database by their key ``status``; "(none)" if it is missing."""
        counts: Counter[str] = Counter()
        ids = self._select_ids([]).ids
        for first in range(0, len(ids), PAGE):
            page = ids[first : first + PAGE].tolist()
            try:
                counts.update(self._statuses([("id", ">=", page[0]), ("id", "<=", page[-1])]))
            except _SELECTION_ERRORS:
                for id_ in page:
                    try:
                        counts.update(self._statuses([("id", "=", id_)]))
                    except _SELECTION_ERRORS:
                        counts["(unreadable)"] += 1
        return dict(sorted(counts.items()))

    def _statuses(self, span: Selection) -> list[str]:
        rows = self._ase_rows(span, columns=["id", "key_value_pairs"])
        return [str(row.key_value_pairs.get("status", "(none)")) for row in rows]

    def _read_directly(self, tables: _Tables, mtimes: Mapping[int, float]) -> list[Row]:
        """Read rows by id; ASE reads what is unusual, or was written since it was selected."""
        with self._failures():
            found = list(tables.read(list(mtimes)))
        rows = (
            row if row is not None and mtime == mtimes[id_] else self.row(id_)
            for id_, mtime, row in found
        )
        return [row for row in rows if row is not None]

    def _read_by_ase(self, ids: Sequence[int]) -> list[Row]:
        span: Selection = [("id", ">=", ids[0]), ("id", "<=", ids[-1])]
        if ids[-1] - ids[0] <= _GAPS * len(ids):
            with suppress(*_SELECTION_ERRORS):
                wanted = set(ids)
                found = self._ase_rows([*self._selection, *span])
                return [convert_row(row) for row in found if row.id in wanted]
        return [row for row in map(self.row, ids) if row is not None]

    def _row_without_broken_columns(self, id_: int) -> Row:
        """Read a row with a broken column, if the required columns can be decoded."""
        needed = (*_COLUMNS, "unique_id", "ctime", "username")
        for columns in (needed, [name for name in needed if name != "stress"]):
            with suppress(*_SELECTION_ERRORS):
                (found,) = self._ase_rows([("id", "=", id_)], columns=columns)
                return replace(convert_row(found), lost_stress="stress" not in columns)
        return UnreadableRow(id_, single_precision=self._has_single_forces(id_))

    def _has_single_forces(self, id_: int) -> bool:
        """Return whether the forces of a row in an SQLite file are stored as float32."""
        database = self._open.database
        if database.type != "db":
            return False  # servers store arrays with a type
        sizes = database.connection.execute(
            "SELECT length(numbers), length(forces) FROM systems WHERE id = ?", (id_,)
        ).fetchone()
        # Three float32 for each int32.
        return sizes is not None and sizes[0] > 0 and sizes[1] == 3 * sizes[0]

    def _select_ids(self, selection: Selection) -> Selected:
        ids, mtimes = array("q"), array("d")
        sql, values = self._statement("systems.id, systems.mtime", selection)
        for id_, mtime in self._execute(f"{sql}\nORDER BY systems.id", values):
            ids.append(id_)
            mtimes.append(math.nan if mtime is None else mtime)
        return Selected(np.frombuffer(ids, dtype=np.int64), np.frombuffer(mtimes, np.float64))

    def _statement(self, what: str, selection: Selection) -> tuple[str, Sequence[Any]]:
        """Return ASE's own SQL for a selection."""
        try:
            keys, comparisons = parse_selection(list(selection))
            sql, values = self._open.database.create_select_statement(keys, comparisons, what=what)
        except _SELECTION_ERRORS as error:
            raise _bad_selection(self._config.select, error) from None
        return sql, values

    def _execute(self, sql: str, values: Sequence[Any]) -> Iterator[Any]:
        with self._failures() as database:
            if self._tables is not None:
                yield from self._tables.fetch(sql, values)
            else:
                cursor = database.connection.cursor()
                cursor.execute(sql, values)
                yield from cursor.fetchall()

    def _ase_rows(self, selection: Selection, **options: Any) -> list[Any]:
        options = {"include_data": False, **options}
        with self._failures() as database:
            # Without sort, PostgreSQL returns updated rows last.
            return list(database.select(selection, sort="id", **options))

    def _decode(self, parameters: Any) -> Any:
        """Return a value that ASE stored as JSON or bytes; None if it can't be decoded."""
        try:
            if isinstance(parameters, bytes):
                return bytes_to_object(parameters)
            if isinstance(parameters, str):
                parameters = json.loads(parameters)
            return self._open.database.decode(json.dumps(parameters))
        except _SELECTION_ERRORS:
            return None

    @property
    def _as_text(self) -> str:
        return "::text" if self._open.database.type == "postgresql" else ""

    @property
    def _open(self) -> OpenedDatabase:
        if self._opened is None:
            raise RuntimeError("StructureDatabase is used outside of its with block")
        return self._opened

    @contextmanager
    def _failures(self) -> Iterator[Any]:
        opened = self._open
        try:
            yield opened.database
        except (opened.driver_error, OSError) as error:  # OSError: an unknown format version
            raise opened.failure(error) from None


class _Tables:
    """ASE's tables over a separate connection; in PostgreSQL all statements see one snapshot."""

    def __init__(self, database: Any) -> None:
        self._is_server = database.type == "postgresql"
        if self._is_server:
            self._connection = import_module("psycopg2").connect(database.filename)
            self._connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        else:
            # Each statement names other ids: to keep them would take 50 kB for each.
            self._connection = sqlite3.connect(
                sqlite_uri(Path(database.filename)),
                uri=True,
                timeout=_SQLITE_TIMEOUT,
                cached_statements=0,
            )

        @lru_cache(256)
        def decode(text: str) -> dict[str, Any]:  # rows often share their pairs
            pairs = database.decode(json.loads(text) if self._is_server else text)
            return {key: pairs[key] for key in sorted(pairs)}

        self._decode = decode

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Sequence[Any]]:
        """Yield the rows that a statement of ASE's selects."""
        if self._is_server:
            sql = sql.replace("?", "%s")  # as ASE's back end does
            cursor = self._connection.cursor("rows")  # named: it is on the server
            cursor.itersize = _ROWS_AT_ONCE
        else:
            cursor = self._connection.cursor()
        with closing(cursor):
            cursor.execute(sql, values)
            yield from cursor

    def read(self, ids: Sequence[int]) -> Iterator[tuple[int, float, StructureRow | None]]:
        """Yield id, time of writing, and the row (None if ASE has to read it), by ascending id."""
        columns = ", ".join(_COLUMNS) + ("::text" if self._is_server else "")
        listed = ", ".join(map(str, ids))
        sql = f"SELECT {columns} FROM systems WHERE id IN ({listed}) ORDER BY id"  # noqa: S608 - whole numbers
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
                numbers=_array(numbers, "<i4", -1),
                positions=_array(positions, "<f8", -1, 3),
                cell=_array(cell, "<f8", 3, 3),
                pbc=np.array([pbc & 1, pbc & 2, pbc & 4], dtype=np.bool_),
                energy=energy,
                free_energy=free_energy,
                forces=None if forces is None else _array(forces, "<f8", -1, 3),
                stress=None if stress is None else _array(stress, "<f8", VOIGT),
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


def _array(stored: Any, dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """Return an array that SQLite holds as bytes without a shape, a server as lists."""
    if isinstance(stored, bytes):
        return np.frombuffer(stored, dtype).reshape(shape)
    array = np.array(stored, dtype)
    if array.reshape(shape).shape != array.shape:
        raise ValueError("another shape")
    return array


def _parse_selection(select: str) -> Selection:
    """Split a selection string into ASE's expressions."""
    expressions = [part.strip() for part in select.split(",")] if select.strip() else []
    try:
        keys, comparisons = parse_selection(expressions)
    except _SELECTION_ERRORS as error:
        raise _bad_selection(select, error) from None
    # Keys reach the SQL of some back ends unescaped.
    for key in (*keys, *(key for key, _, _ in comparisons)):
        if isinstance(key, str) and not _KEY.fullmatch(key):
            raise _bad_selection(select, ValueError(f"{key!r} is not a key"))
    for key, operator, value in comparisons:
        # A limit written as 1e20 is as exact as floating-point numbers are.
        limit = isinstance(value, float) and operator not in ("=", "!=")
        number = isinstance(value, int | float) and _EXACT <= abs(value) < math.inf
        if key != "id" and number and not limit:
            name = chemical_symbols[key] if isinstance(key, int) else key
            raise ConfigError(
                f"database.select: {name}{operator}{value} can't be selected exactly: databases "
                f"compare numbers in double precision, which is exact below 2**53 ({_EXACT})",
                hint=f"select by id, by a key whose values are texts (such as {name}=n{value}), or "
                f"write a limit as a floating-point number ({name}<{float(value)!r})",
            )
    return list(expressions)


def _bad_selection(select: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"database.select: {select!r} is not an ASE selection: {' '.join(str(error).split())}",
        hint="for example status=completed,natoms<100",
    )


def parse_marks(texts: Iterable[str]) -> dict[str, Value]:
    """Return the key_value_pairs in texts like ``status=to_label``.

    Raise `ConfigError` if ASE would not take one.
    """
    marks: dict[str, Value] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not (separator and value):
            raise ConfigError(f"--mark {text!r} is not key=value", hint="--mark status=to_label")
        pair = {key: convert_str_to_int_float_bool_or_str(value)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check(pair)
        except (ValueError, UserWarning) as error:
            raise ConfigError(
                f"--mark {text!r} is no key_value_pair of an ASE database: {error}"
            ) from None
        marks |= pair
    return marks


def mark_rows(config: DatabaseConfig, ids: Sequence[int], marks: Mapping[str, Value]) -> None:
    """Set keys of rows in one transaction.

    A row that ``config.select`` no longer matches was changed concurrently.

    Raise `ConflictError` if any row was changed, `DatabaseError` if the database can't be written
    to; no row is marked then.
    """
    selection = [part.strip() for part in config.select.split(",") if part.strip()]
    opened = open_database(config)
    database = opened.database
    database.__enter__()
    try:
        for id_ in ids:
            if not list(database.select([*selection, ("id", "=", id_)], columns=["id"])):
                raise ConflictError(  # noqa: TRY301 - rolled back below
                    f"row {id_} of {opened.description} no longer is one of "
                    f"{config.select!r}; no row was marked",
                    hint="select again",
                )
            database.update(id_, **marks)
            # ASE would commit after some thousand changes; this must be atomic.
            database.change_count = 0
        database.__exit__(None, None, None)
    except BaseException as error:
        # Closing rolls back. ASE's own way is rollback(), which ase-db-backends 0.11 lacks for
        # PostgreSQL.
        if database.connection is not None:
            database.connection.close()
            database.connection = None
        if isinstance(error, opened.driver_error):
            raise opened.failure(error, "written to") from None
        raise
