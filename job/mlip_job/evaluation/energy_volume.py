"""The most stable structures of a dataset, and a check of their energy-volume curves."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase.eos import EquationOfState
from ase.neighborlist import neighbor_list
from ase.units import GPa, kB

from mlip_job.evaluation.results import EnergyVolumeCheck

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ase import Atoms

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.dataset.xyz import Labelled
    from mlip_job.evaluation.potential import Core, Pair, Potential


@dataclass(frozen=True)
class Stable:
    """The structure of lowest energy of its kind.

    The energy is in eV/atom, without the reference energies; the packing, as in `Kind`, is 0
    without a volume; the shortest distance (Å) is None if no atom has a neighbour.
    """

    row_id: int
    atoms: Atoms
    energy: float
    packing: float = 0.0
    shortest: float | None = None

    def __str__(self) -> str:
        """Name row and formula."""
        return f"row {self.row_id} ({self.atoms.get_chemical_formula('metal')})"


class Kind(NamedTuple):
    """The kind of a structure.

    `bulk` distinguishes a crystal or liquid from slabs, wires and molecules. `packing` is the
    shortest distance over the cube root of the volume per atom, in steps of 0.02: 1.12 for fcc and
    hcp, 1.09 for bcc, 1 for simple cubic, 0.87 for diamond.
    """

    elements: tuple[str, ...]
    bulk: bool
    periodic: bool
    config_type: str
    packing: int


class AtRest(NamedTuple):
    """A crystal with zero forces: a point of the energy-volume curve, Å³ and eV per atom."""

    packing: float
    volume: float
    energy: float


_PACKING_STEP = 0.02
_AT_REST_EV_PER_ANGSTROM = 0.05
_SAME_PACKING = 0.01
_ENERGY_STEP = 0.01  # eV/atom


@dataclass
class ReferenceStructures:
    """The stable structures of a dataset, collected one by one.

    A periodic structure with an empty slice wider than `cutoff` (Å) is not bulk. `at_rest` holds
    crystals with zero forces, by reduced formula. `energies` are histograms in steps of
    10 meV/atom, by elements and periodicity.
    """

    cutoff: float = math.inf
    by_kind: dict[Kind, Stable] = field(default_factory=dict)
    at_rest: dict[str, list[AtRest]] = field(default_factory=dict)
    energies: dict[tuple[tuple[str, ...], bool], Counter[int]] = field(default_factory=dict)

    def add(
        self, structure: Labelled, reference_energy: float, shortest: float | None = None
    ) -> None:
        """Add a structure; `shortest` is its shortest distance, Å."""
        atoms = structure.atoms
        energy = (structure.energy - reference_energy) / len(atoms)
        elements, periodic = _elements(atoms), bool(atoms.pbc.all())
        volume = atoms.get_volume() / len(atoms) if periodic else 0.0
        packing = shortest / volume ** (1 / 3) if periodic and shortest is not None else 0.0
        bulk = periodic and vacuum_width(atoms) <= self.cutoff
        config_type = structure.config_type or ""
        kind = Kind(elements, bulk, periodic, config_type, int(packing / _PACKING_STEP))
        self._keep(kind, Stable(structure.row_id, atoms, energy, packing, shortest))
        if periodic and np.abs(structure.forces).max() < _AT_REST_EV_PER_ANGSTROM:
            points = self.at_rest.setdefault(_composition(atoms), [])
            points.append(AtRest(packing, volume, energy))
        counts = self.energies.setdefault((elements, periodic), Counter())
        counts[round(energy / _ENERGY_STEP)] += 1

    def join(self, other: ReferenceStructures) -> None:
        """Add the structures of another batch."""
        self.cutoff = min(self.cutoff, other.cutoff)
        for kind, stable in other.by_kind.items():
            self._keep(kind, stable)
        for formula, points in other.at_rest.items():
            self.at_rest.setdefault(formula, []).extend(points)
        for key, counts in other.energies.items():
            self.energies.setdefault(key, Counter()).update(counts)

    def _keep(self, kind: Kind, stable: Stable) -> None:
        if kind not in self.by_kind or stable.energy < self.by_kind[kind].energy:
            self.by_kind[kind] = stable

    def bulk(self, element: str) -> Stable | None:
        """Return the bulk structure of one element with the lowest energy."""
        return _lowest(s for k, s in self.by_kind.items() if k[:2] == ((element,), True))

    def largest_set(self, *, bulk: bool) -> Stable | None:
        """Return the lowest-energy structure with the most elements, bulk or not."""
        kinds = (kind for kind in self.by_kind if kind.bulk == bulk)
        first = max(kinds, key=lambda k: (k.periodic, len(k.elements), k.elements), default=None)
        return first and _lowest(s for k, s in self.by_kind.items() if k[:3] == first[:3])

    def for_dynamics(self) -> Stable | None:
        """Return the lowest-energy structure with the most elements; bulk is preferred."""
        return self.largest_set(bulk=True) or self.largest_set(bulk=False)

    def second_bulk(self) -> Stable | None:
        """Return a bulk structure other than the most stable one of each element.

        It has the lowest energy of those with the most elements. For a single element, it has the
        lowest energy of those with another packing or config type.
        """
        crystals = {kind: stable for kind, stable in self.by_kind.items() if kind.bulk}
        if not crystals:
            return None
        most = max(len(kind.elements) for kind in crystals)
        if most > 1:
            return _lowest(s for k, s in crystals.items() if len(k.elements) == most)
        first = min(crystals, key=lambda kind: (crystals[kind].energy, kind))
        return _lowest(
            stable
            for kind, stable in crystals.items()
            if abs(kind.packing - first.packing) > 1 or kind.config_type != first.config_type
        )

    def curve_of(self, crystal: Stable) -> tuple[AtRest, ...]:
        """Return the points of a crystal's energy-volume curve in the data."""
        points = self.at_rest.get(_composition(crystal.atoms), ())
        return tuple(p for p in points if abs(p.packing - crystal.packing) < _SAME_PACKING)

    def temperature_k(self, stable: Stable) -> float:
        """Estimate the temperature of the data of the same elements.

        By equipartition a harmonic crystal has 3/2·kT per atom above its lowest energy; the
        estimate uses the 90th percentile of the energies.
        """
        counts = self.energies[_elements(stable.atoms), bool(stable.atoms.pbc.all())]
        energies = np.repeat(list(counts.keys()), list(counts.values()))
        highest = _ENERGY_STEP * float(np.percentile(energies, 90))
        return max(0.0, highest - stable.energy) / (1.5 * kB)


