"""Data frames made from the texts of a dataset are those that its export wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from ase import Atoms

from mlip_job.dataset.rebuild import FramePart, frames_from_texts
from mlip_job.errors import ConfigError, IntegrityError
from tests.datasets import build, frame, refused, rows_of
from tests.reference import require_same_frame
from tests.support import rattled, with_emt, write_database

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.dataset.record import DatasetRecord

WEIGHTS = {"gas": {"energy": 3, "forces": 0.1}, "a b": {"energy": 0.7, "forces": 1.3}}


def _write(db: Path) -> None:
    """Write crystals, left-handed cells and molecules of several config types, and of none."""
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


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["uniform", "weighted"])
@pytest.mark.parametrize("shard_size", [3, 100])
@pytest.mark.parametrize("at_once", [1, 4, 500])
def test_frames_are_those_of_the_export(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: dict[str, Any] | None,
    shard_size: int,
    at_once: int,
) -> None:
    """Names, shards, columns, types and every bit."""
    monkeypatch.setattr("mlip_job.dataset.reading._STRUCTURES_AT_ONCE", at_once)
    _write(tmp_path / "cu.db")
    record = _build(tmp_path / "cu.db", tmp_path / "out", weights, frame_shard_size=shard_size)
    names = [*record.frames.train, *record.frames.test]
    exported = {name: _read(tmp_path / "out" / name) for name in names}
    for name in names:
        (tmp_path / "out" / name).unlink()
    found = frames_from_texts(record, tmp_path / "out", shard_size)
    assert found == {"train": record.frames.train, "test": record.frames.test}
    for name in names:
        require_same_frame(_read(tmp_path / "out" / name), exported[name])


def _read(path: Path) -> pd.DataFrame:
    return pd.read_pickle(path, compression="gzip")  # noqa: S301 - ours


def test_parts_of_the_training_set(tmp_path: Path) -> None:
    """Any rows of a side, in their order, with the weights that they have in the whole."""
    _write(tmp_path / "cu.db")
    out = tmp_path / "out"
    record = _build(tmp_path / "cu.db", out, WEIGHTS)
    whole = frame(out, record, "train").set_index("name")
    held = set(sorted(rows_of(out, "train"))[::3])
    parts = [
        FramePart("fit", "train", rows_of(out, "train") - held),
        FramePart("validation", "train", held),
    ]
    names = frames_from_texts(record, out, 100, parts)
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
            "not as an export writes it: 'energy'",
        ),
        (lambda text: text.replace("Cu ", "Qq ", 1), "not as an export writes it: 'Qq'"),
        (lambda text: text.replace("\nCu ", "\nCu 1 ", 1), "has no 7 columns for each of"),
        (lambda text: text.replace("row_id=", "row=", 1), "a structure without row id"),
        (lambda text: text.replace("species:", "velo:R:3:species:", 1), "Properties other than"),
        (
            lambda text: text.replace("energy=", "energy=nan e=", 1),
            "it holds what is no finite number",
        ),
        (lambda text: text[: text.index("\n4\n") + 1], "structures, its record says"),
        (lambda text: "-4" + text[1:], "is no extended XYZ file: '-4"),
        (lambda text: text[: text.rindex("\nCu ")], "is cut short"),
    ],
)
def test_other_texts_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    """Whatever their hash: an error of stored data, not one of pandas or numpy."""
    write_database(tmp_path / "cu.db", rattled(6))
    record = build(tmp_path / "cu.db", tmp_path / "out")
    text = tmp_path / "out" / "train.xyz"
    text.write_text(change(text.read_text()))
    with pytest.raises(IntegrityError) as caught:
        frames_from_texts(record, tmp_path / "out", 100)
    assert message in caught.value.message


def test_an_element_without_reference_energy(tmp_path: Path) -> None:
    """A record that does not fit its texts is named."""
    write_database(tmp_path / "cu.db", rattled(6))
    record = build(tmp_path / "cu.db", tmp_path / "out")
    other = record.model_copy(update={"reference_energies": {}})
    with pytest.raises(IntegrityError, match=f"{record.id} has no reference energy for Cu"):
        frames_from_texts(other, tmp_path / "out", 100)


@pytest.mark.parametrize(("name", "back"), [("a  b", "'a b'"), ("=", "None")])
def test_weights_of_types_that_no_text_holds(tmp_path: Path, name: str, back: str) -> None:
    """They could not be found again in train.xyz."""
    write_database(tmp_path / "cu.db", rattled(6), config_type=name)
    weights = {name: {"energy": 2}}
    message = refused(
        ConfigError,
        tmp_path / "cu.db",
        tmp_path / "out",
        training={"weighting": {"by_group": weights}},
    )
    assert f"by_group names {name!r}, which an extended XYZ file gives back as {back}" in message
