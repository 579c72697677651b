"""Pacemaker's data frames, made from the extended XYZ files of a dataset.

A data frame is a pickle: reading it runs what its writer put into it. So a run reads only frames
that it wrote itself, and makes those of a dataset in the store again from the texts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.dataset.extxyz import label
from mlip_job.dataset.frame import FrameWriter
from mlip_job.dataset.reading import read_batches, read_config_types
from mlip_job.dataset.reference_energies import ReferenceEnergies, compositions
from mlip_job.dataset.split import SIDES
from mlip_job.dataset.weights import GroupSize, scaled
from mlip_job.errors import ConfigError, IntegrityError
from mlip_job.naming import DatasetFiles

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mlip_job.dataset.reading import Batch
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.split import Side
    from mlip_job.dataset.weights import GroupWeighting


@dataclass(frozen=True)
class FramePart:
    """What goes into one set of data frames.

    Attributes
    ----------
    name
        What the names of the files begin with: ``train`` for ``train.pckl.gzip``.
    side
        Whose structures.
    rows
        Ids of the rows to take; None for all. Rows of the other side are ignored.
    """

    name: str
    side: Side
    rows: Collection[int] | None = None


BOTH_SIDES = (FramePart("train", "train"), FramePart("test", "test"))


def frames_from_texts(
    record: DatasetRecord,
    directory: Path,
    shard_size: int,
    parts: Sequence[FramePart] = BOTH_SIDES,
) -> dict[str, tuple[str, ...]]:
    """Write data frames from ``train.xyz`` and ``test.xyz``; return their names by part.

    They equal those of a fresh export to the last bit, rows in the order of the texts. Weights are
    scaled over the whole dataset, whatever the parts are.

    Parameters
    ----------
    record
        Of the dataset: its reference energies and weights.
    directory
        Where the texts lie, checked against the record; the frames are written there.
    shard_size
        Structures per file, at most.
    parts
        What to write; parts of one side may overlap.

    Raises
    ------
    IntegrityError
        If the texts are not those of the record.
    """
    files = DatasetFiles(directory)
    weighting = _weighting(record, files)
    writers = {part.name: FrameWriter(files, part.name, shard_size, weighting) for part in parts}
    for side in SIDES:
        rows = {writers[part.name]: part.rows for part in parts if part.side == side}
        if rows:
            _read_side(record, files, side, rows)
    for writer in writers.values():
        writer.flush()
    return {
        name: tuple(file.path.name for file in writer.written) for name, writer in writers.items()
    }


def _read_side(
    record: DatasetRecord,
    files: DatasetFiles,
    side: Side,
    rows: Mapping[FrameWriter, Collection[int] | None],
) -> None:
    """Give each writer its rows of one side."""
    count = 0
    for batch in read_batches(files.xyz(side)):
        count += len(batch.structures)
        for writer, wanted in rows.items():
            _add(writer, batch, wanted, record)
    expected = {"train": record.counts.train, "test": record.counts.test}[side]
    if count != expected:
        raise IntegrityError(
            f"{files.xyz(side).name} of dataset {record.id} has {count} structures, its record "
            f"says {expected}"
        )


def _add(
    writer: FrameWriter, batch: Batch, rows: Collection[int] | None, record: DatasetRecord
) -> None:
    structures, types = batch.structures, batch.config_types
    if rows is not None:
        chosen = np.array([row in rows for row in structures.ids.tolist()], dtype=np.bool_)
        structures = structures.take(chosen)
        types = [kind for kind, taken in zip(types, chosen, strict=True) if taken]
    if len(structures) == 0:
        return
    references = ReferenceEnergies(record.reference_energies, {})
    try:
        shifts = [references.of(composition) for composition in compositions(structures)]
    except KeyError as error:
        raise IntegrityError(
            f"dataset {record.id} has no reference energy for {error.args[0]}, which it holds"
        ) from None
    writer.add(
        structures,
        energies=structures.energies,
        corrected=structures.energies - np.array(shifts, dtype=np.float64),
        config_types=types,
    )


def _weighting(record: DatasetRecord, files: DatasetFiles) -> GroupWeighting | None:
    """Return the weights as the export scaled them: over all structures of both sides."""
    if record.weights is None:
        return None
    sizes: defaultdict[str | None, GroupSize] = defaultdict(GroupSize)
    for side in SIDES:
        for config_type, atoms in read_config_types(files.xyz(side)):
            size = sizes[label(config_type)]
            size.structures += 1
            size.atoms[side] += atoms
    by_group = {label(name) or name: weights for name, weights in record.weights.items()}
    try:
        return scaled(by_group, sizes)
    except ConfigError as error:
        raise IntegrityError(f"dataset {record.id}: {error.message}") from None
