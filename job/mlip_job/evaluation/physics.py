"""Physics checks that need no reference data: dimers, smoothness and dynamics."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Literal

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers, covalent_radii
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from scipy.signal import find_peaks

from mlip_job.evaluation.energy_volume import check_energy_volume
from mlip_job.evaluation.results import DimerCheck, DynamicsCheck, SmoothnessCheck

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.evaluation.energy_volume import ReferenceStructures, Stable
    from mlip_job.evaluation.potential import Core, Pair, Potential
    from mlip_job.evaluation.results import PhysicsCheck


def check_physics(
    potential: Potential,
    cores: Mapping[Pair, Core] | None,
    *,
    shortest: Mapping[Pair, float],
    stable: ReferenceStructures,
    reference_energies: Mapping[str, float],
    dynamics_steps: int,
) -> tuple[PhysicsCheck, ...]:
    """Return all checks with their verdicts; `cores` is None if the potential can't have any."""
    start = stable.for_dynamics()
    hot = hotter_than(stable.temperature_k(start)) if start is not None else TEMPERATURE_K
    return (
        *check_dimers(potential, shortest, cores),
        *check_smoothness(potential, cores or {}),
        *check_energy_volume(potential, stable, reference_energies, shortest, cores or {}),
        check_dynamics(potential, start, steps=dynamics_steps),
        check_dynamics(potential, start, steps=dynamics_steps, temperature_k=hot),
    )


_NEAREST = 0.4  # times the distance below which the curve must be repulsive
_POINTS_BELOW, _POINTS_ABOVE = 40, 50

_STRONGEST_BOND = 12.0
"""eV; CO has the strongest bond, 11.1 eV (CRC Handbook of Chemistry and Physics)."""
_HUMP = 0.1  # eV

_JUMP_ANGSTROM = 1e-4
_MAX_JUMP_MEV_PER_ANGSTROM = 5.0
"""meV/Å; at this step the residual curvature of a steep ZBL core is below 1."""


def check_dimers(
    potential: Potential, shortest: Mapping[Pair, float], cores: Mapping[Pair, Core] | None
) -> Iterator[DimerCheck]:
    """Yield the curve of every pair of elements; `cores` is None if it can't have any."""
    for pair in combinations_with_replacement(potential.elements, 2):
        core = cores.get(pair) if cores is not None else None
        yield _check_curve(
            potential, pair, shortest.get(pair), core, can_have_core=cores is not None
        )


def check_smoothness(potential: Potential, cores: Mapping[Pair, Core]) -> Iterator[SmoothnessCheck]:
    """Yield the largest jump of each pair's force where the cutoff or the ZBL core switches off."""
    for pair in combinations_with_replacement(potential.elements, 2):
        yield _check_jump(potential, pair, "cutoff", [potential.cutoff])
        if core := cores.get(pair):
            yield _check_jump(potential, pair, "zbl_switch", [core.inner, core.outer])


def _check_curve(
    potential: Potential,
    pair: Pair,
    known: float | None,
    core: Core | None,
    *,
    can_have_core: bool,
) -> DimerCheck:
    radii = sum(float(covalent_radii[atomic_numbers[element]]) for element in pair)
    limit = core.outer if core else known or radii
    below = np.linspace(_NEAREST * limit, limit, _POINTS_BELOW)
    above = np.linspace(limit, potential.cutoff, _POINTS_ABOVE + 1)[1:]
    distances = np.concatenate([below, above])
    free = sum(_energy(potential, Atoms(element)) for element in pair)
    energies = [_energy(potential, _dimer(pair, distance)) - free for distance in distances]
    rises = np.diff(energies) >= 0
    falling = int(rises.argmax()) if rises.any() else len(rises)
    repulsive_below = float(distances[falling]) if falling else None
    hole = _hole(distances, energies)
    name = "-".join(pair)
    if not falling:
        found = f"is attractive at {distances[0]:.2f} Å"
    elif hole is not None:
        found = f"has a hole at {hole:.2f} Å, into which atoms fall"
    else:
        found = f"is repulsive below {repulsive_below:.2f} Å"
    unstable = not falling or hole is not None or energies[0] < energies[_POINTS_BELOW - 1]
    passed = falling >= _POINTS_BELOW - 1 if core else not unstable
    wanted = f"it has to be below {limit:.2f} Å" if core else "there is no ZBL core"
    if not (passed or core):
        wanted += (
            ", which training.zbl: true gives it"
            if can_have_core
            else "; LAMMPS can add one: pair_style hybrid/overlay with zbl"
        )
    return DimerCheck(
        verdict="passed" if passed else "failed",
        # GRACE/FS can't have a core: the check warns, and does not reject.
        unstable=not passed and unstable and can_have_core,
        message=f"{name} {found}; {wanted}",
        elements=pair,
        distances_angstrom=tuple(distances.tolist()),
        energies_ev=tuple(energies),
        shortest_in_data_angstrom=known,
        repulsive_below_angstrom=repulsive_below,
    )


