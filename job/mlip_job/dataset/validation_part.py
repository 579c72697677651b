"""The validation part: held-out training structures that choose the best iteration of a fit.

It depends only on the dataset and its seed, by the rules of the split into train and test: it is
not stored, and does not change when a fit resumes. The order in which structures are chosen does
not depend on the others, so that most of the validation part of one generation is in that of the
next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.dataset.entries import EntryCollector
from mlip_job.dataset.files import read_index
from mlip_job.dataset.split import Inheritance, divide
from mlip_job.dataset.twins import TwinFinder
from mlip_job.dataset.xyz import read_structures
from mlip_job.errors import IntegrityError

if TYPE_CHECKING:
    from mlip_job.dataset.entries import Entries
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.rows import BoolArray
    from mlip_job.dataset.split import Side
    from mlip_job.paths import DatasetFiles

FEWEST = 20
"""Minimum number of training structures: with fewer, a validation part is not significant."""


@dataclass(frozen=True)
class Parts:
    """The parts of a training set: row ids, and why there is no validation part, or None."""

    fit: frozenset[int]
    validation: frozenset[int] = frozenset()
    why_whole: str | None = None


def part_training_set(files: DatasetFiles, record: DatasetRecord, fraction: float) -> Parts:
    """Hold out a fraction of the training structures; every element stays in the fit.

    The count is round(n · fraction), or the nearest one that groups and equal structures allow.
    """
    entries = _training_entries(files, record)
    rows = frozenset(entries.row_ids.tolist())
    if len(entries) < FEWEST:
        few = f"{len(entries)} training structures are fewer than {FEWEST}"
        return Parts(rows, why_whole=few)
    stays = np.zeros(len(entries), dtype=np.bool_)
    aside = _choose(entries, fraction, record.split.seed, stays)
    while (lacking := _lacking(entries, aside)).any():
        stays |= lacking
        aside = _choose(entries, fraction, record.split.seed, stays)
    if not aside.any() or aside.all():
        return Parts(rows, why_whole="no group of training structures is small enough")
    validation = frozenset(entries.row_ids[aside].tolist())
    return Parts(rows - validation, validation)


def _training_entries(files: DatasetFiles, record: DatasetRecord) -> Entries:
    """Return the entries of the training set."""
    index = read_index(files.index, f"dataset {record.id}")
    rows = ((row, fingerprint, group) for row, fingerprint, group, side in index if side == "train")
    collector, twins = EntryCollector(record.counts.train), TwinFinder()
    for structures in read_structures(files.xyz("train")):
        count = len(structures)
        indexed = list(islice(rows, count))  # the texts are in the order of the index
        if [row for row, *_ in indexed] != structures.ids.tolist():
            raise IntegrityError(f"the index of dataset {record.id} is not that of its train.xyz")
        collector.add(
            row_ids=structures.ids,
            fingerprints=b"".join(bytes.fromhex(fingerprint) for _, fingerprint, _ in indexed),
            energies=[0.0] * count,
            groups=[group or None for *_, group in indexed],
            compositions=structures.compositions(),
            config_types=[None] * count,
            sides=[None] * count,
        )
        twins.add(structures)
    return twins.join(collector.entries(), read_structures(files.xyz("train")))


def _choose(entries: Entries, fraction: float, seed: int, stays: BoolArray) -> BoolArray:
    """Return the mask of held-out entries; `stays`, their twins and groups remain in the fit."""
    settled: list[tuple[str, Side]] = [
        (fingerprint.hex(), "train") for fingerprint in entries.fingerprints[stays].tolist()
    ]
    inherited = Inheritance.of(settled)
    return divide(entries, fraction=fraction, seed=seed, inherited=inherited).tested


def _lacking(entries: Entries, aside: BoolArray) -> BoolArray:
    """Return which held-out entries have an element that the others lack."""
    lacking = np.zeros(len(entries), dtype=np.bool_)
    for element in set(entries.elements()) - set(entries.elements(~aside)):
        lacking |= entries.holding(element)
    return lacking
