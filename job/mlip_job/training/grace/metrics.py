"""Gracemaker's metrics files: one JSON object per iteration, also across restarts.

Energies per atom in eV, force components in eV/Å, stress in eV/Å³. A fit that resumes repeats the
iterations after its checkpoint: the later line of an iteration counts.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ase.units import GPa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlip_job.models import FullErrors
from mlip_job.training.loss import shares
from mlip_job.training.process import AppendedLines
from mlip_job.training.summary import CurvePoint, milli

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlip_job.training.summary import LossShares


class GraceRow(BaseModel):
    """One iteration, measured on one set; ``stress`` is None if it is not fitted.

    A structure without a stress counts in its errors as one with a stress of 0, but not in the
    loss.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int = Field(ge=0)
    loss: float
    rmse_energy: float | None = Field(None, alias="rmse/depa")
    mae_energy: float | None = Field(None, alias="mae/depa")
    rmse_force: float | None = Field(None, alias="rmse/f_comp")
    mae_force: float | None = Field(None, alias="mae/f_comp")
    rmse_stress: float | None = Field(None, alias="rmse/stress")
    mae_stress: float | None = Field(None, alias="mae/stress")
    terms: dict[str, float] = Field(default_factory=dict)

    @property
    def point(self) -> CurvePoint:
        """The row as a point of a learning curve."""
        return CurvePoint(
            ladder_step=0,
            cycle=0,
            iteration=self.epoch,
            loss=_finite(self.loss),
            rmse_energy_mev_per_atom=milli(self.rmse_energy),
            rmse_force_mev_per_angstrom=milli(self.rmse_force),
            rmse_stress_gpa=_gpa(self.rmse_stress),
        )

    @property
    def errors(self) -> FullErrors:
        """The errors of this iteration."""
        return FullErrors(
            loss=_finite(self.loss),
            rmse_energy_mev_per_atom=milli(self.rmse_energy),
            mae_energy_mev_per_atom=milli(self.mae_energy),
            rmse_force_mev_per_angstrom=milli(self.rmse_force),
            mae_force_mev_per_angstrom=milli(self.mae_force),
            rmse_stress_gpa=_gpa(self.rmse_stress),
            mae_stress_gpa=_gpa(self.mae_stress),
        )

    @property
    def loss_shares(self) -> LossShares | None:
        """The terms of the loss as fractions of it; None if they are unknown."""
        terms = self.terms
        if not all(map(math.isfinite, terms.values())):
            return None
        energy, forces = terms.get("energy", 0.0), terms.get("forces", 0.0)
        return shares(energy, forces, {}, terms.get("stress"))


class MetricsFollower:
    """Follow a metrics file during a fit; it may not exist yet.

    ``dropped`` counts lines that are truncated or garbage.
    """

    def __init__(self, path: Path, side: str) -> None:
        self.dropped = 0
        self._file = AppendedLines(path)
        self._side = side

    def poll(self) -> Sequence[GraceRow]:
        """Return the complete rows that were added since the last call."""
        block, _overwritten = self._file.read()
        lines = block.decode("utf-8", errors="replace").splitlines()
        rows = [_row_of(line, self._side) for line in lines if line.strip()]
        self.dropped += rows.count(None)
        return [row for row in rows if row is not None]


def read_curve(path: Path, side: str) -> tuple[tuple[GraceRow, ...], int]:
    """Return the rows of a whole fit, one per iteration, and the number of unreadable lines."""
    follower = MetricsFollower(path, side)
    by_epoch: dict[int, GraceRow] = {}
    for row in follower.poll():
        if row.epoch in by_epoch:
            by_epoch = {epoch: kept for epoch, kept in by_epoch.items() if epoch < row.epoch}
        by_epoch[row.epoch] = row
    return tuple(by_epoch.values()), follower.dropped


def best_epoch(second: Sequence[GraceRow], after: int = 0) -> int | None:
    """Return the iteration with the smallest finite loss of those after another one."""
    finite = [row for row in second if row.epoch > after and math.isfinite(row.loss)]
    return min(finite, key=lambda row: row.loss).epoch if finite else None


def best_row(
    train: Sequence[GraceRow], second: Sequence[GraceRow], resumed_from: int = 0
) -> GraceRow | None:
    """Return the training row of the iteration that gracemaker exports.

    It has the smallest loss on the second set since the last start, which resumed from an
    iteration: a restart forgets the best one before. Without a second set it is the last one.
    """
    best = best_epoch(second, resumed_from)
    if best is None:
        return train[-1] if train else None
    return next((row for row in train if row.epoch == best), None)


def _row_of(line: str, side: str) -> GraceRow | None:
    try:
        values: dict[str, Any] = json.loads(line.removeprefix("- "))
        terms = {
            name: values[key]
            for name in ("energy", "forces", "stress")
            if (key := f"loss_component/{name}/{side}") in values
        }
        return GraceRow(**values, loss=values[f"total_loss/{side}"], terms=terms)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _gpa(value: float | None) -> float | None:
    return value / GPa if value is not None and math.isfinite(value) else None
