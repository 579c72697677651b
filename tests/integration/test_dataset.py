"""From a real ASE database to the files that pacemaker and ASE read."""

from __future__ import annotations

import errno
import gzip
import json
import resource
import signal
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms

from mlip_job.dataset.files import OutputFile
from mlip_job.dataset.record import DatasetRecord
from mlip_job.errors import ConfigError, DataError, IntegrityError
from tests.cli import run_cli
from tests.datasets import FIVE, as_parent, build, frame, read, refused, rows_of
from tests.support import labelled, open_for_writing, rattled, with_emt, write_database

# Output


def test_hundred_structures_give_ninety_and_ten(db: Path, out: Path) -> None:
    """100 structures at 0.1: 90 and 10, no row on both sides, in files, frames and record."""
    write_database(db, rattled(100))
    record = build(db, out)
    train, test = rows_of(out, "train"), rows_of(out, "test")
    assert (len(train), len(test)) == (90, 10)
    assert train.isdisjoint(test)
    assert (record.counts.train, record.counts.test) == (90, 10)
    assert set(frame(out, record, "test")["name"]) == {f"row-{row}" for row in test}


def test_ase_reads_labels_back(db: Path, out: Path) -> None:
    """Energy, forces, stress, cell and ids come back from extended XYZ as they were stored."""
    originals = rattled(5)
    write_database(db, originals[:4], config_type="bulk", traj='odd "name"\nof two lines, é')
    write_database(db, originals[4:], config_type="bulk")
    build(db, out, group_by="traj", training={"test_fraction": 0.2})
    found = [*read(out, "train"), *read(out, "test")]
    assert len(found) == 5
    for atoms in found:
        original = originals[atoms.info["row_id"] - 1]
        assert atoms.get_potential_energy() == original.calc.results["free_energy"]
        np.testing.assert_array_equal(atoms.get_forces(), original.calc.results["forces"])
        np.testing.assert_array_equal(atoms.get_stress(), original.calc.results["stress"])
        np.testing.assert_array_equal(atoms.positions, original.positions)
        np.testing.assert_array_equal(atoms.cell, original.cell)
        assert atoms.pbc.all()
        assert atoms.info["config_type"] == "bulk"
        assert ("group" in atoms.info) == (atoms.info["row_id"] <= 4)


def test_frame_has_what_pacemaker_reads(db: Path, out: Path) -> None:
    """Columns, types and corrected energies are right, and the atoms carry no extra data."""
    write_database(db, rattled(20))
    record = build(db, out)
    train = frame(out, record, "train")
    assert list(train.columns) == ["ase_atoms", "energy", "energy_corrected", "forces", "name"]
    for _, row in train.iterrows():
        atoms = row["ase_atoms"]
        assert atoms.calc is None
        assert atoms.info == {}
        assert atoms.constraints == []
        assert row["forces"].shape == (4, 3)
        assert row["forces"].dtype == np.float64
        expected = row["energy"] - 4 * record.reference_energies["Cu"]
        assert row["energy_corrected"] == pytest.approx(expected, abs=1e-12)
    # Least squares over the training side leaves a mean of zero.
    assert train["energy_corrected"].mean() == pytest.approx(0, abs=1e-6)


