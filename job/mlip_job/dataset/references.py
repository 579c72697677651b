"""Reference energies: the energy per atom of each element, subtracted before the fit."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from ase.data import chemical_symbols

from mlip_job.dataset.rows import Composition, name_rows
from mlip_job.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mlip_job.dataset.record import ReferenceSource
    from mlip_job.dataset.rows import BoolArray, Entries, FloatArray
    from mlip_job.dataset.validation import IsolatedAtom


_SUSPICIOUS = 10.0
"""eV/atom. Energies minus correct reference energies are cohesive energies, which are smaller."""

_ENERGY_RANGE = (-20.0, 250.0)
"""eV/atom. Outside this range pacemaker refits the reference energies after a warning
(``pyace.preparedata.ACEDataset.process_dataset``)."""

_SAME_REFERENCE = 1e-6
"""eV. Configured energies may be rounded."""

_DECIMALS = 8
"""Fitted energies are rounded to 1e-8 eV: the last bits differ between linear algebra libraries,
and the dataset's identity must not."""


Energies = dict[Composition, tuple[int, float]]
"""The rows of each composition: how many there are, and the sum of their energies (eV)."""


def by_composition(entries: Entries, chosen: BoolArray) -> Energies:
    """Return the energies of the chosen entries by composition."""
    codes, kinds = entries.composition_codes[chosen], len(entries.compositions)
    counts = np.bincount(codes, minlength=kinds).tolist()
    totals = np.bincount(codes, weights=entries.energies[chosen], minlength=kinds).tolist()
    energies = zip(entries.compositions, counts, totals, strict=True)
    return {composition: (rows, total) for composition, rows, total in energies if rows}


@dataclass(frozen=True)
class ReferenceEnergies:
    """Energies per element (eV), their origins, and notes for the user."""

    energies: dict[str, float]
    sources: dict[str, ReferenceSource]
    notes: tuple[str, ...] = ()

    def corrected(self, entries: Entries) -> FloatArray:
        """Return the energies (eV) minus the reference energies, as pacemaker fits them."""
        references = np.array([self.of(c) for c in entries.compositions], dtype=np.float64)
        return entries.energies - references[entries.composition_codes]

    def of(self, composition: Composition) -> float:
        """Return the sum of the reference energies (eV) of so many atoms."""
        return sum(count * self.energies[chemical_symbols[number]] for number, count in composition)


