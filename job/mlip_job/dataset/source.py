"""Rows of an ASE database through ASE's public interface, streamed in the order of their ids."""

from __future__ import annotations

import math
import re
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ase.db.core import parse_selection

from mlip_job.dataset.connection import OpenedDatabase, open_database
from mlip_job.dataset.provenance import describe_row, labels_elsewhere
from mlip_job.dataset.row import StructureRow, UnreadableRow, convert_row
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from mlip_job.config.models import DatabaseConfig

__all__ = ["StructureDatabase", "StructureRow", "UnreadableRow"]

PAGE = 500
"""Ids per query: ASE fetches the whole result of a query before it yields the first row."""

Selection = list[str | tuple[str, str, int]]
"""ASE's expressions, in the form that comparisons can be added to."""

Page = TypeVar("Page")

_KEY = re.compile(r"-?[A-Za-z_][A-Za-z0-9_]*")
_NEEDED = (
    "id", "unique_id", "ctime", "mtime", "username", "numbers", "positions", "cell", "pbc",
    "energy", "free_energy", "forces", "key_value_pairs",
)  # fmt: skip

SELECTION_ERRORS = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, RecursionError,
)  # fmt: skip
"""What ASE raises for a selection that it can't parse, depending on where it notices, and for rows
that it can't decode: a RecursionError where JSON is nested too deep."""

_EXACT = 2**53
"""Double-precision numbers, as ASE compares them, tell whole numbers apart up to here."""


class StructureDatabase:
    """An ASE database, open for reading.

    ::

        with StructureDatabase(config) as database:
            for row in database.rows():
                ...

    Parameters
    ----------
    config
        Where it is and which rows to select.

    Raises
    ------
    DatabaseError
        On entering, if it can't be opened; on reading, if it fails.
    ConfigError
        On entering, if the selection or the URL can't be understood.
    """

    def __init__(self, config: DatabaseConfig) -> None:
        self._config = config
        self._selection: Selection = []
        self._opened: OpenedDatabase | None = None

    def __enter__(self) -> Self:
        self._selection = _parse_selection(self._config.select)
        opened = open_database(self._config)
        try:
            # One connection for all queries: without it ASE opens one per query.
            opened.database.__enter__()
        except opened.driver_error as error:
            raise opened.failure(error) from None
        self._opened = opened
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        opened, self._opened = self.opened, None
        try:
            # Nothing was written; ASE would roll back on an error, which not every back end can.
            opened.database.__exit__(None, None, None)
        except opened.driver_error as closing_error:
            if error is None:
                raise opened.failure(closing_error) from None

    @property
    def opened(self) -> OpenedDatabase:
        """The open database."""
        if self._opened is None:
            raise RuntimeError("StructureDatabase is used outside of its with block")
        return self._opened

    @property
    def selection(self) -> Selection:
        """ASE's expressions for the rows to read."""
        return list(self._selection)

    def describe(self) -> str:
        """Return the database's URL without secrets."""
        return self.opened.description

    def rows(self) -> Iterator[StructureRow | UnreadableRow]:
        """Yield the selected rows in the order of their ids."""
        for page in self._pages(self._read, self._selection):
            yield from page

    def row(self, id_: int) -> StructureRow | UnreadableRow | None:
        """Return one row, or None where it is not selected (any more)."""
        try:
            found = self._select([*self._selection, ("id", "=", id_)])
            return convert_row(found[0]) if found else None
        except SELECTION_ERRORS:
            return self._row_without_broken_columns(id_)

    def _row_without_broken_columns(self, id_: int) -> StructureRow | UnreadableRow:
        """Read a row of which some column can't be decoded: only the needed ones count."""
        for columns in ((*_NEEDED, "stress"), _NEEDED):
            with suppress(*SELECTION_ERRORS):
                (found,) = self._select([("id", "=", id_)], columns=columns)
                return replace(convert_row(found), lost_stress="stress" not in columns)
        return UnreadableRow(id_, single_precision=self._has_single_forces(id_))

    def _has_single_forces(self, id_: int) -> bool:
        """Tell whether the forces of a row in an SQLite file are stored as float32."""
        if self.opened.database.type != "db":
            return False  # servers store numbers in arrays of their own type
        sizes = self.opened.database.connection.execute(
            "SELECT length(numbers), length(forces) FROM systems WHERE id = ?", (id_,)
        ).fetchone()
        # Three float32 for each int32.
        return sizes is not None and sizes[0] > 0 and sizes[1] == 3 * sizes[0]

    def describe_row(self, id_: int) -> dict[str, str]:
        """Return how a row was computed, as texts by name, see `provenance.describe_row`."""
        with suppress(*SELECTION_ERRORS):
            for found in self._select([("id", "=", id_)]):
                return describe_row(found)
        return {}

    def labels_elsewhere(self, id_: int) -> list[str]:
        """Return where else a row may hold its labels, see `provenance.labels_elsewhere`."""
        with suppress(*SELECTION_ERRORS):
            for found in self._select([("id", "=", id_)], include_data=True):
                return labels_elsewhere(found, found.data)
        return []

    def count_by_status(self) -> dict[str, int]:
        """Count all rows of the database by their key ``status``; "(none)" where it is absent."""

        def statuses(selection: Selection) -> list[str]:
            try:
                rows = self._select(selection, columns=["id", "key_value_pairs"])
            except SELECTION_ERRORS:
                ids = self._ids(selection)
                if len(ids) == 1:
                    return ["(unreadable)"]
                return [status for id_ in ids for status in statuses([("id", "=", id_)])]
            return [str(row.key_value_pairs.get("status", "(none)")) for row in rows]

        counts: Counter[str] = Counter()
        for page in self._pages(statuses, []):
            counts.update(page)
        return dict(sorted(counts.items()))

    def _pages(
        self, read: Callable[[Selection], list[Page]], selection: Selection
    ) -> Iterator[list[Page]]:
        """Yield what `read` makes of one range of ids after the other, empty ranges left out.

        Ranges are found by index where LIMIT would make the server sort all rows for each page.
        """
        last = 0
        while True:
            page = read([*selection, ("id", ">", last), ("id", "<=", last + PAGE)])
            last += PAGE
            if page:
                yield page
                continue
            following = self._select([*selection, ("id", ">", last)], limit=1, columns=["id"])
            if not following:
                return
            last = int(following[0].id) - 1

    def _read(self, selection: Selection) -> list[StructureRow | UnreadableRow]:
        try:
            return [convert_row(row) for row in self._select(selection)]
        except SELECTION_ERRORS:
            # ASE failed on some row of the page, or on the selection as such.
            rows = (self.row(id_) for id_ in self._ids(selection))
            return [row for row in rows if row is not None]

    def _ids(self, selection: Selection) -> list[int]:
        try:
            return [int(row.id) for row in self._select(selection, columns=["id"])]
        except SELECTION_ERRORS as error:
            raise bad_selection(self._config.select, error) from None

    def _select(self, selection: Selection, **options: Any) -> list[Any]:
        opened = self.opened
        try:
            # Without sort, PostgreSQL returns updated rows last.
            options = {"include_data": False, **options}
            return list(opened.database.select(selection, sort="id", **options))
        except (opened.driver_error, OSError) as error:  # OSError: an unknown format version
            raise opened.failure(error) from None


