"""A short run at constant energy, which a potential has to conserve."""

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
_MAX_HEATING = 10.0  # times the initial temperature: the structure flies apart


def check_dynamics(potential: Potential, start: Stable | None, *, steps: int) -> DynamicsCheck:
    """Run a structure at constant energy and return how far its total energy drifts.

    Parameters
    ----------
    potential
        To be checked.
    start
        The structure; a crystal is repeated.
    steps
        Of the run; 0 leaves it out.
    """
    if start is None or steps == 0:
        message = "evaluation.dynamics_steps is 0" if steps == 0 else "the data holds no structure"
        return DynamicsCheck(
            verdict="skipped",
            message=message,
            structure="",
            atoms=0,
            steps=0,
            timestep_fs=0.0,
            temperature_k=TEMPERATURE_K,
            drift_mev_per_atom_per_ps=None,
        )
    atoms = _supercell(start.atoms)
    timestep_fs = 0.5 if atoms.get_masses().min() < _LIGHT_U else 1.0
    run = _run(potential, atoms, steps, timestep_fs)
    # The energy of a Verlet run swings about a constant: what counts is the slope of a line.
    drift = None if run is None else 1000 * float(np.polyfit(*run, 1)[0])
    passed = drift is not None and abs(drift) <= _MAX_DRIFT_MEV_PER_ATOM_PER_PS
    found = "flew apart" if drift is None else f"drifts by {drift:.2g} meV/atom per ps"
    return DynamicsCheck(
        verdict="passed" if passed else "failed",
        message=f"{len(atoms)} atoms of {start} at {TEMPERATURE_K:.0f} K: the energy {found}",
        structure=str(start),
        atoms=len(atoms),
        steps=steps,
        timestep_fs=timestep_fs,
        temperature_k=TEMPERATURE_K,
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
    potential: Potential, atoms: Atoms, steps: int, timestep_fs: float
) -> tuple[FloatArray, FloatArray] | None:
    """Return times (ps) and total energies (eV/atom), or None where the structure flies apart."""
    rng = np.random.default_rng(0)
    spread = np.sqrt(atoms.get_masses() * units.kB * TEMPERATURE_K)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    Stationary(atoms)
    atoms.calc = potential.calculator
    dynamics = VelocityVerlet(atoms, timestep_fs * units.fs)
    energies = []
    for _ in dynamics.irun(steps):
        if not atoms.get_temperature() < _MAX_HEATING * TEMPERATURE_K:  # NaN is not either
            return None
        energies.append(atoms.get_total_energy() / len(atoms))
    times: FloatArray = np.arange(len(energies), dtype=np.float64)
    return 1e-3 * timestep_fs * times, np.array(energies)
