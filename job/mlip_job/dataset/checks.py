"""Reject data that pacemaker would mishandle or silently drop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from mlip_job.dataset.row import name_rows
from mlip_job.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlip_job.dataset.collect import Collected
    from mlip_job.dataset.entry import Entries
    from mlip_job.dataset.reference_energies import ReferenceEnergies
    from mlip_job.dataset.row import FloatArray
    from mlip_job.dataset.split import Split

_SUSPICIOUS = 10.0
"""eV/atom. Energies minus correct reference energies are cohesive energies, which are smaller."""

_ENERGY_RANGE = (-20.0, 250.0)
"""eV/atom. Outside this range pacemaker refits the reference energies after a warning
(``pyace.preparedata.ACEDataset.process_dataset``)."""


def require_few_rejections(collected: Collected, max_fraction: float) -> None:
    """Raise `DataError` if more than `max_fraction` of the rows are rejected, or all are."""
    candidates = collected.selected - len(collected.references)
    reasons = "; ".join(
        f"{reason}: {len(rows)} ({name_rows(rows)})"
        for reason, rows in sorted(collected.rejected.items())
    )
    if collected.rejected_count > max_fraction * candidates:
        elsewhere = note_labels_elsewhere(collected)
        raise DataError(
            f"{collected.rejected_count} of {candidates} rows can't be trained on, more than "
            f"dataset.max_rejected_fraction ({max_fraction:g}) allows: {reasons}"
            + (f"; {elsewhere}" if elsewhere else ""),
            hint="correct them, exclude them with database.select, "
            "or raise dataset.max_rejected_fraction",
        )
    if len(collected.entries) == 0:
        raise DataError(
            f"nothing is left to train on: {len(collected.references)} isolated atoms"
            + (f"; {reasons}" if reasons else ""),
            hint="check database.select and training.cutoff",
        )


def note_labels_elsewhere(collected: Collected) -> str | None:
    """Return a note if rows without energy or forces have them under other names."""
    if not collected.labels_elsewhere:
        return None
    places = ", ".join(collected.labels_elsewhere)
    return (
        f"rows without energy or forces seem to hold them in {places}, "
        "which are no labels to ASE: store them as results of a SinglePointCalculator "
        '(docs/dataset.md, "Labels under other names", has the script)'
    )


def require_group_key(entries: Entries, group_by: str | None) -> None:
    """Raise `DataError` if no row has the grouping key, which is probably misspelt."""
    if group_by is not None and not entries.groups:
        raise DataError(
            f"no row has the key_value_pair {group_by!r} that dataset.group_by names",
            hint="check its spelling, or set group_by: null",
        )


def require_configured_elements(
    entries: Entries, configured: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the elements of the data, sorted.

    Raises
    ------
    DataError
        If `configured` is a list and the data has other elements: pacemaker ignores atoms of
        elements that its potential lacks, and one that the data lacks shifts its ZBL pairs.
    """
    found = entries.elements()
    if isinstance(configured, str):
        return found
    for element in found:
        if element not in configured:
            raise DataError(
                f"the data holds {element} ({name_rows(_rows_with(entries, element))}), "
                "which training.elements lacks",
                hint="add it, set elements: auto, or exclude the rows with database.select",
            )
    absent = [element for element in configured if element not in found]
    if absent:
        examples = "; ".join(f"{e}: {name_rows(_rows_with(entries, e)[:3])}" for e in found)
        raise DataError(
            f"training.elements names {', '.join(absent)}, which no structure to train on holds "
            f"(the data has {examples})",
            hint="take it out, set elements: auto, or select rows that hold it",
        )
    return found


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


def require_elements_in_training(entries: Entries, split: Split, elements: Iterable[str]) -> None:
    """Raise `DataError` if an element occurs in test rows only."""
    trained = entries.elements(split.on("train"))
    for element in elements:
        if element not in trained:
            rows = name_rows(_rows_with(entries, element))
            raise DataError(
                f"{element} occurs only in the test side ({rows})",
                hint=f"provide more structures with {element}, or try another dataset.seed "
                "(with dataset.split_key: put some of them on the train side)",
            )


def require_determined_references(
    entries: Entries, references: ReferenceEnergies, fitted: Mapping[str, float]
) -> None:
    """Raise `DataError` if inherited, undetermined reference energies contradict the data.

    Parameters
    ----------
    entries, references
        The rows and the energies per element.
    fitted
        Least-squares energies of the undetermined elements from the rows, eV; empty if the rows
        don't determine them either.
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

    Parameters
    ----------
    entries, corrected
        The rows and their energies minus the reference energies, eV.
    automatic
        Whether these were found in the data; for the hint.

    Raises
    ------
    DataError
        If one is so extreme that pacemaker would replace the reference energies.
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


def _rows_with(entries: Entries, element: str) -> list[int]:
    rows: list[int] = entries.row_ids[entries.holding(element)].tolist()
    return rows


def require_convex_hull(entries: Entries, elements: Sequence[str]) -> None:
    """Raise `ConfigError` if the compositions don't span the convex hull that pacemaker needs.

    Compositions on one line or plane, as those of a pseudo-binary oxide, make a flat simplex, on
    which its hull (``pyace.process_df.compute_convexhull_dist``) fails. A single composition needs
    none.
    """
    compositions = entries.count_by_composition()
    numbers = [chemical_symbols.index(element) for element in elements]
    counts = np.array([[dict(c).get(z, 0) for z in numbers] for c in compositions], np.float64)
    fractions = np.unique(counts / counts.sum(axis=1, keepdims=True), axis=0)
    if len(fractions) == 1:
        return
    dimensions = np.linalg.matrix_rank(fractions[1:] - fractions[0], tol=1e-6)
    if dimensions < len(elements) - 1:
        raise ConfigError(
            "training.weighting.energy_based: the compositions of the data span no convex hull: "
            f"the shares of {', '.join(elements)} vary in {dimensions} of {len(elements) - 1} "
            "directions",
            hint="set training.overrides: {fit: {weighting: {energy: cohesive}}}",
        )
