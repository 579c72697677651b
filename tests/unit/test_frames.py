"""Data frames contain what pacemaker reads; those made from texts equal those of the export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ase import Atoms
from ase.build import molecule

from mlip_job.config.training import GroupWeights
from mlip_job.dataset.frames import FramePart, FrameWriter, GroupWeighting, frames_from_texts
from mlip_job.dataset.record import DatasetRecord
from mlip_job.dataset.references import ReferenceEnergies
from mlip_job.dataset.rows import StructureRow, Structures
from mlip_job.errors import ConfigError, IntegrityError
from mlip_job.paths import DatasetFiles
from tests.datasets import build, frame, labelled_rows, refused, rows_of
from tests.reference import (
    require_same_array,
    require_same_atoms,
    require_same_frame,
)
from tests.support import rattled, with_emt, write_database

TYPES = ("bulk", "gas", None)
WEIGHTING = GroupWeighting({"gas": GroupWeights(energy=3, forces=0.1)}, 0.9, 1.1)


def write(
    directory: Path, rows: list[StructureRow], pages: list[int], **settings: Any
) -> list[pd.DataFrame]:
    references = ReferenceEnergies({"Cu": 0.5, "H": -0.25, "O": 1.0}, {})
    writer = FrameWriter(DatasetFiles(directory), "train", references=references, **settings)
    first = 0
    for size in pages:
        named = [
            replace(row, key_value_pairs={"config_type": TYPES[(first + index) % 3]})
            for index, row in enumerate(rows[first : first + size])
        ]
        writer.add(Structures.of_rows(named).right_handed())
        first += size
    writer.flush()
    assert [file.path.name for file in writer.written] == [
        f"train{number}.pckl.gzip"
        for number in ("", *(f"-{shard:04d}" for shard in range(1, len(writer.written))))
    ]
    return [pd.read_pickle(file.path, compression="gzip") for file in writer.written]  # noqa: S301 - ours


def corrected(row: StructureRow) -> float:
    return (row.energy or 0.0) - (2.0 if 29 in row.numbers else 0.5)


def structures() -> list[Atoms]:
    left_handed = rattled(1, seed=3)[0]
    left_handed.cell = left_handed.cell[[1, 0, 2]]
    return [*rattled(4), with_emt(molecule("H2O")), with_emt(left_handed), *rattled(3, seed=1)]


@pytest.mark.parametrize(
    ("pages", "shard_size", "weighting"),
    [([9], 1, None), ([1, 5, 3], 4, WEIGHTING), ([4, 5], 3, WEIGHTING), ([9], 100, WEIGHTING)],
    ids=str,
)
def test_shards_do_not_depend_on_pages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pages: list[int],
    shard_size: int,
    weighting: GroupWeighting | None,
) -> None:
    """Every column, type and bit, in shards of one size, for pages of any size."""
    monkeypatch.setattr("mlip_job.dataset.frames.STRUCTURES_PER_FRAME", shard_size)
    rows = labelled_rows(structures())
    frames = write(tmp_path, rows, pages, weighting=weighting)
    assert [len(shard) for shard in frames[:-1]] == [shard_size] * (len(frames) - 1)
    columns = ["ase_atoms", "energy", "energy_corrected", "forces", "name"]
    weights = [] if weighting is None else ["w_energy", "w_forces"]
    found = pd.concat(frames)
    assert list(found.columns) == columns + weights
    for index, (row, (_, written)) in enumerate(zip(rows, found.iterrows(), strict=True)):
        require_same_atoms(written["ase_atoms"], row.atoms())
        require_same_array(written["forces"], row.forces)
        assert written["energy"] == row.energy
        assert written["energy_corrected"] == corrected(row)
        assert written["name"] == f"row-{row.id}"
        if weighting is not None:
            gas = TYPES[index % 3] == "gas"
            assert written["w_energy"] == (0.9 * 3 if gas else 0.9)
            assert written["w_forces"].tolist() == [1.1 * 0.1 if gas else 1.1] * len(row.numbers)


def test_structures_of_many_atoms_make_smaller_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory is bounded by atoms too; the pages make no difference."""
    monkeypatch.setattr("mlip_job.dataset.frames.FRAME_ATOMS", 10)
    rows = labelled_rows(rattled(8))
    for number, pages in enumerate(([8], [1, 2, 5])):
        directory = tmp_path / str(number)
        directory.mkdir()
        frames = write(directory, rows, pages)
        assert [len(shard) for shard in frames] == [3, 3, 2]


def test_structures_are_independent_of_each_other(tmp_path: Path) -> None:
    """Pacemaker moves atoms of molecules and changes their cells in place."""
    rows = labelled_rows(rattled(3))
    (shard,) = write(tmp_path, rows, [3])
    first, second = shard["ase_atoms"][:2]
    first.positions += 1
    first.pbc = False
    first.set_cell(None)
    forces = shard["forces"].iloc[0]
    forces *= 2
    require_same_atoms(second, rows[1].atoms())
    require_same_array(shard["forces"][1], rows[1].forces)


# From texts

WEIGHTS = {"gas": {"energy": 3, "forces": 0.1}, "a b": {"energy": 0.7, "forces": 1.3}}


