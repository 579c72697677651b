"""Reference energies: what one atom of each element contributes before the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from ase.data import chemical_symbols

from mlip_job.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlip_job.dataset.record import ReferenceSource
    from mlip_job.dataset.row import FloatArray

Composition = tuple[tuple[int, int], ...]
"""Pairs of atomic number and count, sorted: ``((28, 1), (29, 3))`` is Cu3Ni."""

_DECIMALS = 8
"""Fitted energies are rounded to 1e-8 eV: the last bits differ between linear algebra libraries,
and the dataset's identity must not."""


class LabelledComposition(Protocol):
    """A row, as far as the fit is concerned."""

    @property
    def row_id(self) -> int:
        """Id in the database."""

    @property
    def composition(self) -> Composition:
        """What the row is made of."""

    @property
    def energy(self) -> float:
        """Total energy, eV."""


@dataclass(frozen=True)
class ReferenceEnergies:
    """Energies per element (eV), where each comes from, and what the user should know."""

    energies: dict[str, float]
    sources: dict[str, ReferenceSource]
    notes: tuple[str, ...] = ()

    def corrected(self, composition: Composition, energy: float) -> float:
        """Return the energy (eV) that pacemaker fits: `energy` less the reference energies."""
        return energy - sum(n * self.energies[chemical_symbols[z]] for z, n in composition)


def configured_references(
    setting: Mapping[str, float] | Literal[0], elements: Sequence[str]
) -> ReferenceEnergies:
    """Take the energies from the configuration; 0 is zero for every element.

    Raises
    ------
    ConfigError
        If an element of the data has none.
    """
    given = dict.fromkeys(elements, 0.0) if setting == 0 else setting
    missing = [element for element in elements if element not in given]
    if missing:
        raise ConfigError(
            f"dataset.reference_energies has no energy for {', '.join(missing)}",
            hint="add it, or use reference_energies: auto",
        )
    return ReferenceEnergies(
        {element: float(given[element]) for element in elements},
        dict.fromkeys(elements, "configured"),
    )


def automatic_references(
    elements: Sequence[str],
    *,
    inherited: Mapping[str, float],
    isolated: Iterable[LabelledComposition],
    training: Sequence[LabelledComposition],
    tolerance: float,
) -> ReferenceEnergies:
    """Find the energies: inherited as they are, else of isolated atoms, else by least squares.

    Parameters
    ----------
    elements
        Those of the data.
    inherited
        The parent's energies, eV. They are kept even for elements that left the data, so that a
        later generation finds them again.
    isolated
        Single atoms with their energies.
    training
        The training rows. E/n - Σ known = Σ x·e is solved over them for the elements that are
        left, x being atomic fractions; the solution of smallest norm where there are several.
    tolerance
        eV. Isolated atoms of one element that differ by more are an error.

    Raises
    ------
    DataError
        If the isolated atoms of an element disagree.
    """
    energies = dict(inherited)
    sources: dict[str, ReferenceSource] = dict.fromkeys(inherited, "inherited")
    for element, energy in _mean_of_isolated(isolated, set(elements) - set(energies), tolerance):
        energies[element], sources[element] = energy, "isolated_atom"
    unknown = [element for element in elements if element not in energies]
    notes: tuple[str, ...] = ()
    if unknown:
        fitted, notes = _fit(unknown, energies, training)
        energies |= fitted
        sources |= dict.fromkeys(unknown, "least_squares")
    return ReferenceEnergies(
        dict(sorted(energies.items())), dict(sorted(sources.items())), tuple(notes)
    )


def _mean_of_isolated(
    isolated: Iterable[LabelledComposition], wanted: set[str], tolerance: float
) -> Iterable[tuple[str, float]]:
    by_element: dict[str, list[LabelledComposition]] = {}
    for atom in isolated:
        by_element.setdefault(chemical_symbols[atom.composition[0][0]], []).append(atom)
    for element in sorted(wanted & by_element.keys()):
        atoms = sorted(by_element[element], key=lambda atom: atom.energy)
        if atoms[-1].energy - atoms[0].energy > tolerance:
            raise DataError(
                f"isolated {element} atoms disagree: row {atoms[0].row_id} has "
                f"{atoms[0].energy:.6f} eV, row {atoms[-1].row_id} has {atoms[-1].energy:.6f} eV",
                hint="keep one of them with database.select, give dataset.reference_energies, "
                "or raise dataset.duplicate_tolerance",
            )
        yield element, round(sum(atom.energy for atom in atoms) / len(atoms), _DECIMALS)


def _fit(
    unknown: Sequence[str],
    known: Mapping[str, float],
    training: Sequence[LabelledComposition],
) -> tuple[dict[str, float], tuple[str, ...]]:
    columns = {element: column for column, element in enumerate(unknown)}
    fractions: FloatArray = np.zeros((len(training), len(unknown)))
    energies: FloatArray = np.zeros(len(training))
    for line, row in enumerate(training):
        atoms = sum(count for _, count in row.composition)
        energies[line] = row.energy / atoms
        for number, count in row.composition:
            element = chemical_symbols[number]
            if element in columns:
                fractions[line, columns[element]] = count / atoms
            else:
                energies[line] -= known[element] * count / atoms
    solution, _, rank, _ = np.linalg.lstsq(fractions, energies, rcond=1e-8)
    notes: tuple[str, ...] = ()
    if rank < len(unknown):
        notes = (
            f"the compositions can't tell the reference energies of {', '.join(unknown)} apart: "
            "the smallest ones that fit were taken; isolated atoms would settle them",
        )
    return {
        element: round(float(solution[column]), _DECIMALS) + 0.0
        for element, column in columns.items()
    }, notes
