"""The most stable structures of a dataset, the references of the physics checks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase.units import kB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ase import Atoms

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.dataset.xyz import Labelled


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
        elements, periodic = tuple(sorted(set(atoms.symbols))), bool(atoms.pbc.all())
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
        kinds = [kind for kind in self.by_kind if kind.bulk == bulk]
        if not kinds:
            return None
        first = max(kinds, key=lambda kind: (kind.periodic, len(kind.elements), kind.elements))
        return _lowest(s for k, s in self.by_kind.items() if k[:3] == first[:3])

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
        first_kind = min(crystals, key=lambda kind: (crystals[kind].energy, kind))
        return _lowest(
            stable
            for kind, stable in crystals.items()
            if abs(kind.packing - first_kind.packing) > 1
            or kind.config_type != first_kind.config_type
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
        key = (tuple(sorted(set(stable.atoms.symbols))), bool(stable.atoms.pbc.all()))
        counts = self.energies[key]
        energies = np.repeat(list(counts.keys()), list(counts.values()))
        highest = _ENERGY_STEP * float(np.percentile(energies, 90))
        return max(0.0, highest - stable.energy) / (1.5 * kB)


def _composition(atoms: Atoms) -> str:
    return str(atoms.symbols.formula.reduce()[0].format("metal"))


def _lowest(stables: Iterable[Stable]) -> Stable | None:
    return min(stables, key=lambda stable: (stable.energy, stable.row_id), default=None)


def vacuum_width(atoms: Atoms) -> float:
    """Return the width (Å) of the widest slice parallel to cell faces that holds no atom."""
    cell: FloatArray = np.array(atoms.cell)
    volume = abs(np.linalg.det(cell))
    widest = 0.0
    for axis in range(3):
        height = volume / np.linalg.norm(np.cross(cell[axis - 2], cell[axis - 1]))
        places = np.sort(atoms.get_scaled_positions()[:, axis])
        gaps = np.diff(np.append(places, places[0] + 1))
        widest = max(widest, float(gaps.max() * height))
    return widest
