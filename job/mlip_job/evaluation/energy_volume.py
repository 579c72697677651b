"""Check the energy-volume curve: a single minimum, with the data's volume and bulk modulus."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.eos import EquationOfState
from ase.neighborlist import neighbor_list
from ase.units import GPa

from mlip_job.evaluation.results import EnergyVolumeCheck

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ase import Atoms

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.evaluation.potential import Core, Pair, Potential
    from mlip_job.evaluation.reference_structures import AtRest, ReferenceStructures, Stable
    from mlip_job.evaluation.results import Verdict

# Relative to the structure's volume, which may be unrelaxed; the fit uses 10 % around the minimum.
_VOLUMES = np.linspace(0.76, 1.36, 31)
_STEP = 0.02
_LEAST_VOLUME = 0.4  # a crystal is above 1000 GPa here, with or without a core
_FITTED = 0.101
_EQUATION = "birchmurnaghan"
"""Third order, F. Birch, Phys. Rev. 71, 809 (1947), as in `ase.eos`."""

NOT_POSSIBLE = "energy over volume not possible: no bulk structure"

_DIP = 0.005
"""eV/atom; smaller decreases are ignored."""

_FEWEST_POINTS = 5
_FITTED_OF_DATA = 0.16
_POOR_FIT = 0.005  # eV/atom
_FAR = 0.15  # relative to the most stable structure, whose strain is smaller
_VOLUME_TOLERANCE, _MODULUS_TOLERANCE = 0.03, 0.25


@dataclass(frozen=True)
class Minimum:
    """Volume (Å³/atom) and bulk modulus (GPa) at the minimum of a curve."""

    volume: float
    modulus: float

    def __str__(self) -> str:
        """Format volume and bulk modulus."""
        return f"{self.volume:.2f} Å³ per atom, bulk modulus {self.modulus:.0f} GPa"


def check_energy_volume(
    potential: Potential,
    stable: ReferenceStructures,
    reference_energies: Mapping[str, float],
    shortest: Mapping[Pair, float],
    cores: Mapping[Pair, Core],
) -> Iterator[EnergyVolumeCheck]:
    """Check the most stable bulk of each element, and a second structure.

    Without any bulk structure the most stable slab, wire or molecule is scaled instead. It has
    neither a volume nor a bulk modulus, so this check can fail but not pass. The scan extends to
    the ZBL cores, or without any to the shortest distances of the data (Å).
    """
    scan = _Scan(potential, stable, reference_energies, cores, shortest)
    second = stable.second_bulk()
    if second is None and not any(map(stable.bulk, potential.elements)):
        yield scan.check_without_bulk("-".join(potential.elements))
        return
    checked = []
    for element in potential.elements:
        crystal = stable.bulk(element)
        if crystal is None:
            yield _without_curve(element, f"{NOT_POSSIBLE} of {element} alone in the data")
        else:
            checked.append(crystal.row_id)
            yield scan.check(element, crystal)
    if second is not None and second.row_id not in checked:
        yield scan.check("-".join(sorted(set(second.atoms.symbols))), second)


@dataclass(frozen=True)
class _Scan:
    potential: Potential
    stable: ReferenceStructures
    reference_energies: Mapping[str, float]
    cores: Mapping[Pair, Core]
    shortest: Mapping[Pair, float]

    def check(self, name: str, crystal: Stable) -> EnergyVolumeCheck:
        relative = self._relative_volumes(crystal.atoms)
        energies = self._energies(crystal, relative)
        volumes = crystal.atoms.get_volume() / len(crystal.atoms) * relative
        found = minimum_of(volumes, energies, _at_own_volume(relative))
        wanted = minimum_of_data(self.stable.curve_of(crystal))
        collapse = instability(relative, energies)
        problems = [collapse] if collapse else []
        if found is None and not collapse:
            problems.append("no minimum that an equation of state describes")
        if found and wanted:
            problems += _differences(found, wanted)
        elif not collapse and (shift := _far_from_own(relative, energies)):
            problems.append(shift)
        facts = [str(found)] if found else []
        facts.append(
            f"the data's own: {wanted}" if wanted else "the data has no such curve to compare with"
        )
        return EnergyVolumeCheck(
            verdict="failed" if problems else "passed",
            unstable=collapse is not None,
            message=f"{name} ({crystal}): {'; '.join([*problems, *facts])}",
            element=name,
            structure=str(crystal),
            volumes_angstrom3_per_atom=tuple(volumes.tolist()),
            energies_ev_per_atom=tuple(energies.tolist()),
            minimum_angstrom3_per_atom=found.volume if found else None,
            bulk_modulus_gpa=found.modulus if found else None,
            data_minimum_angstrom3_per_atom=wanted.volume if wanted else None,
            data_bulk_modulus_gpa=wanted.modulus if wanted else None,
        )

    def check_without_bulk(self, name: str) -> EnergyVolumeCheck:
        """Scale a structure with its vacuum; the check can fail but not pass."""
        message = f"{NOT_POSSIBLE} in the data"
        structure = self.stable.largest_set(bulk=False)
        if structure is None or structure.shortest is None:
            return _without_curve(name, message)
        relative = self._relative_volumes(structure.atoms)
        energies = self._energies(structure, relative)
        collapse = instability(relative, energies)
        problem = collapse or _far_from_own(relative, energies)
        if problem is None:
            return _without_curve(name, f"{message}, only {structure}", structure=str(structure))
        return _without_curve(
            name,
            f"{structure}, scaled with its vacuum: {problem}; {message}",
            structure=str(structure),
            verdict="failed",
            unstable=collapse is not None,
        )

    def _relative_volumes(self, atoms: Atoms) -> FloatArray:
        """Return the volumes to scan, extended to the ZBL core or the end of the data."""
        ends = {pair: core.inner for pair, core in self.cores.items()} or self.shortest
        reached = _LEAST_VOLUME
        pairs = neighbor_list("ijd", atoms, self.potential.cutoff)
        for i, j, distance in zip(*pairs, strict=True):
            one, other = sorted((atoms.symbols[i], atoms.symbols[j]))
            reached = max(reached, (ends.get((one, other), 0.0) / distance) ** 3)
        beyond = np.arange(_VOLUMES[0] - _STEP, reached - _STEP, -_STEP)[::-1]
        return np.concatenate([beyond, _VOLUMES])

    def _energies(self, crystal: Stable, relative: FloatArray) -> FloatArray:
        atoms = crystal.atoms
        reference = sum(self.reference_energies[symbol] for symbol in atoms.symbols)
        energies = []
        for volume in relative:
            scaled = atoms.copy()
            scaled.set_cell(atoms.cell * volume ** (1 / 3))
            scaled.positions *= volume ** (1 / 3)
            answer = self.potential.predict(scaled, f"{crystal} at {volume:.2f} of its volume")
            energies.append((answer.energy + reference) / len(atoms))
        return np.array(energies)


def instability(relative: FloatArray, energies: FloatArray) -> str | None:
    """Describe where a structure would collapse or fly apart; None if it is stable.

    Even a high barrier does not make it stable: a bad initial structure, a collision cascade or a
    large time step can cross it, and no force restores the structure.

    Volumes are relative to the structure's volume, in ascending order; energies are per atom.
    """
    bottom = _downhill(energies, _at_own_volume(relative))
    if bottom == len(energies) - 1:
        return f"it has no minimum up to {relative[-1]:.0%} of its volume"
    if bottom == 0:
        return f"it collapses: the energy falls down to {relative[0]:.0%} of its volume"
    lowest = int(energies.argmin())
    if energies[lowest] < energies[bottom] - _DIP:
        how = "collapses" if lowest < bottom else "flies apart"
        return (
            f"it {how}: at {relative[lowest]:.0%} of its volume its energy is "
            f"{energies[bottom] - energies[lowest]:.2g} eV per atom below that of its minimum"
        )
    peak = bottom
    for index in range(bottom - 1, -1, -1):
        if energies[index] > energies[peak]:
            peak = index
        elif energies[index] < energies[peak] - _DIP:
            return (
                f"it collapses under compression: from {relative[peak]:.0%} of its volume on, "
                f"behind a barrier of {energies[peak] - energies[bottom]:.2g} eV per atom, its "
                "energy falls"
            )
    return None


def minimum_of(volumes: FloatArray, energies: FloatArray, start: int) -> Minimum | None:
    """Return the minimum that a crystal relaxes into from a point; None without one."""
    bottom = _downhill(energies, start)
    if bottom in (0, len(energies) - 1):
        return None
    near = np.abs(volumes / volumes[bottom] - 1) < _FITTED
    found = _fit(volumes[near], energies[near])
    return found[0] if found else None


def minimum_of_data(points: Sequence[AtRest]) -> Minimum | None:
    """Return the minimum of the curve in the data; None if its points do not determine one."""
    points = sorted(points, key=lambda point: point.volume)
    if not points:
        return None
    middle = min(points, key=lambda point: point.energy).volume
    near = [point for point in points if abs(point.volume / middle - 1) < _FITTED_OF_DATA]
    volumes = np.array([point.volume for point in near])
    energies = np.array([point.energy for point in near])
    if len(set(volumes.round(2))) < _FEWEST_POINTS:
        return None
    found = _fit(volumes, energies)
    return found[0] if found and found[1] < _POOR_FIT else None


def _differences(found: Minimum, wanted: Minimum) -> Iterator[str]:
    volume = found.volume / wanted.volume - 1
    if abs(volume) > _VOLUME_TOLERANCE:
        yield f"the volume differs by {100 * volume:+.0f} % from the data's"
    modulus = found.modulus / wanted.modulus - 1
    if abs(modulus) > _MODULUS_TOLERANCE:
        yield f"the bulk modulus differs by {100 * modulus:+.0f} % from the data's"


def _far_from_own(relative: FloatArray, energies: FloatArray) -> str | None:
    """Describe how far the most stable structure relaxes from its volume, if too far."""
    minimum = relative[_downhill(energies, _at_own_volume(relative))]
    if abs(minimum - 1) <= _FAR:
        return None
    return f"its minimum is at {minimum:.0%} of the volume that it has in the data"


def _at_own_volume(relative: FloatArray) -> int:
    return int(np.abs(relative - 1).argmin())


def _fit(volumes: FloatArray, energies: FloatArray) -> tuple[Minimum, float] | None:
    """Return the minimum of an equation of state, and its error (eV/atom); None without one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks below detect a poor fit
            equation = EquationOfState(volumes, energies, eos=_EQUATION)
            volume, _, modulus = equation.fit(warn=False)
            fitted = equation.func(volumes, *equation.eos_parameters)
    except (RuntimeError, TypeError, ValueError):  # scipy did not converge
        return None
    if not (volumes[0] < volume < volumes[-1] and modulus > 0):
        return None
    error = float(np.sqrt(np.mean((fitted - energies) ** 2)))
    return Minimum(float(volume), float(modulus / GPa)), error


def _downhill(energies: FloatArray, start: int) -> int:
    """Return the local minimum that a structure relaxes into."""
    while True:
        neighbours = range(max(0, start - 1), min(len(energies), start + 2))
        lower = min(neighbours, key=lambda index: energies[index])
        if energies[lower] >= energies[start]:
            return start
        start = lower


def _without_curve(
    element: str,
    message: str,
    *,
    structure: str = "",
    verdict: Verdict = "skipped",
    unstable: bool = False,
) -> EnergyVolumeCheck:
    return EnergyVolumeCheck(
        verdict=verdict,
        unstable=unstable,
        message=message,
        element=element,
        structure=structure,
        volumes_angstrom3_per_atom=(),
        energies_ev_per_atom=(),
        minimum_angstrom3_per_atom=None,
        bulk_modulus_gpa=None,
    )
