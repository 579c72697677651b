"""Pacemaker's metrics tables, and one learning curve out of those of several runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.training.checkpoint import FitPosition


@dataclass(frozen=True)
class MetricsRow:
    """One row; None stands for a column that the table lacks and for what is no finite number.

    Attributes
    ----------
    ladder_step, cycle_step, iter_num
        Where in the fit it is; each counts from 0, `iter_num` anew in every step and cycle.
    loss, e_loss_contrib, f_loss_contrib, reg_loss
        The loss and what energies, forces and regularisation contribute to it.
    l1_reg_contrib, l2_reg_contrib, smooth_orth, smooth_w1, smooth_w2, smooth_w3
        The parts of `reg_loss`; the last three are those of ``w0_rad``, ``w1_rad`` and ``w2_rad``.
    rmse_energy_ev_per_atom, low_rmse_energy_ev_per_atom
        Root mean square error of energies per atom; "low": of structures within 1 eV/atom of the
        lowest.
    rmse_force_ev_per_angstrom, low_rmse_force_ev_per_angstrom
        Of force components.
    mae_force_ev_per_angstrom, low_mae_force_ev_per_angstrom
        Mean absolute errors of force components.
    nfuncs, ncoefs
        Numbers of basis functions and of parameters.
    """

    ladder_step: int | None = None
    cycle_step: int | None = None
    iter_num: int | None = None
    loss: float | None = None
    e_loss_contrib: float | None = None
    f_loss_contrib: float | None = None
    reg_loss: float | None = None
    l1_reg_contrib: float | None = None
    l2_reg_contrib: float | None = None
    smooth_orth: float | None = None
    smooth_w1: float | None = None
    smooth_w2: float | None = None
    smooth_w3: float | None = None
    rmse_energy_ev_per_atom: float | None = None
    rmse_force_ev_per_angstrom: float | None = None
    low_rmse_energy_ev_per_atom: float | None = None
    low_rmse_force_ev_per_angstrom: float | None = None
    mae_force_ev_per_angstrom: float | None = None
    low_mae_force_ev_per_angstrom: float | None = None
    nfuncs: int | None = None
    ncoefs: int | None = None


@dataclass(frozen=True)
class MetricsTable:
    """A table as far as it can be read.

    Attributes
    ----------
    rows
        In the order of the file.
    dropped
        Lines whose fields do not match the header: cut short, merged or garbage.
    """

    rows: tuple[MetricsRow, ...] = ()
    dropped: int = 0


_WHOLE = ("ladder_step", "cycle_step", "iter_num", "nfuncs", "ncoefs")


_REAL = {
    "loss": "loss",
    "e_loss_contrib": "e_loss_contrib",
    "f_loss_contrib": "f_loss_contrib",
    "reg_loss": "reg_loss",
    "l1_reg_contrib": "l1_reg_contrib",
    "l2_reg_contrib": "l2_reg_contrib",
    "smooth_orth": "smooth_orth",
    "smooth_w1": "smooth_w1",
    "smooth_w2": "smooth_w2",
    "smooth_w3": "smooth_w3",
    "rmse_epa": "rmse_energy_ev_per_atom",
    "rmse_f_comp": "rmse_force_ev_per_angstrom",
    "low_rmse_epa": "low_rmse_energy_ev_per_atom",
    "low_rmse_f_comp": "low_rmse_force_ev_per_angstrom",
    "mae_f_comp": "mae_force_ev_per_angstrom",
    "low_mae_f_comp": "low_mae_force_ev_per_angstrom",
}


def read_table(path: Path) -> MetricsTable:
    """Read a table; one that is absent or has no header yet has no rows."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return MetricsTable()
    parser = _RowParser()
    for line in text.splitlines(keepends=True):
        parser.feed(line)
    return MetricsTable(tuple(parser.rows), parser.dropped)


