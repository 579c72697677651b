"""An ASE calculator whose energies are those of DFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import all_changes
from pyace import PyACECalculator

from mlip_job.dataset.periodicity import atoms_with_vacuum
from mlip_job.dataset.row import right_handed
from mlip_job.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ase import Atoms

_DEFAULT_PROPERTIES = ("energy", "forces", "stress", "energies")


class GenerationCalculator(PyACECalculator):  # type: ignore[misc] # pyace has no types
    """A published potential as an ASE calculator, with the reference energies added back.

    ``results["gamma"]`` holds the extrapolation grade of each atom where an active set is given.

    `potential` is a ``.yace``, or with an active set the ``.yaml`` that it belongs to.
    """

    atoms: Any  # set by ASE's calculator

    def __init__(
        self,
        potential: Path,
        reference_energies: Mapping[str, float],
        *,
        active_set: Path | None = None,
        label: str = "",
    ) -> None:
        super().__init__(str(potential))
        self.reference_energies = dict(reference_energies)
        self._known = {str(element) for element in self.basis.elements_name}
        self._label = label
        if active_set is not None:
            self.set_active_set(str(active_set))
        self._files = (potential, active_set)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy or pickle it by its source files: the library's objects can't be copied.

        A copy has no results; it recalculates them.
        """
        return _load_again, (*self._files, self.reference_energies, self._label)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = _DEFAULT_PROPERTIES,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Calculate energy, forces and, where there is a cell, stress.

        Slabs and wires, periodic in one or two directions, get vacuum in the others. They have no
        stress: it is one of the cell's volume.

        Raises
        ------
        DataError
            If the structure has an element that the potential lacks, or can't be described by it.
        """
        if atoms is not None:
            self._require_describable(atoms)
        given = self.atoms if atoms is None else atoms
        padded = atoms_with_vacuum(given)
        evaluated = right_handed(padded)
        super().calculate(evaluated, properties, system_changes)
        if evaluated is not given:
            self.atoms = given.copy()  # ASE compares it with the next request
        if padded is not given:
            del self.results["stress"]
        symbols = self.atoms.get_chemical_symbols()
        references = np.array([self.reference_energies[symbol] for symbol in symbols])
        results: dict[str, Any] = self.results
        results["energies"] = results["energies"] + references
        results["energy"] += float(references.sum())
        results["free_energy"] = results["energy"]
        if not self.is_active_set_configured:
            del results["gamma"]  # zeros, which would look like interpolation

    def _require_describable(self, atoms: Atoms) -> None:
        if missing := sorted(set(atoms.get_chemical_symbols()) - self._known):
            raise DataError(
                f"{self._label} knows {', '.join(sorted(self._known))}; the structure has "
                f"{', '.join(missing)} too"
            )


def _load_again(
    potential: Path,
    active_set: Path | None,
    reference_energies: Mapping[str, float],
    label: str,
) -> GenerationCalculator:
    """Rebuild a copied or pickled calculator.

    Raises
    ------
    ConfigError
        If the files that it was loaded from are not on this machine.
    """
    for path in (potential, active_set):
        if path is not None and not path.is_file():
            raise ConfigError(
                f"the copied calculator of {label} needs {path}, which is not on this machine",
                hint="call load_potential where the calculator is used; it fetches the file",
            )
    return GenerationCalculator(potential, reference_energies, active_set=active_set, label=label)
