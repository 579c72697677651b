"""The selected rows of an ASE database, many at a time.

They are read past ASE where its tables are known, which is what makes an export fast. Each row that
can't be read so is read by `StructureDatabase`: ASE decides what it means.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase.db.core import parse_selection

from mlip_job.dataset.postgresql_tables import PostgresqlTables
from mlip_job.dataset.query import SelectedRows
from mlip_job.dataset.row import StructureRow
from mlip_job.dataset.source import SELECTION_ERRORS, StructureDatabase, bad_selection
from mlip_job.dataset.sqlite_tables import SqliteTables
from mlip_job.dataset.structures import Structures, is_complete
from mlip_job.dataset.tables import COLUMNS, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from mlip_job.config.models import DatabaseConfig
    from mlip_job.dataset.row import FloatArray, UnreadableRow
    from mlip_job.dataset.structures import IndexArray
    from mlip_job.dataset.tables import RawPage, Tables

PAGE = 500
"""Rows in a page."""


@dataclass(frozen=True)
class Page:
    """Some of the selected rows.

    Attributes
    ----------
    structures
        Those that are complete.
    pairs
        The key_value_pairs of each.
    others
        The rows that are not complete.
    lost_stresses
        Ids of rows whose stress could not be read and is left out.
    """

    structures: Structures
    pairs: Sequence[Mapping[str, Any]]
    others: Sequence[StructureRow | UnreadableRow]
    lost_stresses: Sequence[int] = ()


@dataclass(frozen=True)
class Selected:
    """Which rows are selected, and when each was last written.

    Attributes
    ----------
    ids
        Ascending.
    mtimes
        In ASE's unit, years since 2000.
    """

    ids: IndexArray
    mtimes: FloatArray

    def summary(self) -> SelectedRows:
        """Return what changes whenever a row comes, goes, or is written.

        Count, largest id and newest time alone would not do: a row that a slow transaction wrote
        has an older time than others that were seen before it.
        """
        digest = hashlib.sha256(self.ids.astype("<i8").tobytes())
        digest.update(self.mtimes.astype("<f8").tobytes())
        return SelectedRows(
            count=len(self.ids),
            max_id=int(self.ids.max(initial=0)),
            max_mtime=float(self.mtimes.max(initial=0.0)),
            sha256=digest.hexdigest(),
        )


class PagedDatabase:
    """An ASE database, open for reading page by page.

    Parameters
    ----------
    config
        See `StructureDatabase`.

    Attributes
    ----------
    slow_because
        Why ASE itself has to read it, or None where its tables are read directly.
    """

    def __init__(self, config: DatabaseConfig) -> None:
        self.slow_because: str | None = None
        self._config = config
        self._source = StructureDatabase(config)
        self._tables: Tables | None = None

    def __enter__(self) -> Self:
        self._source.__enter__()
        try:
            with self._failures():
                found = _open_tables(self._source.opened.database)
        except BaseException as error:
            self._source.__exit__(type(error), error, None)
            raise
        if isinstance(found, str):
            self.slow_because = found
        else:
            self._tables = found
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tables is not None:
            self._tables.close()
        self._source.__exit__(kind, error, traceback)

    def describe(self) -> str:
        """Return the database's URL without secrets."""
        return self._source.describe()

    def charge(self, id_: int) -> float:
        """Return the charge of a row, in elementary charges."""
        row = self._source.row(id_)
        return row.charge if isinstance(row, StructureRow) else 0.0

    def methods(self) -> Iterator[tuple[str | None, Any, int]]:
        """Yield the calculators of the selected rows, their parameters, and how many rows.

        Raises
        ------
        DatabaseError
            If the database fails.
        """
        database = self._source.opened.database
        text = "::text" if database.type == "postgresql" else ""
        columns = f"systems.calculator, systems.calculator_parameters{text}"
        sql, values = self._unordered(f"{columns}, count(*)")
        with self._failures():
            for groups in self._ids(f"{sql}\nGROUP BY {columns}", values):
                for calculator, parameters, rows in groups:
                    yield calculator, self._decoded(parameters), rows

    def _decoded(self, parameters: Any) -> Any:
        """Return the parameters of a calculator; nothing where they can't be read."""
        try:
            if isinstance(parameters, str):
                parameters = json.loads(parameters)
            return self._source.opened.database.decode(json.dumps(parameters))
        except SELECTION_ERRORS:
            return None

    def describe_row(self, id_: int) -> dict[str, str]:
        """See `StructureDatabase.describe_row`."""
        return self._source.describe_row(id_)

    def labels_elsewhere(self, id_: int) -> list[str]:
        """See `StructureDatabase.labels_elsewhere`."""
        return self._source.labels_elsewhere(id_)

    def count_by_status(self) -> dict[str, int]:
        """See `StructureDatabase.count_by_status`."""
        return self._source.count_by_status()

    def select(self) -> Selected:
        """Find out which rows are selected.

        Raises
        ------
        DatabaseError
            If the database fails.
        ConfigError
            If ASE does not take the selection.
        """
        ids, mtimes = array("q"), array("d")
        sql, values = self._statement("systems.id, systems.mtime")
        with self._failures():
            for rows in self._ids(sql, values):
                ids.extend([id_ for id_, _ in rows])
                mtimes.extend([math.nan if mtime is None else mtime for _, mtime in rows])
        return Selected(np.frombuffer(ids, dtype=np.int64), np.frombuffer(mtimes, np.float64))

    def pages(self, selected: Selected) -> Iterator[Page]:
        """Yield the selected rows in the order of their ids, but for those of `others`.

        Rows that were written since they were selected are left out if they no longer fit.
        """
        if self._tables is None:
            yield from self._pages_by_ase()
            return
        with self._failures():
            for raw in self._tables.pages(self._statement, selected.ids, PAGE):
                yield self._checked(raw, selected)

    def _checked(self, raw: RawPage, selected: Selected) -> Page:
        """Let ASE read what could not be read, and look again at what was written meanwhile."""
        known = np.searchsorted(selected.ids, raw.structures.ids)
        unchanged = selected.mtimes[known] == np.array(raw.mtimes)
        if unchanged.all() and not raw.others:
            return Page(raw.structures, raw.pairs, ())
        again = sorted([*raw.others, *raw.structures.ids[~unchanged].tolist()])
        rows = [row for row in map(self._source.row, again) if row is not None]
        pairs = [pair for pair, keep in zip(raw.pairs, unchanged, strict=True) if keep]
        return _merged(raw.structures.take(unchanged), pairs, rows)

    def _pages_by_ase(self) -> Iterator[Page]:
        rows: list[StructureRow | UnreadableRow] = []
        for row in self._source.rows():
            rows.append(row)
            if len(rows) == PAGE:
                yield _merged(Structures.of_rows(()), (), rows)
                rows.clear()
        yield _merged(Structures.of_rows(()), (), rows)

    def _statement(self, what: str) -> tuple[str, Sequence[Any]]:
        """Return ASE's own SQL for the selection, in the order of the ids."""
        sql, values = self._unordered(what)
        return f"{sql}\nORDER BY systems.id", values

    def _unordered(self, what: str) -> tuple[str, Sequence[Any]]:
        try:
            keys, comparisons = parse_selection(self._source.selection)
            sql, values = self._source.opened.database.create_select_statement(
                keys, comparisons, what=what
            )
        except SELECTION_ERRORS as error:
            raise bad_selection(self._config.select, error) from None
        return sql, values

    def _ids(self, sql: str, values: Sequence[Any]) -> Iterable[list[Any]]:
        if self._tables is not None:
            return self._tables.ids(sql, values)
        cursor = self._source.opened.database.connection.cursor()
        cursor.execute(sql, values)
        return [cursor.fetchall()]

    @contextmanager
    def _failures(self) -> Iterator[None]:
        opened = self._source.opened
        try:
            yield
        except (opened.driver_error, OSError) as error:  # OSError: an unknown format version
            raise opened.failure(error) from None