class TableFollower:
    """Reads a table that is still being written.

    Parameters
    ----------
    path
        The file; it need not exist yet, and may be begun anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start_over()

    def poll(self) -> Sequence[MetricsRow]:
        """Return the complete rows that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._start_over()
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return ()
        complete = added[: added.rfind(b"\n") + 1]
        self._offset += len(complete)
        seen = len(self._parser.rows)
        for line in complete.decode("utf-8", errors="replace").splitlines(keepends=True):
            self._parser.feed(line)
        return self._parser.rows[seen:]

    def _start_over(self) -> None:
        self._offset = 0
        self._parser = _RowParser()


class _RowParser:
    """Turns lines into rows; the first one names the columns."""

    def __init__(self) -> None:
        self.rows: list[MetricsRow] = []
        self.dropped = 0
        self._columns: list[str] | None = None

    def feed(self, line: str) -> None:
        """Take one line; one without its line end was cut short."""
        fields = line.split()
        if not fields:
            return
        if self._columns is None:
            if "loss" in fields:
                self._columns = fields
            else:
                self.dropped += 1
            return
        if fields == self._columns:
            return
        row = row_of(dict(zip(self._columns, fields, strict=False)))
        if len(fields) != len(self._columns) or not line.endswith("\n") or row is None:
            self.dropped += 1
        else:
            self.rows.append(row)


def row_of(values: Mapping[str, str]) -> MetricsRow | None:
    """Return the row that fields by column say; None where they are no numbers."""
    try:
        numbers: dict[str, Any] = {name: int(values[name]) for name in _WHOLE if name in values}
        for theirs, ours in _REAL.items():
            if theirs in values and math.isfinite(number := float(values[theirs])):
                numbers[ours] = number
    except ValueError:
        return None
    return MetricsRow(**numbers)


class Place(NamedTuple):
    """Where in a start of pacemaker a row of a table is, as the table says it."""

    ladder_step: int
    cycle: int
    iteration: int


def count_on(places: Iterable[Place]) -> list[int]:
    """Return the iterations of ``metrics.txt`` numbered on over all restarts.

    The first row after a restart gets the number of the last one before it, which it repeats.
    """
    return [start + place.iteration for place, start in _with_starts(places)]


def count_on_like(metrics: Iterable[Place], places: Sequence[Place]) -> list[int]:
    """Return the iterations of another table numbered on.

    Parameters
    ----------
    metrics
        The rows of ``metrics.txt``, which tells where each start began: it has a row for every
        iteration.
    places
        The rows of the other table.
    """
    begun: dict[tuple[int, int], dict[int, None]] = {}
    for place, start in _with_starts(metrics):
        begun.setdefault(place[:2], {})[start] = None
    numbers: dict[int, int] = {}
    for key, starts in begun.items():
        rows = [n for n, place in enumerate(places) if place[:2] == key]
        numbers |= dict(zip(rows, _fit_in([places[n] for n in rows], list(starts)), strict=True))
    return [numbers.get(n, place.iteration) for n, place in enumerate(places)]


def _fit_in(places: Sequence[Place], starts: Sequence[int]) -> Iterator[int]:
    """Yield the numbers of one step's rows, given how many iterations came before each start.

    A start that ran out of memory at once may or may not have left a row.
    """
    indices = _start_indices(places)
    surplus = max(0, max(indices, default=0) + 1 - len(starts))
    for place, index in zip(places, indices, strict=True):
        yield starts[max(0, index - surplus)] + place.iteration


def _start_indices(places: Sequence[Place]) -> list[int]:
    indices: list[int] = []
    for n, place in enumerate(places):
        again = n > 0 and place.iteration <= places[n - 1].iteration
        indices.append((indices[-1] if indices else 0) + again)
    return indices


def _with_starts(places: Iterable[Place]) -> Iterator[tuple[Place, int]]:
    """Yield each row with the number of iterations before its start."""
    before: Place | None = None
    start = 0
    for place in places:
        if before is None or place[:2] != before[:2]:
            start = 0
        elif place.iteration <= before.iteration:
            start += before.iteration
        before = place
        yield place, start


_STEP, _CYCLE, _ITERATION = "ladder_step", "cycle_step", "iter_num"


_WIDTH = 23


