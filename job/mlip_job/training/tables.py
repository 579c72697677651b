"""Pacemaker's metrics tables: ``metrics.txt``, ``test_metrics.txt`` and their kin.

White-space columns under one header line (`pyace.metrics_aggregator.MetricsAggregator.columns`);
energies per atom in eV, force components in eV/Å. Every start of pacemaker writes them anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


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
