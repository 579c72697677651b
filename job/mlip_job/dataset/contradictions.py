"""Find rows of the same structure with different energies, and how they differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.dataset.provenance import shortened
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlip_job.dataset.entry import Entries

    Describe = Callable[[int], Mapping[str, str]]

_LISTED = 10
"""Number of structures in the message."""

_DIFFERENCES = 6
"""Number of differences between rows in the message."""


@dataclass(frozen=True)
class Contradiction:
    """Rows of one structure whose energies differ.

    Attributes
    ----------
    low, high
        Row ids of the lowest and the highest energy.
    energies
        Of these, eV, or eV/atom where they have different numbers of atoms.
    rows
        Number of rows with the structure.
    per_atom
        Whether the energies are per atom.
    """

    low: int
    high: int
    energies: tuple[float, float]
    rows: int
    per_atom: bool = False


def count_repeats(entries: Entries) -> int:
    """Return how many rows repeat an earlier structure, stored in the same form or another."""
    return len(entries) - len(np.unique(entries.twins))


def find_contradictions(entries: Entries, tolerance: float) -> list[Contradiction]:
    """Return the structures whose rows have energies more than `tolerance` eV/atom apart."""
    counts = np.bincount(entries.twins)
    atoms = entries.atoms
    per_atom = entries.energies / atoms
    repeated = np.flatnonzero(counts[entries.twins] > 1)
    extremes: dict[int, tuple[int, int]] = {}
    for index in repeated.tolist():
        structure = int(entries.twins[index])
        low, high = extremes.get(structure, (index, index))
        if per_atom[index] < per_atom[low]:
            low = index
        elif per_atom[index] > per_atom[high]:
            high = index
        extremes[structure] = low, high
    found = []
    for structure, (low, high) in extremes.items():
        if per_atom[high] - per_atom[low] > tolerance:
            shown = entries.energies if atoms[low] == atoms[high] else per_atom
            found.append(
                Contradiction(
                    low=int(entries.row_ids[low]),
                    high=int(entries.row_ids[high]),
                    energies=(float(shown[low]), float(shown[high])),
                    rows=int(counts[structure]),
                    per_atom=shown is per_atom,
                )
            )
    return found


def require_consistent_duplicates(entries: Entries, tolerance: float, describe: Describe) -> int:
    """Return how many rows repeat an earlier structure.

    Parameters
    ----------
    entries
        The accepted rows.
    tolerance
        eV/atom.
    describe
        Returns how a row was computed: names and values that may distinguish it.

    Raises
    ------
    DataError
        If identical structures have energies more than `tolerance` eV/atom apart.
    """
    found = find_contradictions(entries, tolerance)
    if not found:
        return count_repeats(entries)
    raise DataError(
        f"{_energies(found)}; {_differences(found[:_LISTED], describe)} (rigid motions, the "
        "choice of the cell and the order of atoms make no other structure)",
        hint="keep one kind of calculation with database.select, "
        f"or exclude the wrong rows (dataset.duplicate_tolerance is {tolerance:g} eV/atom)",
    )


def _energies(found: Sequence[Contradiction]) -> str:
    texts = []
    for one in found[:_LISTED]:
        low, high = one.energies
        unit = "eV/atom" if one.per_atom else "eV"
        more = f", {one.rows} rows in all" if one.rows > 2 else ""  # noqa: PLR2004 - the two named
        texts.append(f"rows {one.low} and {one.high}: {low:.6f} and {high:.6f} {unit}{more}")
    if len(found) == 1:
        return texts[0].replace(":", " hold the same structure with different energies:", 1)
    rest = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"{len(found)} structures have rows with different energies: {'; '.join(texts)}{rest}"


def _differences(found: Sequence[Contradiction], describe: Describe) -> str:
    """Return the differences between the rows, the most frequent first."""
    counts: Counter[str] = Counter()
    for one in found:
        low, high = describe(one.low), describe(one.high)
        for name in sorted({*low, *high}):
            before, after = low.get(name, "none"), high.get(name, "none")
            if before != after:
                counts[f"{name} ({shortened(before)} and {shortened(after)})"] += 1
    if not counts:
        return "nothing else that is stored tells them apart"
    texts = [
        text if count == len(found) else f"{text} in {count} of {len(found)} pairs"
        for text, count in counts.most_common(_DIFFERENCES)
    ]
    rest = f" and {len(counts) - len(texts)} more" if len(counts) > len(texts) else ""
    return f"they differ in {', '.join(texts)}{rest}"
