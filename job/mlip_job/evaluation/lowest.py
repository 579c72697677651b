"""The most stable structures of a dataset: what physics checks begin with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

    from mlip_job.dataset.reading import Labelled
    from mlip_job.dataset.row import FloatArray


@dataclass(frozen=True)
class Stable:
    """The structure of lowest energy of its kind.

    Attributes
    ----------
    row_id, atoms
        Which one.
    energy
        eV/atom, less the reference energies.
    """

    row_id: int
    atoms: Atoms
    energy: float

    def __str__(self) -> str:
        """Say which one it is."""
        return f"row {self.row_id} ({self.atoms.get_chemical_formula('metal')})"


Kind = tuple[tuple[str, ...], bool]
"""Its elements, sorted, and whether it is periodic."""


@dataclass
class LowestStructures:
    """The structure of lowest energy of each kind."""

    by_kind: dict[Kind, Stable] = field(default_factory=dict)

    def offer(self, structure: Labelled, reference_energy: float) -> None:
        """Take a structure where it is lower than the one that is there."""
        atoms = structure.atoms
        energy = (structure.energy - reference_energy) / len(atoms)
        kind = (tuple(sorted(set(atoms.symbols))), bool(atoms.pbc.all()))
        if kind not in self.by_kind or energy < self.by_kind[kind].energy:
            self.by_kind[kind] = Stable(structure.row_id, atoms, energy)

    def join(self, other: LowestStructures) -> None:
        """Take over what is lower elsewhere."""
        for kind, stable in other.by_kind.items():
            if kind not in self.by_kind or stable.energy < self.by_kind[kind].energy:
                self.by_kind[kind] = stable

    def pure(self, element: str) -> Stable | None:
        """Return the lowest periodic structure of one element."""
        return self.by_kind.get(((element,), True))

    def for_dynamics(self) -> Stable | None:
        """Return the lowest structure of those with most elements, periodic ones preferred."""
        kinds = sorted(self.by_kind, key=lambda kind: (kind[1], len(kind[0]), kind[0]))
        return self.by_kind[kinds[-1]] if kinds else None


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
