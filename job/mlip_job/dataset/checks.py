"""Refuse data that pacemaker would train on wrongly, or not at all without a word."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ase.data import chemical_symbols

from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlip_job.dataset.entry import Entry
    from mlip_job.dataset.intake import Intake
    from mlip_job.dataset.reference_energies import ReferenceEnergies
    from mlip_job.dataset.split import Side

_SHOWN = 10
"""Row ids in a message."""

_ENERGY_RANGE = (-20.0, 250.0)
"""eV/atom. Outside of it pacemaker refits the reference energies by itself, after a warning
(``pyace.preparedata.ACEDataset.process_dataset``)."""


def require_few_rejections(intake: Intake, max_fraction: float) -> None:
    """Raise `DataError` if more than `max_fraction` of the rows are rejected, or all are."""
    candidates = intake.selected - len(intake.references)
    reasons = "; ".join(
        f"{reason}: {len(rows)} ({_rows(rows)})" for reason, rows in sorted(intake.rejected.items())
    )
    if intake.rejected_count > max_fraction * candidates:
        raise DataError(
            f"{intake.rejected_count} of {candidates} rows can't be trained on, more than "
            f"dataset.max_rejected_fraction ({max_fraction:g}) allows: {reasons}",
            hint="correct them, exclude them with database.select, "
            "or raise dataset.max_rejected_fraction",
        )
    if not intake.entries:
        raise DataError(
            f"nothing is left to train on: {len(intake.references)} isolated atoms"
            + (f"; {reasons}" if reasons else ""),
            hint="check database.select and training.cutoff",
        )


def require_consistent_duplicates(entries: Iterable[Entry], tolerance: float) -> int:
    """Return how many rows repeat an earlier structure.

    Raises
    ------
    DataError
        If identical structures have energies more than `tolerance` eV/atom apart.
    """
    extremes: dict[str, tuple[Entry, Entry]] = {}
    repeats = 0
    for entry in entries:
        low, high = extremes.get(entry.fingerprint, (entry, entry))
        repeats += low is not entry
        if entry.energy < low.energy:
            low = entry
        elif entry.energy > high.energy:
            high = entry
        extremes[entry.fingerprint] = low, high
        if high.energy - low.energy > tolerance * entry.atoms:
            raise DataError(
                f"rows {low.row_id} and {high.row_id} hold the same structure with different "
                f"energies: {low.energy:.6f} and {high.energy:.6f} eV",
                hint="exclude one of them with database.select "
                f"(dataset.duplicate_tolerance is {tolerance:g} eV/atom)",
            )
    return repeats


def require_group_key(entries: Iterable[Entry], group_by: str | None) -> None:
    """Raise `DataError` if no row has the key that groups them: it is misspelt."""
    if group_by is not None and all(entry.group is None for entry in entries):
        raise DataError(
            f"no row has the key_value_pair {group_by!r} that dataset.group_by names",
            hint="check its spelling, or set group_by: null",
        )


def require_configured_elements(
    entries: Iterable[Entry], configured: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the elements of the data, sorted.

    Raises
    ------
    DataError
        If `configured` is a list and the data has other elements: pacemaker ignores atoms of
        elements that its potential lacks, and one that the data lacks shifts its ZBL pairs.
    """
    rows = _rows_by_element(entries)
    found = tuple(sorted(rows))
    if isinstance(configured, str):
        return found
    for element in found:
        if element not in configured:
            raise DataError(
                f"the data holds {element} ({_rows(rows[element])}), which training.elements lacks",
                hint="add it, set elements: auto, or exclude the rows with database.select",
            )
    absent = [element for element in configured if element not in rows]
    if absent:
        examples = "; ".join(f"{element}: {_rows(rows[element][:3])}" for element in found)
        raise DataError(
            f"training.elements names {', '.join(absent)}, which no structure to train on holds "
            f"(the data has {examples})",
            hint="take it out, set elements: auto, or select rows that hold it",
        )
    return found


def require_elements_in_training(
    entries: Sequence[Entry], sides: Sequence[Side], elements: Iterable[str]
) -> None:
    """Raise `DataError` if an element is only in test rows: there is nothing to learn it from."""
    pairs = list(zip(entries, sides, strict=True))
    trained = _rows_by_element(entry for entry, side in pairs if side == "train")
    for element in elements:
        if element not in trained:
            rows = _rows_by_element(entry for entry, _ in pairs)[element]
            raise DataError(
                f"{element} occurs only in the test side ({_rows(rows)})",
                hint=f"provide more structures with {element}, or try another dataset.seed",
            )


def require_fitting_energies(
    entries: Sequence[Entry], references: ReferenceEnergies, *, automatic: bool
) -> tuple[float, float]:
    """Return the smallest and largest corrected energy, eV/atom.

    Raises
    ------
    DataError
        If one is so extreme that pacemaker would replace the reference energies.
    """
    values = [references.corrected(e.composition, e.energy) / e.atoms for e in entries]
    low, high = _ENERGY_RANGE
    extreme = [e.row_id for e, v in zip(entries, values, strict=True) if not low <= v <= high]
    if extreme:
        raise DataError(
            f"energies less the reference energies reach from {min(values):.3f} to "
            f"{max(values):.3f} eV/atom; pacemaker takes {low:g} to {high:g} ({_rows(extreme)})",
            hint="check the energies of these rows, and that isolated atoms and the parent "
            "generation were computed with the same settings"
            if automatic
            else "use dataset.reference_energies: auto",
        )
    return min(values), max(values)


def _rows_by_element(entries: Iterable[Entry]) -> dict[str, list[int]]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for entry in entries:
        for number, _ in entry.composition:
            rows[chemical_symbols[number]].append(entry.row_id)
    return dict(rows)


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
