"""Unusable input is rejected with rows, reasons and remedies."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from mlip_job.config import DatabaseConfig
from mlip_job.dataset.database import StructureDatabase
from mlip_job.errors import ConfigError, DatabaseError, DataError
from tests.datasets import build, refused, rows_of
from tests.support import labelled, open_for_writing, rattled, write_database


def test_nothing_selected_lists_the_statuses(db: Path, out: Path) -> None:
    """A selection without rows lists the statuses and their counts."""
    write_database(db, rattled(3), status="failed")
    write_database(db, rattled(2), status="running")
    with open_for_writing(db) as database:
        database.write(rattled(1)[0])
    text = refused(DataError, db, out)
    assert "'status=completed'" in text
    assert "(none): 1, failed: 3, running: 2" in text


@pytest.mark.parametrize(
    "select", ["natoms=many", "a=b=c", "energy<x", "it's=1", "age<3q", "pbc>1"]
)
def test_bad_selection(db: Path, out: Path, select: str) -> None:
    """A selection that ASE can't parse is a configuration error that quotes it."""
    write_database(db, rattled(2))
    text = refused(ConfigError, db, out, select=select)
    assert "database.select" in text
    assert select in text.replace('"', "'").replace("\\", "")


def spoil(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "spoilt.db"
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("id,energy\n1,2\n" * 200)
    elif kind == "empty":
        path.touch()
    elif kind == "other tables":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE systems (id INTEGER)")
        connection.close()
    return path


@pytest.mark.parametrize("kind", ["absent", "directory", "text", "empty", "other tables"])
def test_not_a_database(tmp_path: Path, out: Path, kind: str) -> None:
    path = spoil(tmp_path, kind)
    before = path.read_bytes() if path.is_file() else path.exists()
    assert str(path) in refused(DatabaseError, path, out)
    assert before == (path.read_bytes() if path.is_file() else path.exists())


def test_damaged_database(db: Path, out: Path) -> None:
    """A file that proves damaged halfway through is reported as damaged."""
    write_database(db, rattled(600))
    content = bytearray(db.read_bytes())
    content[len(content) // 4 : -4096] = b"\xff" * (len(content) - 4096 - len(content) // 4)
    db.write_bytes(content)
    assert str(db) in refused(DatabaseError, db, out)


BAD_ROWS: dict[str, dict[str, Any]] = {
    "no energy": {"forces": np.zeros((4, 3))},
    "energy not finite": {"energy": np.inf, "forces": np.zeros((4, 3))},
    "no forces": {"energy": -1.0},
    "values can't be decoded": {"energy": -1.0, "forces": np.zeros((4, 2))},
    "forces not finite": {"energy": -1.0, "forces": np.full((4, 3), np.nan)},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_rows_are_listed_or_rejected(db: Path, tmp_path: Path, reason: str) -> None:
    """A few bad rows are rejected and listed; many are an error with reason, count and row ids."""
    write_database(db, rattled(20))
    spoilt = write_database(db, [labelled(rattled(1)[0], **BAD_ROWS[reason])] * 2)
    record = build(db, tmp_path / "some")
    (listed,) = record.rejections.items()
    assert listed[0].startswith(reason)
    assert listed[1].rows == tuple(spoilt)
    assert record.counts.accepted == 20
    write_database(db, [labelled(rattled(1)[0], **BAD_ROWS[reason])] * 12)
    text = refused(DataError, db, tmp_path / "many")
    assert "14 of 34 rows" in text
    assert reason in text
    assert "rows 21, 22, 23" in text
    assert "and 4 more" in text


def test_isolated_atoms_do_not_dilute_rejections(db: Path, out: Path) -> None:
    write_database(db, [labelled(Atoms("Cu"), energy=-1.0)] * 50)
    write_database(db, rattled(8))
    write_database(db, [labelled(rattled(1)[0], energy=-1.0)] * 2)
    assert "2 of 10 rows" in refused(DataError, db, out)


def test_only_isolated_atoms(db: Path, out: Path) -> None:
    write_database(db, [labelled(Atoms("Cu"), energy=-1.0)] * 3)
    assert "nothing is left to train on: 3 isolated atoms" in refused(DataError, db, out)


def test_duplicates_share_a_side(db: Path, out: Path) -> None:
    """Rows with the same structure and energy are accepted, noted, and kept on one side."""
    structures = rattled(10)
    write_database(db, structures)
    write_database(db, structures)
    record = build(db, out, training={"test_fraction": 0.3})
    assert any("10 rows repeat" in note for note in record.notes)
    tested = rows_of(out, "test")
    assert len(tested) == 6
    assert {(row - 1) % 10 for row in tested} == {row - 1 for row in tested if row <= 10}


def test_contradicting_duplicates(db: Path, out: Path) -> None:
    """The same structure with different energies is an error that names rows and energies."""
    structures = rattled(10)
    write_database(db, structures)
    twin = structures[3].copy()
    energy = structures[3].calc.results["free_energy"] + 0.1
    write_database(db, [labelled(twin, energy=energy, forces=np.zeros((4, 3)))])
    text = refused(DataError, db, out)
    assert "rows 4 and 11 hold the same structure" in text
    assert f"{energy:.6f}" in text
    assert build(db, out, duplicate_tolerance=0.05).counts.accepted == 11


def test_contradictions_are_listed_with_differences_of_the_rows(db: Path, out: Path) -> None:
    """All are counted, ten are listed, with the differences of their rows."""
    structures = rattled(20)
    write_database(db, structures, xc="PBE")
    for atoms in structures[:12]:
        again = atoms.copy()
        again.set_initial_magnetic_moments([1.0] * len(again))
        twin = labelled(again, **atoms.calc.results)
        twin.calc.results["free_energy"] += 0.5
        twin.calc.name = "vasp"
        twin.calc.parameters = {"encut": 400}
        write_database(db, [twin], xc="RPBE")
    text = refused(DataError, db, out)
    assert "12 structures have rows with different energies" in text
    assert "rows 1 and 21: " in text
    assert "rows 10 and 30: " in text
    assert "rows 11 and 31" not in text
    assert "and 2 more" in text
    for difference in (
        "xc (PBE and RPBE)",
        "calculator (unknown and vasp)",
        "calculator_parameters.encut (none and 400)",
        "initial magnetic moments (none and 4.00 in all, 4.00 in size)",
    ):
        assert difference in text


def test_labels_under_other_names(db: Path, out: Path, tmp_path: Path) -> None:
    """Keys and data that resemble labels of rows without any are named, with the remedy."""
    write_database(db, rattled(20))
    with open_for_writing(db) as database:
        for atoms in rattled(3, seed=5):
            data = {"REF_forces": atoms.calc.results["forces"], "dft": {"energy": -1.2, "xc": "x"}}
            atoms.calc = None
            database.write(atoms, status="completed", REF_energy=-1.0, converged=1.0, data=data)
    text = refused(DataError, db, out)
    assert "no energy: 3 (rows 21, 22, 23)" in text
    assert "in the key REF_energy, data['REF_forces'], data['dft']['energy'], which" in text
    assert "SinglePointCalculator" in text
    notes = build(db, tmp_path / "few", max_rejected_fraction=0.5).notes
    assert any("the key REF_energy" in note for note in notes)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_json_nested_too_deep(db: Path, out: Path) -> None:
    """A row whose keys exceed the recursion limit of Python's JSON reader is always rejected."""
    write_database(db, rattled(20))
    connection = sqlite3.connect(db)
    keys = f'{{"status": "completed", "a": {nested(100_000)}}}'
    connection.execute("UPDATE systems SET key_value_pairs = ? WHERE id = 2", (keys,))
    settings = nested(100_000)
    connection.execute("UPDATE systems SET calculator_parameters = ? WHERE id = 3", (settings,))
    connection.commit()
    connection.close()
    record = build(db, out)
    assert {reason[:24]: rows.rows for reason, rows in record.rejections.items()} == {
        "values can't be decoded ": (2,)
    }
    with StructureDatabase(DatabaseConfig(url=str(db))) as database:
        assert database.count_by_status() == {"(unreadable)": 1, "completed": 19}


@pytest.mark.parametrize(
    "select",
    ["uid=9007199254740993", "uid>-9007199254740993", "1<uid<9007199254740992", "uid=1e17",
     "natoms<9007199254740993", "Cu>9007199254740993"],
)  # fmt: skip
def test_whole_numbers_that_databases_round(db: Path, out: Path, select: str) -> None:
    """Whole numbers from 2**53 are rejected: other rows would be selected."""
    write_database(db, rattled(2), uid=2**53)
    text = refused(ConfigError, db, out, select=select)
    assert "can't be selected exactly" in text
    assert "select by id" in text


@pytest.mark.parametrize("select", ["uid=9007199254740991", "id<9007199254740993", "uid<1e20"])
def test_numbers_that_databases_compare_exactly(db: Path, out: Path, select: str) -> None:
    write_database(db, rattled(10), uid=2**53 - 1)
    assert build(db, out, select=select).counts.accepted == 10


@pytest.mark.parametrize(
    ("elements", "message"),
    [(("Cu",), "the data holds Ni (row"), (("Cu", "Ni", "Au"), "names Au, which no structure")],
)
def test_elements_must_agree(db: Path, out: Path, elements: tuple[str, ...], message: str) -> None:
    """An element that only the data or only the configuration has is named."""
    write_database(db, rattled(10, symbols=("Cu", "Ni")))
    assert message in refused(DataError, db, out, training={"elements": elements})


def test_element_only_in_test(db: Path, out: Path) -> None:
    write_database(db, [*rattled(3), *rattled(1, symbols=("Au",))])
    for seed in range(100):
        try:
            build(db, out, seed=seed, training={"test_fraction": 0.25})
        except DataError as error:
            text = str(error)
            break
    else:
        pytest.fail("no seed put the only structure with gold into the test side")
    assert "Au occurs only in the test side (row 4)" in text
    assert "dataset.seed" in text


def test_side_left_empty(db: Path, out: Path) -> None:
    """Four structures at 0.1 give no test row: rejected, with the numbers."""
    write_database(db, rattled(4))
    assert "4 structures at training.test_fraction 0.1" in refused(DataError, db, out)


def test_unknown_group_key(db: Path, out: Path) -> None:
    write_database(db, rattled(10), traj="a")
    assert "'trajectory'" in refused(DataError, db, out, group_by="trajectory")


def test_key_that_gives_no_split(db: Path, out: Path) -> None:
    """One error has rows without the key, with other values, and equal ones on both sides."""
    structures = rattled(10)
    write_database(db, structures[:6], side="train")
    write_database(db, structures[6:8], side="valid")
    write_database(db, [structures[0]], side="test")
    write_database(db, structures[8:])
    text = refused(DataError, db, out, split_key="side")
    for part in ("no value in rows 10, 11", "'valid' in rows 7, 8", "train row 1, test row 9"):
        assert part in text
    assert "database.select" in text


def test_reference_energies_out_of_range(db: Path, out: Path) -> None:
    """Total energies without references would make pacemaker refit them: rejected with remedy."""
    structures = rattled(10)
    for atoms in structures:
        atoms.calc.results["free_energy"] -= 4 * 1000
    write_database(db, structures)
    text = refused(DataError, db, out, reference_energies=0)
    assert "reference_energies: auto" in text
    assert build(db, out).ranges.max_energy_corrected_ev_per_atom < 1


def test_incomplete_reference_energies(db: Path, out: Path) -> None:
    """Configured references that lack an element of the data are a configuration error."""
    write_database(db, rattled(10, symbols=("Cu", "Ni")))
    assert "no energy for Ni" in refused(ConfigError, db, out, reference_energies={"Cu": 0.0})


def test_unsupported_scheme(out: Path) -> None:
    assert "oracle:// is not supported" in refused(ConfigError, "oracle://u@h/d", out)


def test_directory_in_the_way(db: Path, tmp_path: Path) -> None:
    """A target that can't be a directory is a configuration error that names it."""
    write_database(db, rattled(10))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"can't write to .*file"):
        build(db, tmp_path / "file")


# Size

_MEASURE = """
import json, sys
from pathlib import Path
from mlip_job.config import DatabaseConfig, DatasetConfig, TrainingConfig
from mlip_job.dataset import frames
from mlip_job.dataset.builder import DatasetBuilder
frames.STRUCTURES_PER_FRAME = 200
record = DatasetBuilder(
    DatabaseConfig(url=sys.argv[1]), DatasetConfig(), TrainingConfig()
).build(Path(sys.argv[2]))
# Not getrusage: its peak begins with that of the process that forked this one.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([record.counts.accepted, int(peak)]))
"""


def test_memory_does_not_grow_with_structures(tmp_path: Path) -> None:
    """Four times the structures need nearly the same memory: far less than to hold them."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3) * 2.5
    peaks = {}
    for count in (1000, 4000):
        db = tmp_path / f"{count}.db"
        structures = (
            labelled(
                Atoms("Cu64", positions=grid + rng.normal(scale=0.1, size=grid.shape)),
                energy=-200.0,
                forces=rng.normal(size=grid.shape),
            )
            for _ in range(count)
        )
        write_database(db, structures)
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, db, tmp_path / f"out-{count}"],
            check=True,
            capture_output=True,
            text=True,
        )
        accepted, peaks[count] = json.loads(done.stdout)
        assert accepted == count
    growth_kib = peaks[4000] - peaks[1000]
    # Positions, forces and numbers of 3000 more structures of 64 atoms are 10 MiB.
    assert growth_kib < 6 * 1024, f"{growth_kib} KiB more for 3000 more structures"
