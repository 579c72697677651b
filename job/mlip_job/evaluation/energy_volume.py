"""Energy over volume, which has to have one minimum, and that of the data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.eos import EquationOfState
from ase.neighborlist import neighbor_list
from ase.units import GPa

from mlip_job.evaluation.lowest import vacuum_width
from mlip_job.evaluation.results import EnergyVolumeCheck

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ase import Atoms

    from mlip_job.dataset.row import FloatArray
    from mlip_job.evaluation.cores import Core
    from mlip_job.evaluation.lowest import AtRest, LowestStructures, Stable
    from mlip_job.evaluation.potential import Pair, Potential

# Relative to the structure's own, which need not be relaxed; the fit takes 10 % around the minimum.
_VOLUMES = np.linspace(0.76, 1.36, 31)
_STEP = 0.02
_LEAST_VOLUME = 0.4  # there a crystal is under more than 1000 GPa, also where no core begins before
_FITTED = 0.101
_EQUATION = "birchmurnaghan"
"""F. Birch, Phys. Rev. 71, 809 (1947), of third order, as `ase.eos` has it."""

_DIP = 0.005
"""eV/atom; what falls by less is no way down."""
_HIGH_BARRIER = 2.0
"""eV/atom; no simulation passes a barrier of 20,000 K."""

_FEWEST_POINTS = 5
_FITTED_OF_DATA = 0.16
_POOR_FIT = 0.005  # eV/atom
_VOLUME_TOLERANCE, _MODULUS_TOLERANCE = 0.03, 0.25


@dataclass(frozen=True)
class Minimum:
    """Volume (Å³/atom) and bulk modulus (GPa) at the minimum of a curve."""

    volume: float
    modulus: float

    def __str__(self) -> str:
        """Say both."""
        return f"{self.volume:.2f} Å³ per atom, bulk modulus {self.modulus:.0f} GPa"


def check_energy_volume(
    potential: Potential,
    lowest: LowestStructures,
    reference_energies: Mapping[str, float],
    shortest: Mapping[Pair, float],
    cores: Mapping[Pair, Core],
) -> Iterator[EnergyVolumeCheck]:
    """Yield the curve of the most stable crystal of each element, and of a second structure.

    Parameters
    ----------
    potential
        To be checked.
    lowest
        The most stable structures of the data, and the data's own curves.
    reference_energies
        eV per atom.
    shortest
        Shortest distance of each pair in the data, Å: without ZBL, so far the curve has to rise.
    cores
        ZBL cores; with them it has to rise until they take over.
    """
    scan = _Scan(potential, lowest, reference_energies, shortest, cores)
    checked = []
    for element in potential.elements:
        crystal = lowest.pure(element)
        if crystal is None:
            yield _skipped(element, f"the data holds no crystal of {element} alone")
        elif vacuum_width(crystal.atoms) > potential.cutoff:
            message = f"the most stable structure of {element}, {crystal}, has a vacuum"
            yield _skipped(element, message)
        else:
            checked.append(crystal.row_id)
            yield scan.check(element, crystal)
    second = lowest.second(potential.cutoff)
    if second is not None and second.row_id not in checked:
        yield scan.check("-".join(sorted(set(second.atoms.symbols))), second)


@dataclass(frozen=True)
class _Scan:
    potential: Potential
    lowest: LowestStructures
    reference_energies: Mapping[str, float]
    shortest: Mapping[Pair, float]
    cores: Mapping[Pair, Core]

    def check(self, name: str, crystal: Stable) -> EnergyVolumeCheck:
        atoms = crystal.atoms
        reach = _reach(atoms, self.cores, self.shortest)
        beyond = _beyond(reach) if self.cores else np.empty(0)
        relative = np.concatenate([beyond, _VOLUMES])
        energies = self._energies(crystal, relative)
        own_volume = atoms.get_volume() / len(atoms)
        volumes = own_volume * relative
        found = minimum_of(volumes, energies, own_volume)
        demanded = relative if self.cores else relative[relative >= reach]
        collapse = instability(volumes, energies, own_volume, own_volume * demanded[0])
        wanted = minimum_of_data(self.lowest.curve_of(crystal))
        problems = [collapse] if collapse else []
        if found is None and not collapse:
            problems.append("no minimum that an equation of state describes")
        problems += _differences(found, wanted) if found and wanted else []
        facts = [str(found)] if found else []
        facts += [f"the data's own: {wanted}"] if wanted else []
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

    def _energies(self, crystal: Stable, relative: FloatArray) -> FloatArray:
        atoms = crystal.atoms
        reference = sum(self.reference_energies[symbol] for symbol in atoms.symbols)
        energies = []
        for volume in relative:
            scaled = atoms.copy()
            scaled.set_cell(atoms.cell * volume ** (1 / 3), scale_atoms=True)
            answer = self.potential.ask(scaled, f"{crystal} at {volume:.2f} of its volume")
            energies.append((answer.energy + reference) / len(atoms))
        return np.array(energies)


def instability(
    volumes: FloatArray, energies: FloatArray, start: float, reach: float
) -> str | None:
    """Return in words where a crystal would collapse or fly apart, or None.

    Parameters
    ----------
    volumes, energies
        The curve, from the smallest volume.
    start
        The volume that the crystal begins with.
    reach
        Down to this volume the curve has to rise towards compression.
    """
    bottom = _downhill(energies, int(np.abs(volumes - start).argmin()))
    if bottom == len(energies) - 1:
        return f"it has no minimum up to {volumes[-1]:.1f} Å³ per atom"
    if bottom == 0:
        return f"it collapses: the energy falls down to {volumes[0]:.1f} Å³ per atom"
    lowest = int(energies.argmin())
    if energies[lowest] < energies[bottom] - _DIP:
        how = "collapses" if lowest < bottom else "flies apart"
        return (
            f"it {how}: at {volumes[lowest]:.1f} Å³ per atom its energy is "
            f"{energies[bottom] - energies[lowest]:.2g} eV per atom below that of its minimum"
        )
    peak = bottom
    for index in range(bottom - 1, -1, -1):
        if volumes[index] < reach:
            break
        if energies[index] > energies[peak]:
            peak = index
        elif energies[index] < energies[peak] - _DIP:
            barrier = energies[peak] - energies[bottom]
            if barrier > _HIGH_BARRIER:
                break
            return (
                f"it collapses under compression: from {volumes[peak]:.1f} Å³ per atom on, "
                f"{barrier:.2g} eV per atom above its minimum, its energy falls"
            )
    return None


def minimum_of(volumes: FloatArray, energies: FloatArray, start: float) -> Minimum | None:
    """Return the minimum that a crystal would relax into, or None where there is none."""
    bottom = _downhill(energies, int(np.abs(volumes - start).argmin()))
    if bottom in (0, len(energies) - 1):
        return None
    near = np.abs(volumes / volumes[bottom] - 1) < _FITTED
    found = _fit(volumes[near], energies[near])
    return found[0] if found else None


def minimum_of_data(points: Sequence[AtRest]) -> Minimum | None:
    """Return the minimum of the data's own curve; None where its points determine none."""
    points = sorted(points, key=lambda point: point.volume)
    if not points:
        return None
    middle = min(points, key=lambda point: point.energy).volume
    near = [point for point in points if abs(point.volume / middle - 1) < _FITTED_OF_DATA]
    volumes, energies = (np.array([getattr(p, n) for p in near]) for n in ("volume", "energy"))
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