def _parse_selection(select: str) -> Selection:
    """Cut a selection string into ASE's expressions."""
    expressions = [part.strip() for part in select.split(",")] if select.strip() else []
    try:
        keys, comparisons = parse_selection(expressions)
    except SELECTION_ERRORS as error:
        raise bad_selection(select, error) from None
    # Keys reach the SQL of some back ends as they are.
    for key in (*keys, *(key for key, _, _ in comparisons)):
        if isinstance(key, str) and not _KEY.fullmatch(key):
            raise bad_selection(select, ValueError(f"{key!r} is not a key"))
    for key, operator, value in comparisons:
        if key != "id" and _is_inexact(operator, value):
            raise ConfigError(
                f"database.select: {key}{operator}{value} can't be selected exactly: databases "
                f"compare numbers in double precision, which is exact below 2**53 ({_EXACT})",
                hint=f"select by id, or by a key whose values are texts, such as {key}=n{value}",
            )
    return list(expressions)


def _is_inexact(operator: str, value: object) -> bool:
    """Tell whether a comparison may take other whole numbers for this one."""
    if isinstance(value, float):  # a limit written as 1e20 is as exact as floats are
        return operator in ("=", "!=") and _EXACT <= abs(value) < math.inf
    return isinstance(value, int) and abs(value) >= _EXACT


def bad_selection(select: str, error: Exception) -> ConfigError:
    """Return the error to raise for a selection that ASE doesn't take."""
    return ConfigError(
        f"database.select: {select!r} is not an ASE selection: {' '.join(str(error).split())}",
        hint="for example status=completed,natoms<100",
    )