def _elements(atoms: Atoms) -> tuple[str, ...]:
    return tuple(sorted(set(atoms.symbols)))


def _composition(atoms: Atoms) -> str:
    return str(atoms.symbols.formula.reduce()[0].format("metal"))


def _lowest(stables: Iterable[Stable]) -> Stable | None:
    return min(stables, key=lambda stable: (stable.energy, stable.row_id), default=None)


def vacuum_width(atoms: Atoms) -> float:
    """Return the width (Å) of the widest slice parallel to cell faces that holds no atom."""
    heights = 1 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    places = np.sort(atoms.get_scaled_positions(), axis=0)
    gaps = np.diff(places, axis=0, append=places[:1] + 1)
    return float((gaps * heights).max())


# -- energy over volume ---------------------------------------------------------------------------

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


class Minimum(NamedTuple):
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
    ends = {pair: core.inner for pair, core in cores.items()} or shortest

    def curve_of(structure: Stable) -> Curve:
        return scan(potential, structure, reference_energies, ends)

    second = stable.second_bulk()
    if second is None and not any(map(stable.bulk, potential.elements)):
        found = stable.largest_set(bulk=False)
        curve = None if found is None or found.shortest is None else curve_of(found)
        yield _check_without_bulk("-".join(potential.elements), curve)
        return
    checked = []
    for element in potential.elements:
        if (crystal := stable.bulk(element)) is None:
            message = f"{NOT_POSSIBLE} of {element} alone in the data"
            yield EnergyVolumeCheck(verdict="skipped", message=message, element=element)
        else:
            checked.append(crystal.row_id)
            yield _check(element, curve_of(crystal), stable.curve_of(crystal))
    if second is not None and second.row_id not in checked:
        yield _check("-".join(_elements(second.atoms)), curve_of(second), stable.curve_of(second))