def configured_references(
    setting: Mapping[str, float] | Literal[0], elements: Sequence[str]
) -> ReferenceEnergies:
    """Return the configured energies; 0 stands for zero for every element.

    Raise `ConfigError` if an element of the data has none.
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
    undetermined: Iterable[str] = (),
    isolated: Iterable[IsolatedAtom],
    isolated_first: bool = False,
    training: Energies,
    tolerance: float,
) -> ReferenceEnergies:
    """Determine the energies: inherited, else of isolated atoms, else by least squares.

    Inherited ones (eV) are kept even for elements that left the data, so that a later generation
    finds them again; `undetermined` are those that no composition of the parent's data could tell
    apart. With `isolated_first`, isolated atoms replace them: the fit starts from scratch. For the
    elements that are left, E/n - Σ known = Σ x·e is solved over the training rows, x being atomic
    fractions; the solution of smallest norm where there are several. Isolated atoms of one element
    may differ by `tolerance` (eV).

    Raise `DataError` if the isolated atoms of an element disagree.
    """
    energies = dict(inherited)
    sources: dict[str, ReferenceSource] = dict.fromkeys(inherited, "inherited")
    sources |= dict.fromkeys(undetermined, "undetermined")
    notes = []
    for element, energy in _mean_of_isolated(isolated, set(elements), tolerance):
        if element not in inherited or isolated_first:
            energies[element], sources[element] = energy, "isolated_atom"
            if abs(energy - inherited.get(element, energy)) > tolerance:
                notes.append(
                    f"the reference energy of {element} is that of its isolated atoms, "
                    f"{energy:.4f} eV, and no longer {inherited[element]:.4f} eV as in the "
                    "generation before: this fit starts from no potential"
                )
        elif abs(energy - inherited[element]) > tolerance:
            notes.append(
                f"isolated {element} atoms have {energy:.4f} eV, but the reference energy of the "
                f"generation before, {inherited[element]:.4f} eV, is kept; to take theirs, set "
                f"dataset.reference_energies: {{{element}: {energy:.4f}, …}} and "
                "training.start_from: none"
            )
    unknown = [element for element in elements if element not in energies]
    if unknown:
        fitted, determined = fit_references(unknown, energies, training)
        energies |= fitted
        sources |= dict.fromkeys(unknown, "least_squares" if determined else "undetermined")
        notes.append(_consequence(unknown, elements, determined=determined))
    return ReferenceEnergies(
        dict(sorted(energies.items())), dict(sorted(sources.items())), tuple(notes)
    )


def _consequence(unknown: Sequence[str], elements: Sequence[str], *, determined: bool) -> str:
    named = ", ".join(unknown)
    if not determined:
        return (
            f"the compositions can't tell the reference energies of {named} apart: the smallest "
            "ones that fit were taken; isolated atoms would settle them"
        )
    if len(unknown) < len(elements):
        return (
            f"reference energies of {named} by least squares, the others from isolated atoms: "
            "energies of compounds mix both; isolated atoms of every element would not"
        )
    return (
        f"reference energies of {named} by least squares: energies are relative to the mean of "
        "the training structures, not to isolated atoms"
    )


def require_references_of_parent(
    references: ReferenceEnergies, parent: Mapping[str, float]
) -> None:
    """Require that configured energies equal those of the start potential.

    Raise `ConfigError` if an element has a different energy: the start potential would be wrong by
    the difference.
    """
    for element, energy in references.energies.items():
        if element in parent and abs(energy - parent[element]) > _SAME_REFERENCE:
            raise ConfigError(
                f"dataset.reference_energies gives {energy:.6f} eV for {element}, but the "
                f"generation that the fit starts from has {parent[element]:.6f} eV",
                hint="use reference_energies: auto, which keeps the parent's, or set "
                "training.start_from: none",
            )


def _mean_of_isolated(
    isolated: Iterable[IsolatedAtom], wanted: set[str], tolerance: float
) -> Iterator[tuple[str, float]]:
    by_element: defaultdict[str, list[IsolatedAtom]] = defaultdict(list)
    for atom in isolated:
        by_element[atom.element].append(atom)
    for element in sorted(wanted & by_element.keys()):
        atoms = sorted(by_element[element], key=lambda atom: atom.energy)
        low, high = atoms[0], atoms[-1]
        if high.energy - low.energy > tolerance:
            raise DataError(
                f"isolated {element} atoms disagree: row {low.row_id} has {low.energy:.6f} eV, "
                f"row {high.row_id} has {high.energy:.6f} eV",
                hint="keep one of them with database.select, give dataset.reference_energies, "
                "or raise dataset.duplicate_tolerance",
            )
        yield element, round(sum(atom.energy for atom in atoms) / len(atoms), _DECIMALS)


def fit_references(
    unknown: Sequence[str], known: Mapping[str, float], training: Energies
) -> tuple[dict[str, float], bool]:
    """Fit energies (eV) by least squares; return whether the compositions determine them.

    Rows of one composition enter as their mean, weighted by their number.
    """
    columns = {element: column for column, element in enumerate(unknown)}
    fractions: FloatArray = np.zeros((len(training), len(unknown)))
    energies: FloatArray = np.zeros(len(training))
    for line, composition in enumerate(sorted(training)):
        rows, total = training[composition]
        atoms = sum(count for _, count in composition)
        energies[line] = total / rows / atoms
        for number, count in composition:
            element = chemical_symbols[number]
            if element in columns:
                fractions[line, columns[element]] = count / atoms
            else:
                energies[line] -= known[element] * count / atoms
        fractions[line] *= math.sqrt(rows)
        energies[line] *= math.sqrt(rows)
    solution, _, rank, _ = np.linalg.lstsq(fractions, energies, rcond=1e-8)
    fitted = {
        element: round(float(solution[column]), _DECIMALS) + 0.0
        for element, column in columns.items()
    }
    return fitted, bool(rank == len(unknown))


def note_extreme_energies(entries: Entries, corrected: FloatArray) -> str | None:
    """Return a note if energies minus reference energies are far from cohesive energies."""
    values = corrected / entries.atoms
    rows = entries.row_ids[np.abs(values) > _SUSPICIOUS].tolist()
    if not rows:
        return None
    return (
        f"energies less the reference energies are beyond ±{_SUSPICIOUS:g} eV/atom "
        f"({name_rows(rows)}): strongly compressed structures, or wrong reference energies"
    )


def require_determined_references(
    entries: Entries, references: ReferenceEnergies, fitted: Mapping[str, float]
) -> None:
    """Raise `DataError` if inherited, undetermined reference energies contradict the data.

    `fitted` are least-squares energies of the undetermined elements from the rows, eV; empty if the
    rows don't determine them either.
    """
    undetermined = [e for e, source in references.sources.items() if source == "undetermined"]
    if not (undetermined and fitted):
        return
    values = references.corrected(entries) / entries.atoms
    wrong = entries.row_ids[np.abs(values - np.median(values)) > _SUSPICIOUS].tolist()
    if wrong or abs(float(np.median(values))) > _SUSPICIOUS:
        given = ", ".join(f"{e}: {fitted[e]:.4f}" for e in undetermined)
        raise DataError(
            f"the reference energies of {', '.join(undetermined)} come from a generation whose "
            "compositions could not tell them apart, and these data contradict them: energies "
            f"less the reference energies reach from {values.min():.3f} to {values.max():.3f} "
            f"eV/atom ({name_rows(wrong or entries.row_ids.tolist())})",
            hint=f"set dataset.reference_energies: {{{given}}} (a fit to these rows) and "
            "training.start_from: none, or add isolated atoms to a new family",
        )


def require_fitting_energies(
    entries: Entries, corrected: FloatArray, *, automatic: bool
) -> tuple[float, float]:
    """Return the smallest and largest corrected energy, eV/atom.

    `corrected` are energies minus the reference energies, eV, which are `automatic` if they were
    found in the data.

    Raise `DataError` if one is so extreme that pacemaker would replace the reference energies.
    """
    values = corrected / entries.atoms
    smallest, largest = float(values.min()), float(values.max())
    low, high = _ENERGY_RANGE
    extreme = entries.row_ids[~((values >= low) & (values <= high))].tolist()
    if extreme:
        raise DataError(
            f"energies less the reference energies reach from {smallest:.3f} to "
            f"{largest:.3f} eV/atom; pacemaker takes {low:g} to {high:g} ({name_rows(extreme)})",
            hint="check the energies of these rows, and that isolated atoms and the parent "
            "generation were computed with the same settings"
            if automatic
            else "use dataset.reference_energies: auto",
        )
    return smallest, largest