@pytest.mark.pacemaker
def test_pacemaker_loads_the_frames(db: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pacemaker's loader reads sharded, weighted frames of crystals and molecules completely.

    Two of the cells are stored left-handed, which would be an error for it.
    """
    preparedata = pytest.importorskip(
        "pyace.preparedata", reason="pacemaker is not installed: make demo installs it"
    )
    write_database(db, rattled(12, symbols=("Cu", "O")), config_type="bulk")
    write_database(
        db,
        [with_emt(Atoms("O2", [(0, 0, 0), (d, 0, 0)])) for d in (1.2, 1.3, 1.4)],
        config_type="gas",
    )
    left_handed = rattled(2, seed=3)
    for atoms in left_handed:
        atoms.cell = atoms.cell[[1, 0, 2]]
    write_database(db, [with_emt(atoms) for atoms in left_handed])
    monkeypatch.setattr("mlip_job.dataset.frames.STRUCTURES_PER_FRAME", 4)
    record = build(
        db,
        out,
        training={
            "test_fraction": 0.2,
            "weighting": {"by_group": {"gas": {"energy": 3, "forces": 2}}},
        },
    )
    assert record.counts.train == 14
    assert record.frames.train == tuple(
        f"train{number}.pckl.gzip" for number in ("", "-0001", "-0002", "-0003")
    )
    loaded = preparedata.ACEDataset(
        {
            "filename": [str(out / name) for name in record.frames.train],
            "test_filename": [str(out / name) for name in record.frames.test],
        },
        cutoff=5.0,
        elements=list(record.elements),
        evaluator_name="tensorpot",
    )
    assert len(loaded.fitting_data) == record.counts.train
    assert len(loaded.test_data) == record.counts.test
    weights = loaded.fitting_data.set_index("name")["w_energy"]
    assert weights.max() / weights.min() == pytest.approx(3)


def test_record_describes_the_files(db: Path, out: Path) -> None:
    """dataset.json reads back, names every other file with its hash, and its counts add up."""
    write_database(db, rattled(10, symbols=FIVE), config_type="alloy")
    record = build(db, out)
    assert (
        DatasetRecord.from_json((out / "dataset.json").read_bytes(), key="dataset.json") == record
    )
    assert {path.name for path in out.iterdir()} == {"dataset.json", *record.files}
    assert record.elements == tuple(sorted(FIVE))
    assert sum(element.atoms for element in record.per_element.values()) == 40
    assert (record.atoms.train, record.atoms.test) == (36, 4)
    assert record.config_types.train == {"alloy": 9}
    assert record.energy_from.free_energy == 10
    lines = gzip.decompress((out / "index.csv.gz").read_bytes()).decode().splitlines()
    assert lines[0] == "row_id,fingerprint,group,side"
    assert [line.endswith("test") for line in lines[1:]].count(True) == 1
    with pytest.raises(IntegrityError, match=r"dataset\.json is no record of a dataset: "):
        DatasetRecord.from_json("{}", key="dataset.json")


def test_identity_of_known_rows(db: Path, out: Path) -> None:
    """It never changes for the same rows, nor do the bytes of the texts."""
    structures = []
    for number in range(10):
        atoms = bulk("CuAu", "rocksalt", a=5 + number / 8, cubic=True)
        forces = np.arange(24.0).reshape(8, 3) / 16 - number / 4
        structures.append(
            labelled(atoms, energy=-20.0 - number / 2, forces=forces, stress=np.arange(6) / 8)
        )
    write_database(db, structures[:5], config_type="a b", run="x")
    write_database(db, structures[5:])
    record = build(db, out, group_by="run", reference_energies={"Cu": -1.5, "Au": -2.25},
                   training={"test_fraction": 0.5})  # fmt: skip
    assert record.id == "d29cda3c6ab68395"
    assert record.files["train.xyz"].sha256.startswith("34c0ef96d0213b81")
    assert record.files["test.xyz"].sha256.startswith("f6eb82381400b81b")


def test_same_rows_same_bytes(db: Path, tmp_path: Path) -> None:
    """Building twice gives equal bytes; a new keyword changes nothing, a label does."""
    write_database(db, rattled(12), config_type="bulk")
    first = build(db, tmp_path / "a", training={"test_fraction": 0.2})
    with open_for_writing(db) as database:
        database.update(3, remark="looked at")
    second = build(db, tmp_path / "b", training={"test_fraction": 0.2})
    assert (first.id, first.files) == (second.id, second.files)
    with open_for_writing(db) as database:
        database.update(3, config_type="other")
    third = build(db, tmp_path / "c", training={"test_fraction": 0.2})
    assert third.id != first.id


def test_identity_is_that_of_the_content(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent of pages, shards, compressor and number format; dependent on the last bit."""
    write_database(db, rattled(12), config_type="bulk")
    first = build(db, tmp_path / "a")
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", 5)
    monkeypatch.setattr(
        "mlip_job.dataset.files.isal_zlib.compressobj",
        lambda level, wbits: zlib.compressobj(level=level + 8, wbits=wbits),
    )
    monkeypatch.setattr("mlip_job.dataset.xyz.orjson.dumps", _dumps)
    monkeypatch.setattr("mlip_job.dataset.frames.STRUCTURES_PER_FRAME", 4)
    second = build(db, tmp_path / "b")
    assert first.id == second.id
    for name in ("train.xyz", "index.csv.gz", "train.pckl.gzip"):
        assert first.files[name] != second.files[name]
    monkeypatch.undo()
    with open_for_writing(db) as database:
        atoms = database.get_atoms(5)
        forces = atoms.calc.results["forces"].copy()
        forces[0, 0] = np.nextafter(forces[0, 0], 1)
        database.update(5, atoms=labelled(atoms, **(atoms.calc.results | {"forces": forces})))
    third = build(db, tmp_path / "c")
    assert third.id != first.id
    assert third.counts == first.counts


def _dumps(rows: np.ndarray, option: int) -> bytes:
    digits = [[f"{number:.25e}" for number in row] for row in rows]
    return json.dumps(digits, separators=(",", ":")).replace('"', "").encode()


def test_building_again_replaces_what_was_there(db: Path, out: Path) -> None:
    """A new dataset replaces an older one, which is kept when a build fails."""
    write_database(db, rattled(12))
    build(db, out)
    write_database(db, rattled(12, seed=1))
    second = build(db, out)
    assert (
        DatasetRecord.from_json((out / "dataset.json").read_bytes(), key="dataset.json") == second
    )
    assert len(read(out, "train")) == second.counts.train
    with pytest.raises(DataError):
        build(db, out, select="status=absent")
    assert (
        DatasetRecord.from_json((out / "dataset.json").read_bytes(), key="dataset.json") == second
    )
    assert not list(out.glob(".building*"))


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_size_limit")
def test_a_full_disk_leaves_nothing(db: Path, tmp_path: Path) -> None:
    write_database(db, rattled(20))
    size = build(db, tmp_path / "whole").files["train.xyz"].size
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, most))
    with pytest.raises(OSError, match="File too large") as caught:
        build(db, tmp_path / "out")
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "out").exists()


