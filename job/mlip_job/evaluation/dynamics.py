"""Short runs at constant energy, which a potential has to conserve, cold and hot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase import units
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

from mlip_job.evaluation.results import DynamicsCheck

if TYPE_CHECKING:
    from ase import Atoms

    from mlip_job.dataset.row import FloatArray
    from mlip_job.evaluation.lowest import Stable
    from mlip_job.evaluation.potential import Potential

TEMPERATURE_K = 300.0
_MIN_ATOMS = 32  # of a supercell
_LIGHT_U = 10.0  # lighter atoms vibrate faster: half the time step
_MAX_DRIFT_MEV_PER_ATOM_PER_PS = 2.0
_MAX_HEATING_K = 3000.0
"""The structure begins as the most stable one: what is 0.4 eV/atom below it is a collapse."""
_BEYOND = 1.25
_LEAST_HOT_K, _MOST_HOT_K = 1000.0, 3000.0


def hotter_than(data_k: float) -> float:
    """Return a temperature beyond that of the data, within limits that any crystal is used at.

    A run begins without potential energy, and ends with half of its kinetic energy.
    """
    return round(min(max(2 * _BEYOND * data_k, _LEAST_HOT_K), _MOST_HOT_K), -1)


def check_dynamics(
    potential: Potential,
    start: Stable | None,
    *,
    steps: int,
    temperature_k: float = TEMPERATURE_K,
) -> DynamicsCheck:
    """Run a structure at constant energy and return how far its total energy drifts.

    Parameters
    ----------
    potential
        To be checked.
    start
        The structure; a crystal is repeated.
    steps
        Of the run; 0 leaves it out.
    temperature_k
        At the start. The drift may be the larger, the hotter it is.
    """
    if start is None or steps == 0:
        why = "evaluation.dynamics_steps is 0" if steps == 0 else "the data holds no structure"
        message = f"dynamics from {temperature_k:.0f} K not run: {why}"
        return DynamicsCheck(
            verdict="skipped",
            message=message,
            structure="",
            atoms=0,
            steps=0,
            timestep_fs=0.0,
            temperature_k=temperature_k,
            drift_mev_per_atom_per_ps=None,
        )
    atoms = _supercell(start.atoms)
    timestep_fs = 0.5 if atoms.get_masses().min() < _LIGHT_U else 1.0
    if temperature_k > TEMPERATURE_K:
        timestep_fs /= 2
    run = _run(potential, atoms, steps, timestep_fs, temperature_k)
    # The energy of a Verlet run swings about a constant: what counts is the slope of a line.
    drift = None if run is None else 1000 * float(np.polyfit(*run, 1)[0])
    most = _MAX_DRIFT_MEV_PER_ATOM_PER_PS * temperature_k / TEMPERATURE_K
    passed = drift is not None and abs(drift) <= most
    found = (
        "they collapsed or flew apart"
        if drift is None
        else f"the energy drifts by {drift:.2g} meV/atom per ps"
    )
    return DynamicsCheck(
        verdict="passed" if passed else "failed",
        unstable=drift is None,
        message=f"{len(atoms)} atoms of {start} from {temperature_k:.0f} K: {found}",
        structure=str(start),
        atoms=len(atoms),
        steps=steps,
        timestep_fs=timestep_fs,
        temperature_k=temperature_k,
        drift_mev_per_atom_per_ps=drift,
    )


def _supercell(atoms: Atoms) -> Atoms:
    """Repeat a crystal along its shortest vector until it is large enough; leave a molecule."""
    cell: Atoms = atoms.copy()
    while cell.pbc.all() and len(cell) < _MIN_ATOMS:
        repeats = [1, 1, 1]
        repeats[int(np.argmin(cell.cell.lengths()))] = 2
        cell = cell.repeat(repeats)
    return cell


def _run(
    potential: Potential, atoms: Atoms, steps: int, timestep_fs: float, temperature_k: float
) -> tuple[FloatArray, FloatArray] | None:
    """Return times (ps) and total energies (eV/atom), or None where the structure does not last."""
    rng = np.random.default_rng(0)
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature_k)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    Stationary(atoms)
    atoms.calc = potential.calculator
    dynamics = VelocityVerlet(atoms, timestep_fs * units.fs)
    energies = []
    for _ in dynamics.irun(steps):
        if not atoms.get_temperature() < temperature_k + _MAX_HEATING_K:  # NaN is not either
            return None
        energies.append(atoms.get_total_energy() / len(atoms))
    times: FloatArray = np.arange(len(energies), dtype=np.float64)
    return 1e-3 * timestep_fs * times, np.array(energies)
