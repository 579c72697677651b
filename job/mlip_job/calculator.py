"""An ASE calculator whose energies are those of DFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from mlip_job.dataset.geometry import atoms_with_vacuum
from mlip_job.dataset.rows import right_handed
from mlip_job.errors import ConfigError, DataError
from mlip_job.evaluation.potential import Potential

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ase import Atoms


class GenerationCalculator(Calculator):
    """A published potential as an ASE calculator, with the reference energies added back.

    ``results["gamma"]`` holds the extrapolation grade of each atom if there is an active set.

    `potential` is a ``.yace``, or with an active set the ``.yaml`` that it belongs to.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 - as in ASE
    atoms: Any  # set by ASE's calculator

    def __init__(
        self,
        potential: Path,
        reference_energies: Mapping[str, float],
        *,
        active_set: Path | None = None,
        label: str = "",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reference_energies = dict(reference_energies)
        self._potential = Potential(potential, active_set)
        self._name = label
        self._files = (potential, active_set)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy or pickle by the source files; the library's objects can't be copied.

        A copy has no results; it recalculates them.
        """
        return _load_again, (*self._files, self.reference_energies, self._name)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Calculate energy, forces and, for a periodic structure, stress.

        Slabs and wires, periodic in one or two directions, get vacuum in the others. They have no
        stress, as it would depend on the volume of the cell.

        Raises
        ------
        DataError
            If the structure has an element that the potential lacks, or can't be described by it.
        """
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        symbols = self.atoms.get_chemical_symbols()
        if missing := sorted(set(symbols) - set(self._potential.elements)):
            raise DataError(
                f"{self._name} knows {', '.join(sorted(self._potential.elements))}; the structure "
                f"has {', '.join(missing)} too"
            )
        padded = atoms_with_vacuum(self.atoms)
        calculator = self._potential.calculator
        calculator.calculate(right_handed(padded))
        results: dict[str, Any] = dict(calculator.results)
        references = np.array([self.reference_energies[symbol] for symbol in symbols])
        results["energies"] = results["energies"] + references
        results["energy"] += float(references.sum())
        results["free_energy"] = results["energy"]
        if padded is not self.atoms:
            del results["stress"]
        if not self._potential.graded:
            del results["gamma"]  # zeros, which would look like interpolation
        self.results = results


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
