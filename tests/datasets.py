"""Build and inspect datasets in tests."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms

from mlip_job.config import DatabaseConfig, DatasetConfig, TrainingConfig
from mlip_job.dataset.builder import DatasetBuilder, ParentDataset
from mlip_job.dataset.record import DatasetRecord, FileRecord
from mlip_job.dataset.rows import Composition, Entries, EntryCollector, StructureRow, Structures
from mlip_job.dataset.xyz import structures_text
from mlip_job.errors import MlipJobError
from mlip_job.paths import DatasetFiles

FIVE = ("Cu", "Ag", "Au", "Ni", "Pt")


def labelled_rows(structures: Iterable[Atoms]) -> list[StructureRow]:
    """Return the rows of structures labelled by a calculator, with ids 3, 13, 23."""
    return [
        StructureRow(
            id=10 * index + 3,
            numbers=np.array(atoms.numbers, dtype=np.int32),
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=atoms.calc.results.get("energy", 0.0),
            free_energy=None,
            forces=atoms.calc.results["forces"],
            stress=None,
            key_value_pairs={},
        )
        for index, atoms in enumerate(structures)
    ]


class Entry(NamedTuple):
    """Fields of a row that a test sets; see `Entries`."""

    row_id: int
    fingerprint: str
    group: str | None = None
    composition: Composition = ()
    energy: float = 0.0
    side: str | None = None


def entries_of(rows: Sequence[Entry]) -> Entries:
    """Put rows into columns."""
    collector = EntryCollector()
    collector.add(
        row_ids=[row.row_id for row in rows],
        fingerprints=bytes.fromhex("".join(row.fingerprint for row in rows)),
        energies=[row.energy for row in rows],
        groups=[row.group for row in rows],
        compositions=[row.composition for row in rows],
        config_types=[None] * len(rows),
        sides=[row.side for row in rows],
    )
    return collector.entries()


def xyz_of_row(row: StructureRow, energy: float, group: str | None, config_type: str | None) -> str:
    """Return the extended XYZ of one row."""
    names = {"group": group, "config_type": config_type}
    labelled = replace(row, energy=energy, key_value_pairs=names)
    return structures_text(Structures.of_rows([labelled]).right_handed()).decode()


def build(
    database: Path | str,
    directory: Path,
    *,
    parent: ParentDataset | None = None,
    select: str = "status=completed",
    training: dict[str, Any] | None = None,
    **dataset: Any,
) -> DatasetRecord:
    """Build the dataset of a database with settings that differ from the defaults."""
    return DatasetBuilder(
        DatabaseConfig(url=str(database), select=select),
        DatasetConfig(**dataset),
        TrainingConfig(**(training or {})),
        parent=parent,
    ).build(directory)


def read(directory: Path, side: str) -> list[Atoms]:
    """Read one side back with ASE."""
    structures: list[Atoms] = ase.io.read(directory / f"{side}.xyz", ":")
    return structures


def frame(directory: Path, record: DatasetRecord, side: str) -> pd.DataFrame:
    """Read pacemaker's data frames of one side."""
    names = getattr(record.frames, side)
    return pd.concat([pd.read_pickle(directory / name, compression="gzip") for name in names])  # noqa: S301 - our own


def rows_of(directory: Path, side: str) -> set[int]:
    """Return the row ids of one side."""
    return {int(atoms.info["row_id"]) for atoms in read(directory, side)}


def as_parent(record: DatasetRecord, directory: Path) -> ParentDataset:
    """Return a built dataset as the parent of the next."""
    return ParentDataset(record, DatasetFiles(directory).index)


def refused(error: type[MlipJobError], db: Path | str, out: Path, **settings: Any) -> str:
    """Build, expect an error, check that no file remains, and return the error's text."""
    with pytest.raises(error) as caught:
        build(db, out, **settings)
    assert type(caught.value) is error
    assert not out.exists()
    return str(caught.value)


class _Mark:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._path),))


def poison_frames(directory: Path, record: DatasetRecord, mark: Path) -> DatasetRecord:
    """Replace a dataset's frames by ones that create a directory when unpickled."""
    data = gzip.compress(pickle.dumps(_Mark(mark)))
    poisoned = FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    names = (*record.frames.train, *record.frames.test)
    for name in names:
        (directory / name).write_bytes(data)
    changed = record.model_copy(update={"files": record.files | dict.fromkeys(names, poisoned)})
    DatasetFiles(directory).record.write_text(changed.to_json())
    return changed
