"""Two atoms and their distance: repulsive at short range, smooth everywhere."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from scipy.signal import find_peaks

from mlip_job.evaluation.results import DimerCheck, SmoothnessCheck

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.dataset.row import FloatArray
    from mlip_job.evaluation.cores import Core
    from mlip_job.evaluation.potential import Pair, Potential

_NEAREST = 0.4  # times the distance below which the curve has to be repulsive
_POINTS_BELOW, _POINTS_ABOVE = 40, 50

_STRONGEST_BOND = 12.0
"""eV; that of CO, 11.1 eV, is the strongest (CRC Handbook of Chemistry and Physics)."""
_HUMP = 0.1  # eV

_JUMP_ANGSTROM = 1e-4
_MAX_JUMP_MEV_PER_ANGSTROM = 5.0
"""What is left of the curvature of a steep ZBL core between points so close is below 1."""


def check_dimers(
    potential: Potential, shortest: Mapping[Pair, float], cores: Mapping[Pair, Core]
) -> Iterator[DimerCheck]:
    """Yield the curve of every pair of elements.

    Parameters
    ----------
    potential
        To be checked.
    shortest
        Shortest distance of each pair in the data, Å.
    cores
        ZBL cores; with one, the curve has to be monotonic below it.
    """
    for pair in combinations_with_replacement(potential.elements, 2):
        known = shortest.get(pair)
        core = cores.get(pair)
        yield _check_curve(potential, pair, known, core)


def check_smoothness(potential: Potential, cores: Mapping[Pair, Core]) -> Iterator[SmoothnessCheck]:
    """Yield how large a jump the force of every pair makes where something is switched off."""
    for pair in combinations_with_replacement(potential.elements, 2):
        yield _check_jump(potential, pair, "cutoff", [potential.cutoff])
        if core := cores.get(pair):
            yield _check_jump(potential, pair, "zbl_switch", [core.inner, core.outer])


def _check_curve(
    potential: Potential, pair: Pair, known: float | None, core: Core | None
) -> DimerCheck:
    radii = sum(float(covalent_radii[atomic_numbers[element]]) for element in pair)
    limit = core.outer if core else known or radii
    distances = np.concatenate(
        [
            np.linspace(_NEAREST * limit, limit, _POINTS_BELOW),
            np.linspace(limit, potential.cutoff, _POINTS_ABOVE + 1)[1:],
        ]
    )
    free = sum(_energy(potential, Atoms(element)) for element in pair)
    energies = [_energy(potential, _dimer(pair, distance)) - free for distance in distances]
    falling = 0
    for before, after in pairwise(energies):
        if after >= before:
            break
        falling += 1
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
        wanted += ", which training.zbl: true gives it"
    return DimerCheck(
        verdict="passed" if passed else "failed",
        unstable=not passed and unstable,
        message=f"{name} {found}; {wanted}",
        elements=pair,
        distances_angstrom=tuple(distances.tolist()),
        energies_ev=tuple(energies),
        shortest_in_data_angstrom=known,
        repulsive_below_angstrom=repulsive_below,
    )


def _hole(distances: FloatArray, energies: Sequence[float]) -> float | None:
    """Return the distance (Å) of a minimum at short range that no bond explains, or None.

    One is deeper than any bond, or lies behind a hump that atoms come over.
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

    A smooth force changes by F'·h over a step h, a jump stays as h shrinks: twice the change over
    half the step, less that over the whole one, leaves the jump.
    """

    def change(step: float) -> float:
        above, below = (_force(potential, pair, distance + s * step / 2) for s in (1, -1))
        return above - below

    return 2 * change(_JUMP_ANGSTROM / 2) - change(_JUMP_ANGSTROM)


def _dimer(pair: Pair, distance: float) -> Atoms:
    return Atoms(list(pair), positions=[[0, 0, 0], [0, 0, distance]])


def _energy(potential: Potential, atoms: Atoms) -> float:
    return potential.ask(atoms, atoms.get_chemical_formula()).energy


def _force(potential: Potential, pair: Pair, distance: float) -> float:
    what = f"{'-'.join(pair)} at {distance:.3f} Å"
    return float(potential.ask(_dimer(pair, distance), what).forces[1, 2])
