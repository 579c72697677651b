"""Whether a potential behaves like matter where no data says how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.evaluation.cores import cores_of
from mlip_job.evaluation.dimers import check_dimers, check_smoothness
from mlip_job.evaluation.dynamics import TEMPERATURE_K, check_dynamics, hotter_than
from mlip_job.evaluation.energy_volume import check_energy_volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.evaluation.lowest import LowestStructures
    from mlip_job.evaluation.potential import Pair, Potential
    from mlip_job.evaluation.results import PhysicsCheck


def check_physics(
    potential: Potential,
    content: Mapping[str, object],
    *,
    shortest: Mapping[Pair, float],
    lowest: LowestStructures,
    reference_energies: Mapping[str, float],
    dynamics_steps: int,
) -> tuple[PhysicsCheck, ...]:
    """Return all checks, with their verdicts.

    Parameters
    ----------
    potential
        To be checked.
    content
        The same as parsed YAML, which tells where its ZBL cores are.
    shortest
        Shortest distance of each pair of elements in the data, Å.
    lowest
        The most stable structures of the training data.
    reference_energies
        eV per atom.
    dynamics_steps
        Of each run at constant energy.
    """
    cores = cores_of(content)
    start = lowest.for_dynamics()
    hot = hotter_than(lowest.temperature_k(start)) if start is not None else TEMPERATURE_K
    return (
        *check_dimers(potential, shortest, cores),
        *check_smoothness(potential, cores),
        *check_energy_volume(potential, lowest, reference_energies, shortest, cores),
        check_dynamics(potential, start, steps=dynamics_steps),
        check_dynamics(potential, start, steps=dynamics_steps, temperature_k=hot),
    )
