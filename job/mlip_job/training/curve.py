"""One learning curve out of several starts of pacemaker.

Pacemaker writes its tables anew at every start and counts from 0. Here the rows of a start are
numbered on from where it began, and put behind those of the starts before it. A row that was there
before stays: the first one of a start repeats the last one of the start before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlip_job.training.restarts import Place, count_on, count_on_like

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.training.position import FitPosition
    from mlip_job.training.tables import MetricsRow

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
