"""Extrapolation grades: how far an atom's surroundings lie outside of what was trained on.

The grade of an atom is the largest coefficient that its vector of basis functions has in terms of
the active set's, above 1 the potential extrapolates; a structure's is the largest of its atoms.
Source: Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pyace import ACEBBasisSet
from pyace.activelearning import (
    compute_B_projections,
    compute_extrapolation_grade,
    compute_number_of_functions,
)

from mlip_job.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ase import Atoms

    from mlip_job.dataset.row import FloatArray

IndexArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class AtomGrades:
    """Grades of the atoms of one element in a batch of structures.

    Attributes
    ----------
    owners
        Position of each atom's structure in the batch.
    grades
        One per atom.
    projections
        Values of the basis functions, one row per atom.
    """

    owners: IndexArray
    grades: FloatArray
    projections: FloatArray


class Grader:
    """Grades structures by a potential and its active set.

    Parameters
    ----------
    potential
        B-basis potential, ``.yaml``.
    active_set
        Its linear active set as ``pace_activeset`` writes it, ``.asi``. Full ones don't work in
        python-ace 0.4.0rc1, which leaves the derivatives that they are made of at zero.

    Attributes
    ----------
    elements
        Of the potential.
    cutoff
        Å.
    inverse
        Inverted active set of each element's number in the potential.

    Raises
    ------
    IntegrityError
        If the two do not belong together.
    ConfigError
        If the active set is a full one.
    """

    def __init__(self, potential: Path, active_set: Path) -> None:
        self._basis = ACEBBasisSet(str(potential))
        self.elements: tuple[str, ...] = tuple(self._basis.elements_name)
        self.cutoff = float(self._basis.cutoffmax)
        numbers: Mapping[str, int] = self._basis.elements_to_index_map
        functions = compute_number_of_functions(self._basis)
        with np.load(active_set) as stored:
            if set(stored) != set(self.elements):
                raise IntegrityError(
                    f"the active set is one of {', '.join(sorted(stored))}, the potential one of "
                    f"{', '.join(sorted(self.elements))}"
                )
            self.inverse = {numbers[element]: stored[element] for element in self.elements}
        if any(len(matrix) != functions[number] for number, matrix in self.inverse.items()):
            raise ConfigError(
                "candidates are graded by linear active sets; this one is full",
                hint="select with a generation that has evaluation.active_set: linear",
            )

    def grade(self, structures: Sequence[Atoms]) -> dict[int, AtomGrades]:
        """Return the grades of all atoms by the number of their element in the potential."""
        projections, owners = compute_B_projections(
            self._basis, list(structures), return_structure_ind_dict=True
        )
        grades = compute_extrapolation_grade(projections, self.inverse)
        return {
            number: AtomGrades(owners[number], grades[number], projections[number])
            for number in self.inverse
        }
