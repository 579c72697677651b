"""What pandas reads from a shard is what one would have pickled object by object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from ase.build import molecule

from mlip_job.config.training import GroupWeights
from mlip_job.dataset.frame import FrameWriter
from mlip_job.dataset.row import StructureRow
from mlip_job.dataset.structures import Structures
from mlip_job.dataset.weights import GroupWeighting
from mlip_job.naming import DatasetFiles
from tests.reference import (
    make_frame,
    require_same_array,
    require_same_atoms,
    require_same_frame,
)
from tests.support import rattled, with_emt

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

TYPES = ("bulk", "gas", None)
WEIGHTING = GroupWeighting({"gas": GroupWeights(energy=3, forces=0.1)}, 0.9, 1.1)


def rows_of(structures: list[Atoms]) -> list[StructureRow]:
    """Return rows of labelled structures."""
    return [
        StructureRow(
            id=10 * index + 3,
            unique_id="",
            numbers=np.array(atoms.numbers, dtype=np.int32),
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            energy=atoms.calc.results["energy"],
            free_energy=None,
            forces=atoms.calc.results["forces"],
            stress=None,
            key_value_pairs={},
        )
        for index, atoms in enumerate(structures)
    ]


def write(
    directory: Path, rows: list[StructureRow], pages: list[int], **settings: Any
) -> list[pd.DataFrame]:
    """Write rows that come in pages of these sizes; read the shards back."""
    writer = FrameWriter(DatasetFiles(directory), "train", **settings)
    first = 0
    for size in pages:
        part = rows[first : first + size]
        structures = Structures.of_rows(part).right_handed()
        types = [TYPES[(first + index) % 3] for index in range(size)]
        corrected = structures.energies + 0.5
        writer.add(
            structures, energies=structures.energies, corrected=corrected, config_types=types
        )
        first += size
    writer.flush()
    assert [file.path.name for file in writer.written] == [
        f"train{number}.pckl.gzip"
        for number in ("", *(f"-{shard:04d}" for shard in range(1, len(writer.written))))
    ]
    return [pd.read_pickle(file.path, compression="gzip") for file in writer.written]  # noqa: S301 - ours


def structures() -> list[Atoms]:
    """Return crystals, one of them left-handed, and molecules."""
    left_handed = rattled(1, seed=3)[0]
    left_handed.cell = left_handed.cell[[1, 0, 2]]
    return [*rattled(4), with_emt(molecule("H2O")), with_emt(left_handed), *rattled(3, seed=1)]


@pytest.mark.parametrize("weighting", [None, WEIGHTING], ids=["uniform", "weighted"])
@pytest.mark.parametrize("pages", [[9], [1, 5, 3], [4, 5]], ids=str)
@pytest.mark.parametrize("shard_size", [1, 3, 4, 100])
def test_shards_hold_what_they_would_hold(
    tmp_path: Path, weighting: GroupWeighting | None, pages: list[int], shard_size: int
) -> None:
    """Every column, type and bit, in shards of the size asked for, whatever the pages."""
    rows = rows_of(structures())
    frames = write(tmp_path, rows, pages, shard_size=shard_size, weighting=weighting)
    assert [len(frame) for frame in frames[:-1]] == [shard_size] * (len(frames) - 1)
    first = 0
    for frame in frames:
        part = rows[first : first + len(frame)]
        energies = {row.id: (row.energy or 0.0, (row.energy or 0.0) + 0.5) for row in part}
        types = {row.id: TYPES[(first + index) % 3] for index, row in enumerate(part)}
        require_same_frame(frame, make_frame(part, energies, types, weighting))
        first += len(frame)
    assert first == len(rows)


def test_structures_of_many_atoms_make_smaller_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory is bounded by atoms too; the pages make no difference."""
    monkeypatch.setattr("mlip_job.dataset.frame._MOST_ATOMS", 10)
    rows = rows_of(rattled(8))
    for number, pages in enumerate(([8], [1, 2, 5])):
        directory = tmp_path / str(number)
        directory.mkdir()
        frames = write(directory, rows, pages, shard_size=100)
        assert [len(frame) for frame in frames] == [3, 3, 2]


def test_structures_are_independent_of_each_other(tmp_path: Path) -> None:
    """Pacemaker moves atoms of molecules and changes their cells in place."""
    rows = rows_of(rattled(3))
    (frame,) = write(tmp_path, rows, [3], shard_size=100)
    first, second = frame["ase_atoms"][:2]
    first.positions += 1
    first.pbc = False
    first.set_cell(None)
    forces = frame["forces"].iloc[0]
    forces *= 2
    require_same_atoms(second, rows[1].atoms())
    require_same_array(frame["forces"][1], rows[1].forces)