class Curve(NamedTuple):
    """A structure, its relative volumes in ascending order, and its energies (eV/atom) there."""

    structure: Stable
    relative: FloatArray
    energies: FloatArray


def scan(
    potential: Potential,
    structure: Stable,
    reference_energies: Mapping[str, float],
    ends: Mapping[Pair, float],
) -> Curve:
    """Scale a structure, down to the ZBL core or the end of the data."""
    atoms, reached = structure.atoms, _LEAST_VOLUME
    for i, j, distance in zip(*neighbor_list("ijd", atoms, potential.cutoff), strict=True):
        one, other = sorted((atoms.symbols[i], atoms.symbols[j]))
        reached = max(reached, (ends.get((one, other), 0.0) / distance) ** 3)
    beyond = np.arange(_VOLUMES[0] - _STEP, reached - _STEP, -_STEP)[::-1]
    relative = np.concatenate([beyond, _VOLUMES])
    reference = sum(reference_energies[symbol] for symbol in atoms.symbols)
    energies = []
    for volume in relative:
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * volume ** (1 / 3))
        scaled.positions *= volume ** (1 / 3)
        found = potential.predict(scaled, f"{structure} at {volume:.2f} of its volume")
        energies.append((found.energy + reference) / len(atoms))
    return Curve(structure, relative, np.array(energies))


def _check(name: str, curve: Curve, of_data: Sequence[AtRest]) -> EnergyVolumeCheck:
    crystal, relative, energies = curve
    volumes = crystal.atoms.get_volume() / len(crystal.atoms) * relative
    found = minimum_of(volumes, energies, _at_own_volume(relative))
    wanted = minimum_of_data(of_data)
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


def _check_without_bulk(name: str, curve: Curve | None) -> EnergyVolumeCheck:
    """Check a structure that is scaled with its vacuum: it can fail but not pass."""
    message = f"{NOT_POSSIBLE} in the data"
    if curve is None:
        return EnergyVolumeCheck(verdict="skipped", message=message, element=name)
    structure, *points = curve
    collapse = instability(*points)
    problem = collapse or _far_from_own(*points)
    return EnergyVolumeCheck(
        verdict="failed" if problem else "skipped",
        unstable=collapse is not None,
        message=f"{structure}, scaled with its vacuum: {problem}; {message}"
        if problem
        else f"{message}, only {structure}",
        element=name,
        structure=str(structure),
    )


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
    compressed = energies[bottom::-1]  # from the minimum to the smallest volume
    peaks = np.maximum.accumulate(compressed)
    (fallen,) = np.nonzero(compressed < peaks - _DIP)
    if not fallen.size:
        return None
    peak = bottom - int(compressed[: fallen[0]].argmax())
    return (
        f"it collapses under compression: from {relative[peak]:.0%} of its volume on, behind a "
        f"barrier of {energies[peak] - energies[bottom]:.2g} eV per atom, its energy falls"
    )


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
    if not points:
        return None
    _, volumes, energies = np.array(sorted(points, key=lambda point: point.volume)).T
    near = np.abs(volumes / volumes[energies.argmin()] - 1) < _FITTED_OF_DATA
    if len(set(volumes[near].round(2))) < _FEWEST_POINTS:
        return None
    found = _fit(volumes[near], energies[near])
    return found[0] if found and found[1] < _POOR_FIT else None


def _differences(found: Minimum, wanted: Minimum) -> Iterator[str]:
    volume, modulus = (ours / theirs - 1 for ours, theirs in zip(found, wanted, strict=True))
    if abs(volume) > _VOLUME_TOLERANCE:
        yield f"the volume differs by {100 * volume:+.0f} % from the data's"
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
