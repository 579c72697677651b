"""The published file has to be the potential that pacemaker measured: figures held against figures.

Pacemaker's RMSEs are plain ones, also where its loss is weighted, over the structures that it
fitted (`pyace.metrics_aggregator.FitMetrics.compute_metrics`). Measured, they agree with those of
the artefact to a relative 3e-7 (its splines, and positions to 1e-8 Å), and artefact and B-basis to
1e-15 eV. The bounds below are far above that, and far below what would matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mlip_job.errors import TrainingError
from mlip_job.evaluation.results import Agreement, Conversion

if TYPE_CHECKING:
    from mlip_job.evaluation.errors import PartTally, SetTally
    from mlip_job.models import Errors

RELATIVE_TOLERANCE = 1e-3
_FLOOR_MEV = 0.01  # where a fit is all but exact, relative differences mean nothing

CONVERSION_TOLERANCE_MEV = 1e-3
"""meV/atom and meV/Å."""

_HINT = (
    "the fit is kept, the file is not published: run again to convert and measure once more; "
    "if it stays, the trainer's environment is at fault (mlip-job check)"
)


def agreement(
    side: Literal["train", "test", "validation"], ours: SetTally | PartTally, theirs: Errors | None
) -> Agreement | None:
    """Hold the errors of the artefact against pacemaker's; None where pacemaker gave none.

    Raises
    ------
    TrainingError
        If they differ; it names both figures.
    """
    if theirs is None:
        return None
    energy, force = theirs.rmse_energy_mev_per_atom, theirs.rmse_force_mev_per_angstrom
    if energy is None or force is None:
        return None
    found = Agreement(
        side=side,
        energy_mev_per_atom=ours.energy.rmse,
        energy_by_pacemaker_mev_per_atom=energy,
        force_mev_per_angstrom=ours.force.rmse,
        force_by_pacemaker_mev_per_angstrom=force,
        relative_tolerance=RELATIVE_TOLERANCE,
    )
    for what, unit, own, given in (
        ("energy", "meV/atom", found.energy_mev_per_atom, energy),
        ("force", "meV/Å", found.force_mev_per_angstrom, force),
    ):
        if abs(own - given) > RELATIVE_TOLERANCE * given + _FLOOR_MEV:
            raise TrainingError(
                f"the potential is not the one that was fitted: its {what} RMSE on the {side} "
                f"{'part' if side == 'validation' else 'set'} "
                f"is {own:.4f} {unit}, pacemaker says {given:.4f} {unit}",
                hint=_HINT,
            )
    return found


def conversion(train: SetTally, test: SetTally) -> Conversion:
    """Hold the artefact against the potential that it was converted from.

    Raises
    ------
    TrainingError
        If they differ.
    """
    structures = train.conversion[0] + test.conversion[0]
    energy = 1000 * max(train.conversion[1], test.conversion[1])
    force = 1000 * max(train.conversion[2], test.conversion[2])
    if max(energy, force) > CONVERSION_TOLERANCE_MEV:
        raise TrainingError(
            f"potential.yace is not what potential.yaml is: on {structures} structures they differ "
            f"by up to {energy:.4g} meV/atom and {force:.4g} meV/Å",
            hint=_HINT,
        )
    return Conversion(
        structures=structures,
        max_energy_difference_mev_per_atom=energy,
        max_force_difference_mev_per_angstrom=force,
    )
