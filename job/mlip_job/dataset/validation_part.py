"""The validation part: training structures that a fit does not see, to choose its best iteration.

It follows from the dataset and its seed alone, by the rules of the split into train and test: it is
not stored, and the same wherever a fit is resumed. The order in which structures are chosen does
not depend on the others, so that most of the validation part of one generation is in that of the
next one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.dataset.entry import CRYSTAL, EntryCollector
from mlip_job.dataset.index import read_index
from mlip_job.dataset.reading import read_batches
from mlip_job.dataset.split import Inheritance, divide

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from mlip_job.dataset.entry import Entries
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.split import Side
    from mlip_job.naming import DatasetFiles

FEWEST = 20
"""Of training structures: with fewer a validation part says little, and the fit lacks it."""


@dataclass(frozen=True)
class Parts:
    """The parts of a training set.

    Attributes
    ----------
    fit, validation
        Row ids.
    why_whole
        Why there is no validation part, where there is none.
    """

    fit: frozenset[int]
    validation: frozenset[int] = frozenset()
    why_whole: str | None = None


def part_training_set(files: DatasetFiles, record: DatasetRecord, fraction: float) -> Parts:
    """Put training structures aside for validation. Every element stays in the fit.

    Parameters
    ----------
    files
        The index and the texts of the dataset.
    record
        Of the dataset.
    fraction
        Of the training structures; the exact count is round(n · fraction), less where groups or
        equal structures allow no other.
    """
    entries = _training_entries(files.index, record)
    everything = frozenset(entries.row_ids.tolist())
    if len(entries) < FEWEST:
        few = f"{len(entries)} training structures are fewer than {FEWEST}"
        return Parts(everything, why_whole=few)
    stays: set[int] = set()
    while True:
        rows = _choose(entries, fraction, record.split.seed, stays)
        if len(record.elements) == 1 or not (lacking := _lacking(files.xyz("train"), rows)):
            break
        stays |= lacking
    if not rows:
        return Parts(everything, why_whole="no group of training structures is small enough")
    return Parts(everything - rows, rows)


def _training_entries(index: Path, record: DatasetRecord) -> Entries:
    rows = [row for row in read_index(index, f"dataset {record.id}") if row[3] == "train"]
    collector = EntryCollector(len(rows))
    collector.add(
        row_ids=[row_id for row_id, *_ in rows],
        fingerprints=b"".join(bytes.fromhex(fingerprint) for _, fingerprint, *_ in rows),
        # An index has no others.
        crystals=b"".join(
            bytes.fromhex(fingerprint[: 2 * CRYSTAL.itemsize]) for _, fingerprint, *_ in rows
        ),
        energies=[0.0] * len(rows),
        groups=[group or None for _, _, group, _ in rows],
        compositions=[()] * len(rows),
        config_types=[None] * len(rows),
        sides=[None] * len(rows),
    )
    return collector.entries()


def _choose(entries: Entries, fraction: float, seed: int, stays: Collection[int]) -> frozenset[int]:
    """Return the rows that the split puts aside; what stays in the fit keeps its like there."""
    chosen = np.isin(entries.row_ids, list(stays))
    settled: list[tuple[str, Side]] = [
        (fingerprint.hex(), "train") for fingerprint in entries.fingerprints[chosen].tolist()
    ]
    split = divide(entries, fraction=fraction, seed=seed, inherited=Inheritance.of(settled))
    if split.train == 0:
        return frozenset()
    return frozenset(entries.row_ids[split.tested].tolist())


def _lacking(texts: Path, rows: Collection[int]) -> set[int]:
    """Return those of the rows that hold an element which the others lack."""
    fitted: set[int] = set()
    held: defaultdict[int, set[int]] = defaultdict(set)
    for batch in read_batches(texts):
        structures = batch.structures
        places = pairwise(structures.starts.tolist())
        for row, (start, end) in zip(structures.ids.tolist(), places, strict=True):
            elements = set(structures.numbers[start:end].tolist())
            if row in rows:
                for element in elements:
                    held[element].add(row)
            else:
                fitted |= elements
    return {row for element, holders in held.items() if element not in fitted for row in holders}
