"""Gracemaker's metrics files: one JSON object per iteration, also across restarts.

Energies per atom in eV, force components in eV/Å, stress in eV/Å³. A fit that resumes repeats the
iterations after its checkpoint: the later line of an iteration counts.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ase.units import GPa
from pydantic import ValidationError

from mlip_job.models import Errors
from mlip_job.training.process import GrowingFile
from mlip_job.training.summary import curve_point, milli, shares

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlip_job.training.summary import CurvePoint, LossShares


class GraceRow(NamedTuple):
    """One iteration, measured on one set.

    A structure without a stress counts in the errors as one with a stress of 0, but not in the
    loss. The shares are None if a term of the loss is not finite.
    """

    point: CurvePoint
    errors: Errors
    loss_shares: LossShares | None

    @property
    def iteration(self) -> int:
        """From 1, over all starts."""
        return self.point.iteration

    @property
    def loss(self) -> float | None:
        """None if it is not finite."""
        return self.errors.loss


class MetricsFollower:
    """Follow a metrics file during a fit; it may not exist yet.

    ``dropped`` counts lines that are truncated or garbage.
    """

    def __init__(self, path: Path, side: str) -> None:
        self.dropped = 0
        self._file = GrowingFile(path)
        self._side = side

    def poll(self) -> Sequence[GraceRow]:
        """Return the complete rows that were added since the last call."""
        rows = [_row_of(line, self._side) for line in self._file.lines() if line.strip()]
        self.dropped += rows.count(None)
        return [row for row in rows if row is not None]

    def points(self) -> Sequence[CurvePoint]:
        """Return the same rows as points of the learning curve."""
        return [row.point for row in self.poll()]


def read_curve(path: Path, side: str) -> tuple[tuple[GraceRow, ...], int]:
    """Return the rows of a whole fit, one per iteration, and the number of unreadable lines."""
    follower = MetricsFollower(path, side)
    rows: dict[int, GraceRow] = {}
    for row in follower.poll():
        if row.iteration in rows:
            rows = {number: kept for number, kept in rows.items() if number < row.iteration}
        rows[row.iteration] = row
    return tuple(rows.values()), follower.dropped


def best_iteration(second: Sequence[GraceRow], after: int = 0) -> int | None:
    """Return the iteration with the smallest finite loss of those after another one."""
    finite = [
        (row.loss, row.iteration)
        for row in second
        if row.iteration > after and row.loss is not None
    ]
    return min(finite)[1] if finite else None


def best_row(
    train: Sequence[GraceRow], second: Sequence[GraceRow], resumed_from: int = 0
) -> GraceRow | None:
    """Return the training row of the iteration that gracemaker exports.

    It has the smallest loss on the second set since the last start, which resumed from an
    iteration: a restart forgets the best one before. Without a second set it is the last one.
    """
    best = best_iteration(second, resumed_from)
    if best is None:
        return train[-1] if train else None
    return next((row for row in train if row.iteration == best), None)


def _row_of(line: str, side: str) -> GraceRow | None:
    try:
        values: dict[str, Any] = json.loads(line.removeprefix("- "))
        errors = Errors(
            loss=_finite(values[f"total_loss/{side}"]),
            rmse_energy_mev_per_atom=milli(values.get("rmse/depa")),
            mae_energy_mev_per_atom=milli(values.get("mae/depa")),
            rmse_force_mev_per_angstrom=milli(values.get("rmse/f_comp")),
            mae_force_mev_per_angstrom=milli(values.get("mae/f_comp")),
            rmse_stress_gpa=_finite(values.get("rmse/stress"), GPa),
            mae_stress_gpa=_finite(values.get("mae/stress"), GPa),
        )
        names = ("energy", "forces", "stress")
        terms = {name: values.get(f"loss_component/{name}/{side}") for name in names}
        known = all(term is None or math.isfinite(term) for term in terms.values())
        energy, forces = terms["energy"] or 0.0, terms["forces"] or 0.0
        found = shares(energy, forces, {}, terms["stress"]) if known else None
        return GraceRow(curve_point(errors, values["epoch"]), errors, found)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None


def _finite(value: float | None, unit: float = 1.0) -> float | None:
    return value / unit if value is not None and math.isfinite(value) else None
