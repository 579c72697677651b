"""Pacemaker's metrics tables: ``metrics.txt``, ``test_metrics.txt`` and similar.

White-space columns below one header line (`pyace.metrics_aggregator.MetricsAggregator.columns`);
energies per atom in eV, force components in eV/Å. Every start of pacemaker overwrites them and
counts from 0; `join_tables` makes one learning curve of those of several starts.

Out of GPU memory, pacemaker continues by itself with smaller batches. It appends to the same tables
then, but counts iterations from 0 again; `count_on` numbers them through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from mlip_job.models import Errors
from mlip_job.training.process import GrowingFile
from mlip_job.training.summary import curve_point, milli, shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.training.summary import CurvePoint, LossShares
    from mlip_job.training.trainer import FitPosition

_WIDTH = 23  # of a column
Number = Annotated[
    float | None, AfterValidator(lambda n: n if n is None or math.isfinite(n) else None)
]


class Place(NamedTuple):
    """Where in a start of pacemaker a row of a table is."""

    ladder_step: int
    cycle: int
    iteration: int


class MetricsRow(BaseModel, frozen=True, extra="ignore", populate_by_name=True):
    """One row; None stands for a column that the table lacks and for a number that is not finite.

    ``e_loss_contrib`` and the like are the terms of ``loss``; ``smooth_w1`` to ``smooth_w3`` are
    those of ``w0_rad``, ``w1_rad`` and ``w2_rad``.
    """

    ladder_step: int | None = None
    cycle_step: int | None = None
    iter_num: int | None = None
    loss: Number = None
    e_loss_contrib: Number = None
    f_loss_contrib: Number = None
    l1_reg_contrib: Number = None
    l2_reg_contrib: Number = None
    smooth_orth: Number = None
    smooth_w1: Number = None
    smooth_w2: Number = None
    smooth_w3: Number = None
    rmse_energy_ev_per_atom: Number = Field(None, alias="rmse_epa")
    rmse_force_ev_per_angstrom: Number = Field(None, alias="rmse_f_comp")
    mae_force_ev_per_angstrom: Number = Field(None, alias="mae_f_comp")
    nfuncs: int | None = None
    ncoefs: int | None = None

    @property
    def place(self) -> Place:
        """Its place; columns that the table lacks count as 0."""
        return Place(self.ladder_step or 0, self.cycle_step or 0, self.iter_num or 0)

    @property
    def errors(self) -> Errors:
        """The errors, as far as the table has them."""
        return Errors(
            loss=self.loss,
            rmse_energy_mev_per_atom=milli(self.rmse_energy_ev_per_atom),
            rmse_force_mev_per_angstrom=milli(self.rmse_force_ev_per_angstrom),
            mae_force_mev_per_angstrom=milli(self.mae_force_ev_per_angstrom),
        )

    @property
    def point(self) -> CurvePoint:
        """The row as a point of a learning curve."""
        return curve_point(self.errors, **self.place._asdict())

    @property
    def error_loss(self) -> float | None:
        """The loss without regularisation."""
        if self.e_loss_contrib is None or self.f_loss_contrib is None:
            return None
        return self.e_loss_contrib + self.f_loss_contrib

    @property
    def loss_shares(self) -> LossShares | None:
        """The terms of the loss as fractions; None if the table lacks them."""
        if self.e_loss_contrib is None or self.f_loss_contrib is None:
            return None
        terms = {
            "l1_coeffs": self.l1_reg_contrib,
            "l2_coeffs": self.l2_reg_contrib,
            "w_orth": self.smooth_orth,
            "w0_rad": self.smooth_w1,
            "w1_rad": self.smooth_w2,
            "w2_rad": self.smooth_w3,
        }
        known = {name: term for name, term in terms.items() if term is not None}
        return shares(self.e_loss_contrib, self.f_loss_contrib, known)


@dataclass(frozen=True)
class MetricsTable:
    """A table; `dropped` counts lines that are truncated, merged or garbage."""

    rows: tuple[MetricsRow, ...] = ()
    dropped: int = 0


def read_table(path: Path) -> MetricsTable:
    """Read a table; one that is absent or has no header yet has no rows."""
    table = _whole(path)
    return MetricsTable(tuple(table.rows), table.dropped)


class TableFollower:
    """Follow a table during a run; it may not exist yet, or be overwritten.

    ``texts`` are the fields of ``rows`` by column.
    """

    def __init__(self, path: Path) -> None:
        self.columns: tuple[str, ...] = ()
        self.rows: list[MetricsRow] = []
        self.texts: list[dict[str, str]] = []
        self.dropped = 0
        self.file = GrowingFile(path)

    def poll(self) -> Sequence[MetricsRow]:
        """Return the complete rows that were added since the last call."""
        seen = len(self.rows)
        for line in self.file.lines():
            fields = tuple(line.split())
            if not self.columns and "loss" in fields:
                self.columns = fields
            elif fields and fields != self.columns:
                self._add(fields)
        return self.rows[seen:]

    def _add(self, fields: Sequence[str]) -> None:
        try:
            text = dict(zip(self.columns, fields, strict=True))
            self.rows.append(MetricsRow.model_validate(text))
            self.texts.append(text)
        except ValueError:  # another number of fields, or no numbers
            self.dropped += 1


def _whole(path: Path) -> TableFollower:
    table = TableFollower(path)
    table.poll()
    if table.file.rest.strip():
        table.dropped += 1  # a line without its end was truncated, maybe within a number
    return table


# -- restarts within a start of pacemaker --------------------------------------------------------


def count_on(places: Iterable[Place]) -> list[int]:
    """Return the iterations of ``metrics.txt`` numbered through all restarts.

    The first row after a restart repeats the last one before it, and gets its number.
    """
    return [start + place.iteration for place, start in _with_starts(places)]


def count_on_like(metrics: Iterable[Place], places: Sequence[Place]) -> list[int]:
    """Return the iterations of another table numbered through all restarts.

    Only ``metrics.txt`` has a row for every iteration, so that it shows when each restart was.
    """
    begun: dict[tuple[int, int], dict[int, None]] = {}
    for place, start in _with_starts(metrics):
        begun.setdefault(place[:2], {})[start] = None
    numbers: dict[int, int] = {}
    for key, starts in begun.items():
        rows = [n for n, place in enumerate(places) if place[:2] == key]
        numbers |= dict(zip(rows, _fit_in([places[n] for n in rows], list(starts)), strict=True))
    return [numbers.get(n, place.iteration) for n, place in enumerate(places)]


def _with_starts(places: Iterable[Place]) -> Iterator[tuple[Place, int]]:
    """Yield each place with the number of iterations before its restart."""
    before: Place | None = None
    start = 0
    for place in places:
        if before is None or place[:2] != before[:2]:
            start = 0
        elif place.iteration <= before.iteration:
            start += before.iteration
        before = place
        yield place, start


def _fit_in(places: Sequence[Place], starts: Sequence[int]) -> Iterator[int]:
    """Yield the numbers of the rows of one step, given the iterations before each restart.

    A start that ran out of memory at once may or may not have left a row.
    """
    restarts = [
        n > 0 and place.iteration <= places[n - 1].iteration for n, place in enumerate(places)
    ]
    surplus = max(0, sum(restarts) + 1 - len(starts))
    for place, count in zip(places, accumulate(restarts), strict=True):
        yield starts[max(0, count - surplus)] + place.iteration


# -- one curve of several starts -----------------------------------------------------------------


@dataclass(frozen=True)
class Offset:
    """The position in the whole fit at which a start of pacemaker begins.

    ``iteration`` applies to its first ladder step only.
    """

    ladder_step: int = 0
    iteration: int = 0

    def shift(self, row: MetricsRow) -> MetricsRow:
        """Return a row with its place in the whole fit."""
        moved: dict[str, int] = {}
        if row.ladder_step is not None:
            moved["ladder_step"] = row.ladder_step + self.ladder_step
        if row.iter_num is not None and not row.ladder_step:
            moved["iter_num"] = row.iter_num + self.iteration
        return row.model_copy(update=moved)


def join_tables(
    earlier: Path,
    current: Path,
    offset: Offset,
    *,
    upto: FitPosition | None = None,
    metrics: Path | None = None,
) -> str | None:
    """Return the table of all starts as text; None if neither table has a header yet.

    `earlier` is the table of all starts before, `current` that of the latest one, which began at
    `offset`; either may be absent. Rows after `upto` are omitted. `metrics` is ``metrics.txt`` of
    the latest start, if `current` is another table. A row that is in `earlier` stays: the first row
    of a start repeats the last one before it.
    """
    old, new = _whole(earlier), _whole(current)
    columns = old.columns or new.columns
    if not columns:
        return None
    # By place; the text is kept, so that every digit is.
    rows = dict(zip(map(_key, old.rows), old.texts, strict=True))
    places = [row.place for row in new.rows]
    starts = [row.place for row in _whole(metrics).rows] if metrics is not None else None
    numbers = count_on(places) if starts is None else count_on_like(starts, places)
    for row, number, text in zip(new.rows, numbers, new.texts, strict=True):
        numbered = row if row.iter_num is None else row.model_copy(update={"iter_num": number})
        moved = offset.shift(numbered)
        place = {"ladder_step": moved.ladder_step, "iter_num": moved.iter_num}
        known = {name: str(number) for name, number in place.items() if number is not None}
        rows.setdefault(_key(moved), text | known)
    kept = [text for key, text in rows.items() if upto is None or _is_within(key, upto)]
    return "".join(_line(columns, row) for row in ({c: c for c in columns}, *kept))


_Key = tuple[int | None, int | None, int | None]


def _key(row: MetricsRow) -> _Key:
    return row.ladder_step, row.cycle_step, row.iter_num


def _is_within(key: _Key, upto: FitPosition) -> bool:
    step, _, iteration = key
    if (step or 0) != upto.ladder_step:
        return (step or 0) < upto.ladder_step
    return upto.step_done or (iteration is not None and iteration <= upto.iteration)


def _line(columns: tuple[str, ...], row: Mapping[str, str]) -> str:
    return " ".join(row.get(column, "nan").ljust(_WIDTH) for column in columns).rstrip() + "\n"