def _reach(atoms: Atoms, cores: Mapping[Pair, Core], shortest: Mapping[Pair, float]) -> float:
    """Return the relative volume where a core takes over, or else where the data end."""
    ends = {pair: core.inner for pair, core in cores.items()} or shortest
    reached = 0.0
    first, second, distances = neighbor_list("ijd", atoms, 1.5 * _spacing(atoms))
    for i, j, distance in zip(first, second, distances, strict=True):
        one, other = sorted((atoms.symbols[i], atoms.symbols[j]))
        reached = max(reached, (ends.get((one, other), 0.0) / distance) ** 3)
    return reached


def _spacing(atoms: Atoms) -> float:
    """Return the distance of nearest neighbours in a close packing of the same density, Å."""
    return float((2**0.5 * atoms.get_volume() / len(atoms)) ** (1 / 3))


def _beyond(reach: float) -> FloatArray:
    """Return relative volumes below the usual ones, down to where a core takes over."""
    least = max(reach, _LEAST_VOLUME)
    volumes: FloatArray = np.arange(_VOLUMES[0] - _STEP, least - _STEP, -_STEP)[::-1]
    return volumes


def _fit(volumes: FloatArray, energies: FloatArray) -> tuple[Minimum, float] | None:
    """Return the minimum of an equation of state, and its error (eV/atom); None without one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a poor fit shows in what is checked below
            equation = EquationOfState(volumes, energies, eos=_EQUATION)
            volume, _, modulus = equation.fit(warn=False)
            fitted = equation.func(volumes, *equation.eos_parameters)
    except (RuntimeError, TypeError, ValueError):  # scipy finds no parameters
        return None
    if not (volumes[0] < volume < volumes[-1] and modulus > 0):
        return None
    error = float(np.sqrt(np.mean((fitted - energies) ** 2)))
    return Minimum(float(volume), float(modulus / GPa)), error


def _downhill(energies: FloatArray, start: int) -> int:
    """Return the local minimum that a structure would relax into."""
    while True:
        neighbours = range(max(0, start - 1), min(len(energies), start + 2))
        lower = min(neighbours, key=lambda index: energies[index])
        if energies[lower] >= energies[start]:
            return start
        start = lower


def _skipped(element: str, message: str) -> EnergyVolumeCheck:
    return EnergyVolumeCheck(
        verdict="skipped",
        message=message,
        element=element,
        structure="",
        volumes_angstrom3_per_atom=(),
        energies_ev_per_atom=(),
        minimum_angstrom3_per_atom=None,
        bulk_modulus_gpa=None,
    )