def _hole(distances: FloatArray, energies: Sequence[float]) -> float | None:
    """Return the distance (Å) of an unphysical short-range minimum, or None.

    Such a minimum is deeper than any bond, or lies behind a barrier that atoms can cross.
    """
    inner = np.array(energies[:_POINTS_BELOW])
    deepest = int(inner.argmin())
    if inner[deepest] < inner[-1] - _STRONGEST_BOND:
        return float(distances[deepest])
    humps, _ = find_peaks(inner, prominence=_HUMP)
    return float(distances[inner[: humps[0]].argmin()]) if len(humps) else None


def _check_jump(
    potential: Potential,
    pair: Pair,
    place: Literal["cutoff", "zbl_switch"],
    distances: Sequence[float],
) -> SmoothnessCheck:
    jumps = {distance: abs(_jump(potential, pair, distance)) for distance in distances}
    distance = max(jumps, key=lambda distance: jumps[distance])
    jump = 1000 * jumps[distance]
    where = "cutoff" if place == "cutoff" else "ZBL switch"
    return SmoothnessCheck(
        verdict="passed" if jump <= _MAX_JUMP_MEV_PER_ANGSTROM else "failed",
        message=f"the force of {'-'.join(pair)} jumps by {jump:.2g} meV/Å at the {where}",
        elements=pair,
        place=place,
        distance_angstrom=distance,
        jump_mev_per_angstrom=jump,
    )


def _jump(potential: Potential, pair: Pair, distance: float) -> float:
    """Return the jump of the force at a distance, eV/Å.

    A smooth force changes by F'·h over a step h, while a jump is independent of h. Twice the
    change over half the step minus the change over the whole step is therefore the jump.
    """

    def change(step: float) -> float:
        above, below = (_force(potential, pair, distance + s * step / 2) for s in (1, -1))
        return above - below

    return 2 * change(_JUMP_ANGSTROM / 2) - change(_JUMP_ANGSTROM)


def _dimer(pair: Pair, distance: float) -> Atoms:
    return Atoms(list(pair), positions=[[0, 0, 0], [0, 0, distance]])


def _energy(potential: Potential, atoms: Atoms) -> float:
    return potential.predict(atoms, atoms.get_chemical_formula()).energy


def _force(potential: Potential, pair: Pair, distance: float) -> float:
    what = f"{'-'.join(pair)} at {distance:.3f} Å"
    return float(potential.predict(_dimer(pair, distance), what).forces[1, 2])


TEMPERATURE_K = 300.0
_MIN_ATOMS = 32  # of a supercell
_LIGHT_U = 10.0  # lighter atoms vibrate faster: half the time step
_MAX_DRIFT_MEV_PER_ATOM_PER_PS = 2.0
_MAX_HEATING_K = 3000.0
"""The initial structure is the most stable one: 0.4 eV/atom below it is a collapse."""
_BEYOND = 1.25
_LEAST_HOT_K, _MOST_HOT_K = 1000.0, 3000.0


def hotter_than(data_k: float) -> float:
    """Return a temperature above that of the data, within limits common for crystals.

    A run starts at the minimum of the potential energy and loses half of its kinetic energy.
    """
    return round(min(max(2 * _BEYOND * data_k, _LEAST_HOT_K), _MOST_HOT_K), -1)


def check_dynamics(
    potential: Potential,
    start: Stable | None,
    *,
    steps: int,
    temperature_k: float = TEMPERATURE_K,
) -> DynamicsCheck:
    """Run NVE dynamics of a structure and return the drift of its total energy.

    A crystal is repeated to a supercell. With 0 `steps` there is no run. The permitted drift grows
    with the temperature.
    """
    if start is None or steps == 0:
        why = "evaluation.dynamics_steps is 0" if steps == 0 else "the data holds no structure"
        return DynamicsCheck(
            verdict="skipped",
            message=f"dynamics from {temperature_k:.0f} K not run: {why}",
            temperature_k=temperature_k,
        )
    atoms = _supercell(start.atoms)
    timestep_fs = 0.5 if atoms.get_masses().min() < _LIGHT_U else 1.0
    if temperature_k > TEMPERATURE_K:
        timestep_fs /= 2
    run = _run(potential, atoms, steps, timestep_fs, temperature_k)
    # The energy of a Verlet run oscillates about a constant; its drift is the slope of a line.
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
    """Repeat a crystal along its shortest vector until it is large enough; keep a molecule."""
    cell: Atoms = atoms.copy()
    while cell.pbc.all() and len(cell) < _MIN_ATOMS:
        repeats = [1, 1, 1]
        repeats[int(np.argmin(cell.cell.lengths()))] = 2
        cell = cell.repeat(repeats)
    return cell


def _run(
    potential: Potential, atoms: Atoms, steps: int, timestep_fs: float, temperature_k: float
) -> tuple[FloatArray, FloatArray] | None:
    """Return times (ps) and total energies (eV/atom); None if the structure disintegrates."""
    rng = np.random.default_rng(0)
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature_k)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    Stationary(atoms)
    atoms.calc = potential.calculator
    dynamics = VelocityVerlet(atoms, timestep_fs * units.fs)
    energies = []
    for _ in dynamics.irun(steps):
        if not atoms.get_temperature() < temperature_k + _MAX_HEATING_K:  # also rejects NaN
            return None
        energies.append(atoms.get_total_energy() / len(atoms))
    times: FloatArray = np.arange(len(energies), dtype=np.float64)
    return 1e-3 * timestep_fs * times, np.array(energies)