@dataclass(frozen=True)
class Offset:
    """Where in the whole fit a start of pacemaker begins.

    Attributes
    ----------
    ladder_step
        The step that it calls 0.
    iteration
        The iteration of that step that it calls 0.
    """

    ladder_step: int = 0
    iteration: int = 0

    def shift(self, row: MetricsRow) -> MetricsRow:
        """Return a row with its place in the whole fit."""
        in_first = row.ladder_step in (0, None)
        return replace(
            row,
            ladder_step=None if row.ladder_step is None else row.ladder_step + self.ladder_step,
            iter_num=row.iter_num + self.iteration
            if row.iter_num is not None and in_first
            else row.iter_num,
        )


def join_tables(
    earlier: Path,
    current: Path,
    offset: Offset,
    *,
    upto: FitPosition | None = None,
    metrics: Path | None = None,
) -> str | None:
    """Return the joined table as text.

    Parameters
    ----------
    earlier, current
        The table of all starts before, and of the latest one; either may be absent.
    offset
        Where the latest one began.
    upto
        Rows beyond it are left out.
    metrics
        Pacemaker's ``metrics.txt`` of the latest start, where `current` is another table.

    Returns
    -------
    str or None
        None where neither table has a header yet.
    """
    old, new = _read(earlier), _read(current)
    columns = old.columns or new.columns
    if not columns:
        return None
    rows = {_place(row): row for row in old.rows}
    for row in _counted_on(new.rows, metrics):
        moved = _move(row, offset)
        rows.setdefault(_place(moved), moved)
    kept = (row for row in rows.values() if upto is None or _is_within(row, upto))
    return "".join(_line(columns, row) for row in ({c: c for c in columns}, *kept))


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def _read(path: Path) -> _Table:
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return _Table((), ())
    header, *lines = text.splitlines(keepends=True) or [""]
    columns = tuple(header.split())
    return _Table(columns if _STEP in columns else (), tuple(_rows(columns, lines)))


def _rows(columns: tuple[str, ...], lines: list[str]) -> Iterator[dict[str, str]]:
    for line in lines:
        fields = line.split()
        whole = line.endswith("\n") and len(fields) == len(columns)
        row = dict(zip(columns, fields, strict=False))
        places = (row.get(name, "0") for name in (_STEP, _CYCLE, _ITERATION))
        if whole and all(place.isdecimal() for place in places) and _are_numbers(fields):
            yield row


def _are_numbers(fields: Sequence[str]) -> bool:
    try:
        for field in fields:
            float(field)
    except ValueError:
        return False
    return True


def _counted_on(
    rows: Sequence[Mapping[str, str]], metrics: Path | None
) -> Iterator[dict[str, str]]:
    """Yield the rows of one start, numbered on where pacemaker began anew in between."""
    if not rows or _ITERATION not in rows[0]:
        yield from map(dict, rows)
        return
    places = [_place_in_start(row) for row in rows]
    if metrics is None:
        numbers = count_on(places)
    else:
        numbers = count_on_like(map(_place_in_start, _read(metrics).rows), places)
    for row, number in zip(rows, numbers, strict=True):
        yield {**row, _ITERATION: str(number)}


def _place_in_start(row: Mapping[str, str]) -> Place:
    return Place(*(int(row.get(name, "0")) for name in (_STEP, _CYCLE, _ITERATION)))


def _place(row: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(row.get(name) for name in (_STEP, _CYCLE, _ITERATION))


def _move(row: Mapping[str, str], offset: Offset) -> dict[str, str]:
    moved = dict(row)
    if _STEP in row:
        moved[_STEP] = str(int(row[_STEP]) + offset.ladder_step)
    if _ITERATION in row and row.get(_STEP) == "0":
        moved[_ITERATION] = str(int(row[_ITERATION]) + offset.iteration)
    return moved


def _is_within(row: Mapping[str, str], upto: FitPosition) -> bool:
    step = int(row.get(_STEP, "0"))
    if step != upto.ladder_step:
        return step < upto.ladder_step
    if upto.step_done:
        return True
    return _ITERATION in row and int(row[_ITERATION]) <= upto.iteration


def _line(columns: tuple[str, ...], row: Mapping[str, str]) -> str:
    return " ".join(row.get(column, "nan").ljust(_WIDTH) for column in columns).rstrip() + "\n"