def test_an_export_is_stopped(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal ends it with one line; no file of the dataset is left."""
    write_database(db, rattled(20))
    opened: list[Path] = []

    class Stopping(OutputFile):
        def write(self, data: bytes | memoryview) -> None:
            super().write(data)
            opened.append(self.path)
            if self.path.name == "train.xyz":
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("mlip_job.dataset.builder.OutputFile", Stopping)
    config, out = tmp_path / "mlip-job.yaml", tmp_path / "out"
    config.write_text(
        f"family: cu\ndatabase: {{url: {db}}}\nstorage: {{url: {tmp_path / 'store'}}}\n"
    )
    ended = run_cli(capsys, "export", "-c", config, "-g", 1, "-o", out)
    assert ended.code == 75, ended.err
    assert "stopped by SIGTERM" in ended.err.strip().splitlines()[-2]
    assert "Traceback" not in ended.err
    assert opened[-1].name == "train.xyz"
    assert not opened[0].exists()
    assert not out.exists()
    assert not list((tmp_path / "store").rglob("dataset.json"))


# Physics


def test_constrained_slab_keeps_its_real_forces(db: Path, out: Path) -> None:
    """Atoms that were fixed in the relaxation are exported with the calculator's forces."""
    slab = fcc111("Cu", (2, 2, 3), vacuum=8)
    add_adsorbate(slab, "Cu", 1.6, "ontop")
    slab.pbc = True
    slab.rattle(0.05, seed=1)
    slab.set_constraint(FixAtoms(mask=slab.positions[:, 2] < slab.positions[:, 2].mean()))
    labelled_slab = with_emt(slab)
    (row_id,) = write_database(db, [labelled_slab])
    write_database(db, rattled(9))
    build(db, out)
    (found,) = (
        atoms
        for side in ("train", "test")
        for atoms in read(out, side)
        if atoms.info["row_id"] == row_id
    )
    fixed = slab.constraints[0].index
    assert len(fixed) > 0
    assert np.abs(found.get_forces()[fixed]).max(axis=1).min() > 0
    np.testing.assert_allclose(found.get_forces(), labelled_slab.calc.results["forces"], atol=1e-8)


def test_molecules(db: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    waters = []
    for _ in range(10):
        water = molecule("H2O")
        water.positions += rng.normal(scale=0.02, size=(3, 3)) + 100
        waters.append(with_emt(water))
    write_database(db, waters)
    record = build(db, out)
    assert record.elements == ("H", "O")
    for atoms in read(out, "train"):
        assert not atoms.pbc.any()
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()
    # H2O only: the two reference energies can't be separated, and the record says so.
    assert any("H, O" in note for note in record.notes)


def test_isolated_atoms_give_references_and_are_excluded(db: Path, out: Path) -> None:
    """Isolated atoms define their element's reference energy and are on neither side."""
    write_database(db, rattled(20, symbols=("Cu", "Ni")))
    atom = labelled(Atoms("Cu"), energy=-0.25)
    boxed = labelled(Atoms("Cu", cell=[15, 15, 15], pbc=True), energy=-0.25)
    ids = write_database(db, [atom, boxed])
    record = build(db, out)
    assert record.reference_energies["Cu"] == -0.25
    assert record.reference_energy_sources == {"Cu": "isolated_atom", "Ni": "least_squares"}
    assert (record.counts.reference_atoms, record.counts.accepted) == (2, 20)
    assert not set(ids) & (rows_of(out, "train") | rows_of(out, "test"))


def test_a_stretched_crystal_is_no_isolated_atom(db: Path, out: Path) -> None:
    """Just beyond the cutoff of 5.5 Å the atoms of a primitive cell still interact."""
    write_database(db, rattled(20))
    stretched = labelled(bulk("Cu", a=8.0), energy=-0.26, forces=np.zeros((1, 3)))
    far = labelled(bulk("Cu", a=16.0), energy=-0.20, forces=np.zeros((1, 3)))
    (first, _) = write_database(db, [stretched, far])
    record = build(db, out)
    assert record.reference_energies["Cu"] == -0.20
    assert record.rejections["atom without a neighbour within the cutoff"].rows == (first,)


def test_nearly_free_atoms_far_from_the_reference_energies_are_noted(db: Path, out: Path) -> None:
    """With the energies to set: no function of neighbours can reproduce them."""
    write_database(db, rattled(20))
    stretched = labelled(bulk("Cu", a=8.0), energy=3.3, forces=np.zeros((1, 3)))
    (row,) = write_database(db, [stretched])
    (note,) = [note for note in build(db, out).notes if "nearly free atoms" in note]
    assert f"(row {row})" in note
    assert "dataset.reference_energies: {Cu: 3.300}" in note


@pytest.mark.parametrize("how", ["initial charges", "key"])
def test_ions_are_no_references(db: Path, out: Path, how: str) -> None:
    write_database(db, rattled(20))
    charges = [1.0] if how == "initial charges" else [0.0]
    ion = labelled(Atoms("Cu", charges=charges), energy=7.5)
    atom = labelled(Atoms("Cu"), energy=-0.2)
    (charged,) = write_database(db, [ion], **({"total_charge": 1} if how == "key" else {}))
    write_database(db, [atom], **({"total_charge": 0} if how == "key" else {}))
    record = build(db, out)
    assert record.reference_energies["Cu"] == -0.2
    assert any(f"isolated ions give no reference energy (row {charged})" in n for n in record.notes)


def _oxide(remove: str | None, seed: int) -> Atoms:
    """Return MgO with all-electron energies: its atomic energies are thousands of eV."""
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.rattle(0.05, seed=seed)
    if remove:
        del atoms[list(atoms.symbols).index(remove)]
    energy = sum({"Mg": -5430.0, "O": -2040.0}[symbol] for symbol in atoms.symbols) - 4.0 * len(
        atoms
    )
    return labelled(atoms, energy=energy, forces=np.full((len(atoms), 3), 0.1))


def test_undetermined_references_that_are_contradicted_are_rejected(
    db: Path, tmp_path: Path
) -> None:
    """One stoichiometry can't separate two elements; vacancies reveal the error."""
    write_database(db, [_oxide(None, n) for n in range(20)])
    first = build(db, tmp_path / "a")
    assert set(first.reference_energy_sources.values()) == {"undetermined"}
    write_database(db, [_oxide("O", n) for n in range(10)])
    text = refused(DataError, db, tmp_path / "b", parent=as_parent(first, tmp_path / "a"))
    assert "could not tell them apart" in text
    assert "rows 21, 22" in text
    assert "Mg: -5434" in text
    assert "training.start_from: none" in text


def test_single_precision_loses_no_more_than_necessary(db: Path, out: Path) -> None:
    """ASE stores a calculator's precision: float32 forces can't be read back, other columns can."""
    write_database(db, rattled(20))
    forces, full, voigt, moments, infinite = rattled(5, seed=3)
    infinite.calc.results["stress"] = np.full(6, np.inf)
    forces.calc.results["forces"] = forces.calc.results["forces"].astype(np.float32)
    full.calc.results["stress"] = np.eye(3, dtype=np.float32)
    voigt.calc.results["stress"] = voigt.calc.results["stress"].astype(np.float32)
    moments.calc.results["magmoms"] = np.zeros(len(moments), dtype=np.float32)
    rows = write_database(db, [forces, full, voigt, moments, infinite])
    record = build(db, out)
    reason = "forces in single precision (float32): store them as float64"
    assert {name: found.rows for name, found in record.rejections.items()} == {reason: (rows[0],)}
    lost = f"stresses that can't be read (rows {rows[1]}, {rows[2]}, {rows[4]})"
    assert any(lost in note for note in record.notes)


def test_energies_far_from_cohesive_energies_are_noted(db: Path, out: Path) -> None:
    write_database(db, rattled(20))
    odd = rattled(1, seed=7)[0]
    for name in ("energy", "free_energy"):
        odd.calc.results[name] += 30.0 * len(odd)
    (row,) = write_database(db, [odd])
    record = build(db, out, reference_energies={"Cu": 0.0})
    assert any(f"beyond ±10 eV/atom (row {row})" in note for note in record.notes)


@pytest.mark.parametrize(("without", "noted"), [(3, True), (10, False)])
def test_rows_without_free_energy(db: Path, out: Path, without: int, noted: bool) -> None:
    """They use their energy and are counted; a note only if others have a free energy."""
    structures = rattled(10)
    for atoms in structures[:without]:
        del atoms.calc.results["free_energy"]
    write_database(db, structures)
    record = build(db, out)
    assert (record.energy_from.free_energy, record.energy_from.energy) == (10 - without, without)
    note = f"{without} of 10 structures have no free energy"
    assert any(note in text for text in record.notes) == noted


def test_max_force_rejects_and_lists(db: Path, out: Path) -> None:
    """A row above max_force is rejected, counted and listed; a few such rows are no error."""
    strong = with_emt(bulk("Cu", cubic=True))
    strong.calc.results["forces"][:] = 40.0
    (row_id,) = write_database(db, [strong])
    write_database(db, rattled(19))
    record = build(db, out, max_force=30.0)
    assert record.rejections["force above max_force"].rows == (row_id,)
    assert (record.counts.rejected, record.counts.accepted) == (1, 19)
    assert record.ranges.max_force_ev_per_angstrom < 30


# Slabs and wires


def slabs_and_wires() -> list[Atoms]:
    """Return some of each kind, with non-periodic vectors of every kind, and all energies.

    EMT accepts them unchanged: it has a short range.
    """
    rng = np.random.default_rng(4)
    structures = []
    for pbc in product((False, True), repeat=3):
        if all(pbc) or not any(pbc):
            continue
        for idle in ("as it is", "none", "short", "tilted"):
            atoms = bulk("Cu", cubic=True, a=3.6).repeat((1, 1, 2))
            atoms.rattle(0.05, rng=rng)
            atoms.pbc = pbc
            for k in np.flatnonzero(~atoms.pbc):
                atoms.cell[k] *= {"none": 0, "short": 0.1}.get(idle, 1)
                atoms.cell[k] += 0.7 if idle == "tilted" else 0
            atoms.rotate(35, (1, 2, 3), rotate_cell=True)
            structures.append(with_emt(atoms))
    return structures


def test_slabs_and_wires_keep_their_energies_and_forces(db: Path, out: Path) -> None:
    """Periodic with vacuum, and counted; a short-range model gives the same results as before."""
    originals = slabs_and_wires()
    for number, atoms in enumerate(originals):
        atoms.calc.results.pop("stress", None)
        if number < 2:
            atoms.calc.results["stress"] = np.ones(6)
    write_database(db, originals)
    write_database(db, rattled(6))
    record = build(db, out)
    assert record.counts.accepted == len(originals) + 6
    assert record.partly_periodic == len(originals) == 24
    (note,) = (note for note in record.notes if "one or two directions" in note)
    assert note.startswith("24 rows are periodic in one or two directions (rows 1, 2, 3,")
    assert "2 stresses of such rows" in note
    for atoms in [*read(out, "train"), *read(out, "test")]:
        number = atoms.info["row_id"] - 1
        assert atoms.pbc.all()
        assert atoms.cell.volume > 0
        assert ("stress" in atoms.calc.results) == (number >= len(originals))
        if number < len(originals):
            original = originals[number]
            np.testing.assert_array_equal(atoms.positions, original.positions)
            for k in np.flatnonzero(~original.pbc):
                extent = np.ptp(atoms.positions @ atoms.cell[k]) / np.linalg.norm(atoms.cell[k])
                assert np.linalg.norm(atoms.cell[k]) - extent == pytest.approx(20)
            again = with_emt(atoms)
            assert again.calc.results["energy"] == pytest.approx(
                original.calc.results["energy"], abs=1e-9
            )
            np.testing.assert_allclose(
                again.calc.results["forces"], original.calc.results["forces"], atol=1e-9
            )


def test_slabs_with_other_idle_vectors_are_equal(db: Path, out: Path) -> None:
    """They share a side, whatever the vector along a non-periodic direction; so do their images."""
    for number in range(12):
        slab = fcc111("Cu", (1, 1, 3), a=3.6, vacuum=4)
        slab.rattle(0.03, seed=number)
        twin, image = slab.copy(), slab.copy()
        twin.cell[2] = (1, 2, 40)
        image.positions[1] += image.cell[0] - image.cell[1]
        write_database(db, [with_emt(each) for each in (slab, twin, image)])
    record = build(db, out, training={"test_fraction": 0.25})
    tested = rows_of(out, "test")
    assert len(tested) == record.counts.test == 9
    assert {(row - 1) // 3 for row in tested} == {(row - 1) // 3 for row in tested if row % 3 == 1}
    assert any(note.startswith("24 rows repeat") for note in record.notes)


def test_slabs_that_contradict_each_other_are_rejected(db: Path, out: Path) -> None:
    slab = with_emt(fcc111("Cu", (1, 1, 3), a=3.6, vacuum=4))
    other = slab.copy()
    other.cell[2, 2] = 50
    other = labelled(other, **slab.calc.results | {"energy": 9.0, "free_energy": 9.0})
    write_database(db, [slab, other, *rattled(8)])
    assert "rows 1 and 2 hold the same structure" in refused(DataError, db, out)


# Lineage


def test_next_generation_inherits_split_and_references(db: Path, tmp_path: Path) -> None:
    """With more rows and a new element, old rows keep their sides and elements their energies."""
    write_database(db, rattled(30))
    first = build(db, tmp_path / "a")
    write_database(db, rattled(30, symbols=("Cu", "Ni"), seed=1))
    parent = as_parent(first, tmp_path / "a")
    second = build(db, tmp_path / "b", parent=parent, seed=7)
    for side in ("train", "test"):
        assert rows_of(tmp_path / "a", side) <= rows_of(tmp_path / "b", side)
    assert second.counts.test == 6
    assert second.split.inherited_train == 27
    assert second.reference_energies["Cu"] == first.reference_energies["Cu"]
    assert second.reference_energy_sources == {"Cu": "inherited", "Ni": "least_squares"}


def test_split_follows_structures_to_another_database(db: Path, tmp_path: Path) -> None:
    """In a copy with other ids and order, the same structures are on the same sides."""
    structures = rattled(30)
    write_database(db, structures)
    write_database(
        tmp_path / "copy.db", [*rattled(3, seed=5), *structures[::-1]], status="completed"
    )
    build(db, tmp_path / "a")
    build(tmp_path / "copy.db", tmp_path / "b", select="id>3")

    def energies(directory: Path) -> set[float]:
        return {round(atoms.get_potential_energy(), 9) for atoms in read(directory, "test")}

    assert energies(tmp_path / "a") == energies(tmp_path / "b")


def test_equal_numbers_are_one_group_and_nan_is_none(db: Path, tmp_path: Path) -> None:
    """Pandas writes 7 as 7.0 where a column has gaps, and a gap as NaN."""
    rows = [*rattled(20)]
    with open_for_writing(db) as database:
        for number, atoms in enumerate(rows):
            trajectory = float("nan") if number < 8 else (7 if number % 2 else 7.0)
            database.write(atoms, status="completed", traj=trajectory)
    build(db, tmp_path / "out", group_by="traj", training={"test_fraction": 0.2})
    with (tmp_path / "out" / "index.csv.gz").open("rb") as file:
        lines = gzip.decompress(file.read()).decode().splitlines()[1:]
    groups = [line.split(",")[2] for line in lines]
    sides = {line.split(",")[3] for line in lines if line.split(",")[2] == "7"}
    assert groups.count("7") == 12
    assert groups.count("") == 8
    assert len(sides) == 1


def _stored_otherwise(atoms: Atoms, how: str, seed: int) -> Atoms:
    rng, again = np.random.default_rng(seed), atoms.copy()
    if how == "order":
        return again[rng.permutation(len(again))]
    if how == "translation":
        again.positions += rng.normal(size=3)
        return again
    again.positions += rng.integers(-2, 3, size=(len(again), 3)) @ again.cell.array
    return again


@pytest.mark.parametrize("how", ["lattice translations", "order"])
def test_the_same_crystal_stays_on_one_side(db: Path, tmp_path: Path, how: str) -> None:
    """However it is stored; also ideal positions at halves and thirds of the cell."""
    originals = [*rattled(29, symbols=("Cu", "Ni")), with_emt(bulk("Cu", cubic=True))]
    twins = [with_emt(_stored_otherwise(a, how, n)) for n, a in enumerate(originals)]
    first = write_database(db, originals)
    second = dict(zip(first, write_database(db, twins), strict=True))
    record = build(db, tmp_path / "out", training={"test_fraction": 0.2})
    assert any("30 rows repeat the structure of another row" in note for note in record.notes)
    tested = rows_of(tmp_path / "out", "test")
    assert len(tested) == 12
    assert all((row in tested) == (twin in tested) for row, twin in second.items())


@pytest.mark.parametrize("how", ["lattice translations", "order", "translation"])
def test_contradicting_energies_of_one_crystal_are_rejected(
    db: Path, tmp_path: Path, how: str
) -> None:
    original = rattled(1)[0]
    twin = with_emt(_stored_otherwise(original, how, 1))
    for name in ("energy", "free_energy"):
        twin.calc.results[name] += 0.05 * len(twin)
    write_database(db, [original, twin, *rattled(20, seed=4)])
    text = refused(DataError, db, tmp_path / "out")
    assert "rows 1 and 2 hold the same structure" in text


def test_compositions_on_one_line_span_no_convex_hull(db: Path, tmp_path: Path) -> None:
    """Pacemaker would end with a QhullError before the first iteration."""
    rows = []
    for number in range(12):
        atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
        atoms.symbols[4:] = "Au"
        atoms.symbols[: number % 3] = "Ag"
        atoms.rattle(0.05, seed=number)
        rows.append(with_emt(atoms))
    write_database(db, rows)
    energy_based: dict[str, object] = {"weighting": {"energy_based": {"DEup": 20.0}}}
    text = refused(ConfigError, db, tmp_path / "a", training=energy_based)
    assert "span no convex hull" in text
    assert "training.overrides: {fit: {weighting: {energy: cohesive}}}" in text
    energy_based["overrides"] = {"fit": {"weighting": {"energy": "cohesive"}}}
    build(db, tmp_path / "b", training=energy_based)


def test_groups_stay_together_and_are_inherited(db: Path, tmp_path: Path) -> None:
    """Trajectories are never split, and new frames join the side of the old ones."""
    structures = rattled(40)
    for number in range(8):
        write_database(db, structures[number::8], traj=f"md-{number}")
    first = build(db, tmp_path / "a", group_by="traj", training={"test_fraction": 0.25})
    assert first.counts.test == 10

    def groups(directory: Path, side: str) -> set[str]:
        return {atoms.info["group"] for atoms in read(directory, side)}

    tested = groups(tmp_path / "a", "test")
    assert tested.isdisjoint(groups(tmp_path / "a", "train"))
    for number in range(8):
        write_database(db, rattled(2, seed=10 + number), traj=f"md-{number}")
    parent = as_parent(first, tmp_path / "a")
    build(db, tmp_path / "b", group_by="traj", parent=parent, training={"test_fraction": 0.25})
    assert groups(tmp_path / "b", "test") == tested


def test_key_decides_the_split(db: Path, tmp_path: Path) -> None:
    """A published split is used and recorded unchanged, and inherited with new rows."""
    structures = rattled(14)
    trained = write_database(db, structures[:4], side="train")
    tested = write_database(db, structures[4:10], side="test")
    first = build(db, tmp_path / "a", split_key="side")
    assert rows_of(tmp_path / "a", "train") == set(trained)
    assert rows_of(tmp_path / "a", "test") == set(tested)
    assert first.split.key == "side"
    assert any("4 rows train, 6 test" in note for note in first.notes)
    added = write_database(db, structures[10:], side="train")
    parent = as_parent(first, tmp_path / "a")
    second = build(db, tmp_path / "b", split_key="side", parent=parent)
    assert rows_of(tmp_path / "b", "train") == {*trained, *added}
    assert (second.split.inherited_train, second.split.inherited_test) == (4, 6)


def test_identity_is_that_of_the_content_alone(db: Path, tmp_path: Path) -> None:
    """A split by key that equals the split of the seed gives the same dataset."""
    write_database(db, rattled(10))
    by_seed = build(db, tmp_path / "a")
    with open_for_writing(db) as database:
        for row in range(1, 11):
            test = row in rows_of(tmp_path / "a", "test")
            database.update(row, side="test" if test else "train")
    assert build(db, tmp_path / "b", split_key="side").id == by_seed.id


def test_inexact_count_is_noted(db: Path, out: Path) -> None:
    """If groups prevent the exact count, the record has the actual one."""
    for number in range(5):
        write_database(db, rattled(4, seed=number), traj=f"md-{number}")
    record = build(db, out, group_by="traj", training={"test_fraction": 0.25})
    assert (record.counts.test, record.split.wanted_test) == (4, 5)
    assert any("4 rows instead of 5" in note for note in record.notes)


def test_data_on_the_training_side_only_are_noted(db: Path, tmp_path: Path) -> None:
    """A config type, or all forces; no note if the test side has them."""
    perfect = [with_emt(bulk("Cu", cubic=True, a=3.5 + 0.01 * n)) for n in range(10)]
    write_database(db, perfect[:2], side="test", config_type="bulk")
    write_database(db, perfect[2:], side="train", config_type="bulk")
    write_database(db, rattled(4), side="train", config_type="md")
    notes = build(db, tmp_path / "a", split_key="side").notes
    assert any("no test row is of the config types md (4 rows)" in note for note in notes)
    assert any("forces of the test side vanish by symmetry" in note for note in notes)
    write_database(db, rattled(1, seed=3), side="test", config_type="md")
    notes = build(db, tmp_path / "b", split_key="side").notes
    assert not any("vanish" in note or "no test row" in note for note in notes)


def test_nothing_is_held_out(db: Path, out: Path) -> None:
    """A fraction of 0: an empty test.xyz, no frame of it, and a note."""
    write_database(db, rattled(6))
    record = build(db, out, training={"test_fraction": 0})
    assert (record.counts.train, record.counts.test, record.frames.test) == (6, 0, ())
    assert (out / "test.xyz").read_bytes() == b""
    assert any("nothing was held out" in note for note in record.notes)


def test_changed_settings_of_an_inherited_split_are_noted(db: Path, tmp_path: Path) -> None:
    """Another test_fraction or seed moves no row of the parent; untested new rows are noted."""
    write_database(db, rattled(20))
    first = build(db, tmp_path / "a")
    parent = as_parent(first, tmp_path / "a")
    changed = {"parent": parent, "seed": 7, "training": {"test_fraction": 0.4}}
    second = build(db, tmp_path / "b", **changed)
    assert (second.counts.test, second.split.wanted_test) == (2, 2)
    (note,) = (note for note in second.notes if "without effect" in note)
    assert "training.test_fraction (0.1, now 0.4) and dataset.seed (42, now 7)" in note
    assert "20 rows" in note
    write_database(db, rattled(3, seed=9))
    third = build(db, tmp_path / "c", parent=parent)
    assert third.counts.test == 2
    assert any("none of the 3 new rows is a test row" in note for note in third.notes)
    assert not any("without effect" in note for note in third.notes)
    fourth = build(db, tmp_path / "d", **changed)
    assert fourth.counts.test == 4  # two of three: closer to 0.4 of all than one
    assert any("3 rows are new" in note for note in fourth.notes)


def test_damaged_parent_index(db: Path, tmp_path: Path) -> None:
    write_database(db, rattled(10))
    first = build(db, tmp_path / "a")
    (tmp_path / "a" / "index.csv.gz").write_bytes(b"\x1f\x8b broken")
    text = refused(IntegrityError, db, tmp_path / "b", parent=as_parent(first, tmp_path / "a"))
    assert first.id in text


# Weights


def test_weights_per_config_type(db: Path, out: Path) -> None:
    """Configured ratios are in the frames of both sides; all weights average to 1."""
    write_database(db, rattled(20), config_type="bulk")
    write_database(db, rattled(10, seed=1), config_type="surface")
    write_database(db, rattled(10, seed=2))
    by_group = {"surface": {"energy": 4, "forces": 0.5}}
    record = build(db, out, training={"weighting": {"by_group": by_group}})
    both = pd.concat([frame(out, record, side) for side in ("train", "test")])
    assert both["w_energy"].mean() == pytest.approx(1)
    assert np.concatenate(list(both["w_forces"])).mean() == pytest.approx(1)
    weights = both.set_index("name")
    surface, bulk_ = weights.loc["row-21"], weights.loc["row-1"]
    assert surface["w_energy"] / bulk_["w_energy"] == pytest.approx(4)
    assert surface["w_forces"].shape == (4,)
    assert surface["w_forces"][0] / bulk_["w_forces"][0] == pytest.approx(0.5)
    assert record.id != build(db, out).id


def test_weights_of_an_absent_config_type(db: Path, out: Path) -> None:
    """A misspelt config type in the weights is an error that lists the existing ones."""
    write_database(db, rattled(10), config_type="surface")
    text = refused(
        DataError, db, out, training={"weighting": {"by_group": {"surfaces": {"energy": 2}}}}
    )
    assert "surfaces" in text
    assert "the rows have surface" in text


def test_weights_that_leave_nothing(db: Path, out: Path) -> None:
    """Force weights that are all zero would divide by zero in pacemaker: rejected."""
    write_database(db, rattled(10), config_type="bulk")
    text = refused(
        ConfigError, db, out, training={"weighting": {"by_group": {"bulk": {"forces": 0}}}}
    )
    assert "train side" in text


# Bad input


def test_zeroed_and_huge_forces_are_noted(db: Path, tmp_path: Path) -> None:
    """Rows with forces of fixed atoms, or of hundreds of eV/Å, are noted by count and id."""
    structures = rattled(12)
    for atoms in structures[:2]:
        atoms.set_constraint(FixAtoms([0, 1]))
        atoms.calc.results["forces"][:2] = 0.0
    structures[5].calc.results["forces"][1] = (1.0, 250.0, 2.0)
    write_database(db, structures)
    notes = build(db, tmp_path / "all").notes
    (zeroed,) = (note for note in notes if "exactly zero" in note)
    assert "(2: rows 1, 2)" in zeroed
    assert "apply_constraint=False" in zeroed
    (huge,) = (note for note in notes if "above 100 eV/Å" in note)
    assert "forces above 100 eV/Å, up to 250 (1: row 6)" in huge
    assert "dataset.max_force" in huge
    limited = build(db, tmp_path / "limited", max_force=300.0).notes
    assert not any("above 100 eV/Å" in note for note in limited)


def test_missing_and_unbalanced_forces_are_noted(db: Path, tmp_path: Path) -> None:
    """With count, ids and remedy; another weight of the energies is none."""
    structures = rattled(12)
    structures[3].calc.results["forces"][:] = 0.0
    for atoms in structures[6:8]:
        atoms.calc.results["forces"] += (0.02, 0.0, 0.0)
    write_database(db, structures)
    notes = build(db, tmp_path / "all").notes
    (missing,) = (note for note in notes if "on all atoms" in note)
    assert "(1: row 4)" in missing
    (net,) = (note for note in notes if "add up" in note)
    assert "(2: rows 7, 8)" in net
    assert "training.energy_weight" in net


@pytest.mark.parametrize("how", ["initial charges", "key"])
def test_charged_cells_among_neutral_ones_are_noted(db: Path, tmp_path: Path, how: str) -> None:
    """The background energy can't be fitted; the same charge everywhere is no mixture."""
    structures = rattled(12)
    for number, atoms in enumerate(structures):
        charged = number < 2
        if how == "initial charges" and charged:
            atoms.set_initial_charges([0.25] * len(atoms))
            atoms.calc.atoms = atoms.copy()
        pairs = {"total_charge": 1 if charged else 0} if how == "key" else {}
        write_database(db, [atoms], **pairs)
    (note,) = (n for n in build(db, tmp_path / "all").notes if "charged periodic" in n)
    assert "(2: rows 1, 2) together with 10 neutral ones" in note
    neutral = build(db, tmp_path / "neutral", select="id>2").notes
    assert not any("charged periodic" in n for n in neutral)


def test_methods_in_the_data_column_are_noted(db: Path, tmp_path: Path) -> None:
    for number, atoms in enumerate(rattled(12)):
        functional = "PBE" if number < 9 else "r2SCAN"
        with open_for_writing(db) as database:
            database.write(
                atoms,
                status="completed",
                data={"run": {"functional": functional, "kpts": [number]}, "note": str(number)},
            )
    (note,) = (n for n in build(db, tmp_path / "all").notes if "computed in the same way" in n)
    assert "data['run']['functional']: PBE (9 rows), r2SCAN (3 rows)" in note
    assert "note" not in note
    one = build(db, tmp_path / "one", select="id<=9").notes
    assert not any("computed in the same way" in n for n in one)


def test_references_of_a_fit_from_scratch(db: Path, tmp_path: Path) -> None:
    """Configured ones may differ from the parent's; isolated atoms are used once they exist."""
    write_database(db, rattled(20))
    parent = as_parent(build(db, tmp_path / "a"), tmp_path / "a")
    zero = build(db, tmp_path / "b", parent=parent, reference_energies=0)
    assert zero.reference_energies == {"Cu": 0.0}
    start = {"max_iter": 10}
    text = refused(
        ConfigError, db, tmp_path / "c", parent=parent, reference_energies=0, training=start
    )
    assert "the fit starts from" in text
    write_database(db, [labelled(Atoms("Cu"), energy=-0.2)])
    anew = build(db, tmp_path / "d", parent=parent)
    assert anew.reference_energy_sources == {"Cu": "isolated_atom"}
    kept = build(db, tmp_path / "e", parent=parent, training=start)
    assert kept.reference_energies == parent.record.reference_energies


def test_rows_of_several_methods_are_noted(db: Path, tmp_path: Path) -> None:
    """Calculators, parameters and keys that differ are noted with the number of rows."""
    for number, atoms in enumerate(rattled(20)):
        atoms.calc.name = "emt" if number < 4 else "vasp"
        atoms.calc.parameters = {"xc": "pbe", "kpts": [number, 1, 1], "encut": 400 + (number > 17)}
        write_database(db, [atoms], functional="r2SCAN" if number < 3 else "PBE")
    (note,) = (n for n in build(db, tmp_path / "all").notes if "computed in the same way" in n)
    assert "calculator: vasp (16 rows), emt (4 rows)" in note
    assert "parameter encut of vasp: 400 (14 rows), 401 (2 rows)" in note
    assert "key functional: PBE (17 rows), r2SCAN (3 rows)" in note
    assert "kpts" not in note
    assert "xc" not in note
    one = build(db, tmp_path / "one", select="calculator=vasp,functional=PBE,id<17").notes
    assert not any("computed in the same way" in n for n in one)