def _open_tables(database: Any) -> Tables | str:
    """Return the tables below an ASE database, or the reason why ASE has to read it."""
    kinds: dict[str, Callable[[Any], Tables]] = {
        "db": SqliteTables,
        "postgresql": PostgresqlTables,
    }
    with database.managed_connection():
        pass  # makes ASE look for the version
    if database.type not in kinds:
        return f"there is no faster way for {database.type}"
    if database.version not in VERSIONS:
        return f"its tables have the version {database.version}"
    tables = kinds[database.type](database)
    missing = set(COLUMNS) - tables.columns()
    if missing:
        tables.close()
        return f"its table of structures lacks {', '.join(sorted(missing))}"
    return tables


def _merged(
    structures: Structures,
    pairs: Sequence[Mapping[str, Any]],
    rows: Iterable[StructureRow | UnreadableRow],
) -> Page:
    """Add rows that ASE read to those that were read past it."""
    complete: list[tuple[StructureRow, Mapping[str, Any]]] = []
    others: list[StructureRow | UnreadableRow] = []
    for row in rows:
        if isinstance(row, StructureRow) and is_complete(row):
            complete.append((row, row.key_value_pairs))
        else:
            others.append(row)
    if not complete:
        return Page(structures, pairs, others)
    complete += [(structures.row(index), pair) for index, pair in enumerate(pairs)]
    complete.sort(key=lambda item: item[0].id)
    return Page(
        Structures.of_rows([row for row, _ in complete]),
        [pair for _, pair in complete],
        others,
        [row.id for row, _ in complete if row.lost_stress],
    )