def _fill(db: Path) -> None:
    left_handed = rattled(3, seed=3)
    for atoms in left_handed:
        atoms.cell = atoms.cell[[1, 0, 2]]
    gas = [with_emt(Atoms("O2", [(0, 0, 0), (d, 0, 0)])) for d in (1.1, 1.2, 1.3, 1.4)]
    write_database(db, rattled(9, symbols=("Cu", "O")), config_type='"bulk" = \\\\ 1')
    write_database(db, gas, config_type="gas")
    write_database(db, [with_emt(atoms) for atoms in left_handed])
    write_database(db, rattled(4, seed=7), config_type="a  b", group="x config_type=gas")


def _build(db: Path, out: Path, weights: dict[str, Any] | None, **settings: Any) -> DatasetRecord:
    training: dict[str, Any] = {"test_fraction": 0.3}
    if weights:
        training["weighting"] = {"by_group": weights}
    return build(db, out, training=training, **settings)


@pytest.mark.parametrize(
    ("weights", "shard_size", "at_once"), [(None, 3, 4), (WEIGHTS, 3, 500), (WEIGHTS, 100, 1)]
)
def test_frames_are_those_of_the_export(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: dict[str, Any] | None,
    shard_size: int,
    at_once: int,
) -> None:
    monkeypatch.setattr("mlip_job.dataset.xyz.STRUCTURES_AT_ONCE", at_once)
    monkeypatch.setattr("mlip_job.dataset.frames.STRUCTURES_PER_FRAME", shard_size)
    _fill(tmp_path / "cu.db")
    record = _build(tmp_path / "cu.db", tmp_path / "out", weights)
    names = [*record.frames.train, *record.frames.test]
    exported = {name: _read(tmp_path / "out" / name) for name in names}
    for name in names:
        (tmp_path / "out" / name).unlink()
    found = frames_from_texts(record, tmp_path / "out")
    assert found == {"train": record.frames.train, "test": record.frames.test}
    for name in names:
        require_same_frame(_read(tmp_path / "out" / name), exported[name])


def _read(path: Path) -> pd.DataFrame:
    return pd.read_pickle(path, compression="gzip")  # noqa: S301 - ours


def test_parts_of_the_training_set(tmp_path: Path) -> None:
    """Any rows of a side, in order, with their weights in the whole side."""
    _fill(tmp_path / "cu.db")
    out = tmp_path / "out"
    record = _build(tmp_path / "cu.db", out, WEIGHTS)
    whole = frame(out, record, "train").set_index("name")
    held = set(sorted(rows_of(out, "train"))[::3])
    parts = [
        FramePart("fit", "train", rows_of(out, "train") - held),
        FramePart("validation", "train", held),
    ]
    names = frames_from_texts(record, out, parts)
    assert names == {"fit": ("fit.pckl.gzip",), "validation": ("validation.pckl.gzip",)}
    fit, validation = (_read(out / f"{name}.pckl.gzip").set_index("name") for name in names)
    assert [*validation.index] == [name for name in whole.index if int(name[4:]) in held]
    assert sorted([*fit.index, *validation.index]) == sorted(whole.index)
    for part in (fit, validation):
        for column in ("energy_corrected", "w_energy"):
            assert part[column].to_dict() == whole[column][part.index].to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("energy=", "enerqy=", 1),
            "was not written by an export: 'energy'",
        ),
        (lambda text: text.replace("Cu ", "Qq ", 1), "was not written by an export: 'Qq'"),
        (lambda text: text.replace("\nCu ", "\nCu 1 ", 1), "has no 7 columns for each of"),
        (lambda text: text.replace("row_id=", "row=", 1), "a structure without row id"),
        (lambda text: text.replace("species:", "velo:R:3:species:", 1), "Properties other than"),
        (
            lambda text: text.replace("energy=", "energy=nan e=", 1),
            "it holds a value that is not a finite number",
        ),
        (lambda text: text[: text.index("\n4\n") + 1], "structures, its record says"),
        (lambda text: "-4" + text[1:], "is no extended XYZ file: '-4"),
        (lambda text: text[: text.rindex("\nCu ")], "is truncated"),
    ],
)
def test_other_texts_are_rejected(tmp_path: Path, change: Any, message: str) -> None:
    """Whatever their hash: an error of stored data, not one of pandas or numpy."""
    write_database(tmp_path / "cu.db", rattled(6))
    record = build(tmp_path / "cu.db", tmp_path / "out")
    text = tmp_path / "out" / "train.xyz"
    text.write_text(change(text.read_text()))
    with pytest.raises(IntegrityError) as caught:
        frames_from_texts(record, tmp_path / "out")
    assert message in caught.value.message


def test_an_element_without_reference_energy(tmp_path: Path) -> None:
    write_database(tmp_path / "cu.db", rattled(6))
    record = build(tmp_path / "cu.db", tmp_path / "out")
    other = record.model_copy(update={"reference_energies": {}})
    with pytest.raises(IntegrityError, match=f"{record.id} has no reference energy for Cu"):
        frames_from_texts(other, tmp_path / "out")


@pytest.mark.parametrize(("name", "back"), [("a  b", "'a b'"), ("=", "None")])
def test_weights_of_types_that_no_text_holds(tmp_path: Path, name: str, back: str) -> None:
    write_database(tmp_path / "cu.db", rattled(6), config_type=name)
    weights = {name: {"energy": 2}}
    message = refused(
        ConfigError,
        tmp_path / "cu.db",
        tmp_path / "out",
        training={"weighting": {"by_group": weights}},
    )
    assert f"by_group names {name!r}, which an extended XYZ file gives back as {back}" in message
