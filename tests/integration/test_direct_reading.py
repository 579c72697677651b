"""Rows read directly from ASE's tables equal ASE's rows to the last bit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, molecule
from ase.constraints import FixAtoms

from mlip_job.config import DatabaseConfig
from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.rows import Row, StructureRow
from mlip_job.errors import DatabaseError
from tests.reference import read_rows, require_same_row
from tests.servers.databases import DatabaseServer
from tests.support import labelled, open_for_writing, rattled, with_emt, write_database

NAN, INF = float("nan"), float("inf")
ZERO = np.zeros((4, 3))


@pytest.fixture(params=["sqlite", "postgresql"])
def target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """Return an empty database of each kind that is read directly: to write to, and to read."""
    if request.param == "sqlite":
        path = str(tmp_path / "structures.db")
        yield path, path
        return
    server: DatabaseServer = request.getfixturevalue("postgresql")
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", server.password)
    name = server.new_database()
    yield server.url_with_password(name), server.url(name)


def odd_structures() -> list[Atoms]:
    fixed = fcc111("Cu", (2, 2, 2), vacuum=8)
    fixed.set_constraint(FixAtoms([0, 1]))
    first = rattled(1)[0]
    full = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])
    single = first.calc.results["forces"].astype(np.float32)
    return [
        *rattled(5, symbols=("Cu", "Au")),
        with_emt(fixed),
        with_emt(molecule("H2O")),
        Atoms(),
        Atoms("Cu"),
        labelled(Atoms("Cu"), energy=-0.1),
        labelled(first, energy=-1.0),
        labelled(first, forces=ZERO),
        labelled(first, free_energy=-1.0, forces=ZERO),
        labelled(first, energy=-1.0, forces=np.zeros((3, 3))),
        labelled(first, energy=-1.0, forces=np.zeros((4, 2))),
        labelled(first, energy=-1.0, forces=np.zeros((8, 3))),
        labelled(first, energy=-1.0, forces=single),
        labelled(first, energy=-1.0, forces=np.full((4, 3), NAN)),
        labelled(first, energy=INF, forces=-ZERO),
        labelled(first, energy=NAN, free_energy=NAN, forces=ZERO),
        labelled(first, energy=1, forces=ZERO, stress=full),
        labelled(first, energy=1, forces=ZERO, stress=np.full(6, NAN)),
        labelled(first, energy=1, forces=ZERO, stress=np.zeros(5)),
        labelled(first, energy=1, forces=ZERO, stress=np.arange(6.0), magmoms=np.ones(4)),
        labelled(Atoms("Cu2", positions=np.full((2, 3), INF)), energy=0.0, forces=np.zeros((2, 3))),
        labelled(Atoms("Cu2", [(0, 0, 0), (5e-324, -0.0, 1e300)]), energy=-0.0,
                 forces=np.full((2, 3), 0.1 + 0.2)),
    ]  # fmt: skip


PAIRS = [
    {"status": "completed", "config_type": "bulk", "n": 1, "x": 0.1, "flag": True},
    {"config_type": 'odd "text", é\n', "status": "completed", "big": 2**40, "tiny": 1e-320},
    {},
]


def fill(name: str) -> None:
    with open_for_writing(name) as database:
        for index, atoms in enumerate(odd_structures()):
            data = {"array": np.arange(3.0)} if index % 4 == 0 else {}
            database.write(atoms, PAIRS[index % len(PAIRS)], data=data)
        database.reserve(name="reserved")
    with open_for_writing(name) as database:
        database.update(2, n=7)
        database.delete([4])


@pytest.mark.parametrize("page", [1, 3, 500])
def test_every_row_is_the_one_that_ase_reads(
    target: tuple[str, str], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", page)
    fill(target[0])
    config = DatabaseConfig(url=target[1], select="")
    by_ase: list[int] = []

    def row(database: StructureDatabase, id_: int) -> Row | None:
        by_ase.append(id_)
        return original(database, id_)

    original = StructureDatabase.row
    with StructureDatabase(config) as database, monkeypatch.context() as patch:
        patch.setattr(StructureDatabase, "row", row)
        assert database.slow_because is None
        selected = database.select()
        found = [row for page in database.pages(selected) for row in page]
    expected = read_rows(config)
    assert [row.id for row in found] == [row.id for row in expected] == selected.ids.tolist()
    assert len(found) == len(odd_structures())
    for mine, reference in zip(found, expected, strict=True):
        require_same_row(mine, reference)
    assert len(by_ase) <= len(found) - 12


SELECTIONS = [
    "",
    "status=completed",
    "status!=completed",
    "config_type=bulk,n=1",
    "flag=True",
    "n>0,n<8",
    "1<n<=7",
    "x=0.1",
    "tiny",
    "natoms=4",
    "2<=natoms<9",
    "Cu",
    "Cu=4",
    "Cu>1,Au",
    "Au=0",
    "Cu<3",
    "H2O",
    "formula=H2O",
    "energy<0",
    "energy",
    "forces",
    "pbc=TTT",
    "pbc!=FFF",
    "fmax<0.5",
    "volume>40",
    "calculator=unknown",
    "id>3,id<9",
    "age<1d",
    "age>1d",
    "charge=0",
]


def test_selections_agree_with_ase(target: tuple[str, str]) -> None:
    """Every kind of expression gives the rows of ASE's select; most select only some."""
    fill(target[0])
    partial = 0
    for select in SELECTIONS:
        with open_for_writing(target[0]) as database:
            expected = sorted(row.id for row in database.select(select, columns=["id"]))
        with StructureDatabase(DatabaseConfig(url=target[1], select=select)) as paged:
            selected = paged.select()
            found = [row.id for row in paged.rows()]
        assert selected.ids.tolist() == found == expected, select
        partial += 0 < len(found) < len(odd_structures())
    assert partial > len(SELECTIONS) * 2 // 3


def test_rows_written_during_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between selection and page a row may change, stop matching, or be deleted."""
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", 2)
    path = tmp_path / "structures.db"
    structures = rattled(9)
    write_database(path, structures[:8])
    with StructureDatabase(DatabaseConfig(url=str(path))) as paged:
        pages = paged.pages(paged.select())
        found = next(pages)
        # Writers do not have to wait for the reader: the lock is tried once.
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            connection.execute("UPDATE information SET value = value")
            connection.commit()
        with open_for_writing(path) as database:
            database.update(4, status="failed")
            database.update(5, atoms=structures[8])
            database.update(6, remark="looked at")
            database.delete([7])
            database.write(structures[8], status="completed")
        found += [row for page in pages for row in page]
    assert [row.id for row in found] == [1, 2, 3, 5, 6, 8]
    changed = found[3]
    assert isinstance(changed, StructureRow)
    np.testing.assert_array_equal(changed.positions, structures[8].positions)


def test_a_snapshot_of_postgresql(
    postgresql: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are those at the time of selection, even during concurrent writes."""
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", postgresql.password)
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", 2)
    name = postgresql.new_database()
    write_database(postgresql.url_with_password(name), rattled(8))
    with StructureDatabase(DatabaseConfig(url=postgresql.url(name))) as paged:
        selected = paged.select()
        with open_for_writing(postgresql.url_with_password(name)) as database:
            database.update(4, status="failed")
            database.delete([7])
        found = [row for page in paged.pages(selected) for row in page]
    assert [row.id for row in found] == list(range(1, 9))


def test_the_state_of_rows_changes_with_every_write(target: tuple[str, str]) -> None:
    """A changed keyword, a new row, a deleted row; reading changes nothing."""
    name, url = target
    ids = write_database(name, rattled(4))

    def state() -> str:
        with StructureDatabase(DatabaseConfig(url=url)) as paged:
            return paged.select().summary().sha256

    states = [state()]
    assert state() == states[0]
    for change in ("update", "write", "delete", "deselect", "select"):
        with open_for_writing(name) as database:
            if change == "update":
                database.update(ids[0], remark="looked at")
            elif change == "write":
                database.write(rattled(1, seed=1)[0], status="completed")
            elif change == "delete":
                database.delete([ids[1]])
            else:
                status = "failed" if change == "deselect" else "completed"
                database.update(ids[2], status=status)
        states.append(state())
    assert len(set(states)) == len(states)


def test_a_row_of_a_slow_transaction_changes_the_state(tmp_path: Path) -> None:
    """Count, largest id and newest time stay the same; the rows do not."""
    path = tmp_path / "structures.db"
    write_database(path, rattled(3))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE systems SET mtime = mtime + 1 WHERE id = 3")
        connection.commit()
        with StructureDatabase(DatabaseConfig(url=str(path))) as paged:
            before = paged.select().summary()
        # ASE writes the time at which the transaction began.
        connection.execute("UPDATE systems SET mtime = mtime + 0.5, energy = 0 WHERE id = 1")
        connection.commit()
    with StructureDatabase(DatabaseConfig(url=str(path))) as paged:
        after = paged.select().summary()
    assert (before.count, before.max_id, before.max_mtime) == (
        after.count, after.max_id, after.max_mtime,
    )  # fmt: skip
    assert before.sha256 != after.sha256


@pytest.mark.parametrize(("version", "fast"), [(7, False), (8, True), (9, True)])
def test_versions_of_the_tables(tmp_path: Path, version: int, fast: bool) -> None:
    path = tmp_path / "structures.db"
    write_database(path, rattled(3))
    _execute(path, f"UPDATE information SET value = '{version}' WHERE name = 'version'")  # noqa: S608
    config = DatabaseConfig(url=str(path))
    with StructureDatabase(config) as paged:
        assert (paged.slow_because is None) == fast
        assert fast or f"version {version}" in str(paged.slow_because)
        found = list(paged.rows())
    for mine, reference in zip(found, read_rows(config), strict=True):
        require_same_row(mine, reference)


def test_later_versions_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "structures.db"
    write_database(path, rattled(3))
    _execute(path, "UPDATE information SET value = '10' WHERE name = 'version'")
    with (
        pytest.raises(DatabaseError, match="version 10"),
        StructureDatabase(DatabaseConfig(url=str(path))),
    ):
        pass


def test_external_tables_change_nothing(tmp_path: Path) -> None:
    """ASE reads them with each row; they hold nothing that a dataset uses."""
    path = tmp_path / "structures.db"
    with ase.db.connect(str(path), type="db") as database:
        for atoms in rattled(3):
            pairs = {"status": "completed", "external_tables": {"extra": {"a": 1.0}}}
            database.write(atoms, pairs)
    config = DatabaseConfig(url=str(path))
    with StructureDatabase(config) as paged:
        found = list(paged.rows())
    for mine, reference in zip(found, read_rows(config), strict=True):
        require_same_row(mine, reference)


def test_values_of_a_wrong_kind(tmp_path: Path) -> None:
    """SQLite does not enforce types; such rows are the same as through ASE."""
    path = tmp_path / "structures.db"
    write_database(path, rattled(8))
    for id_, change in enumerate(
        (
            "positions = 'text'",
            "cell = NULL",
            "pbc = NULL",
            "energy = 'low'",
            "numbers = x'01'",
            "key_value_pairs = 'none'",
            "stress = x'00'",
        ),
        start=1,
    ):
        _execute(path, f"UPDATE systems SET {change} WHERE id = {id_}")  # noqa: S608
    config = DatabaseConfig(url=str(path), select="")
    with StructureDatabase(config) as paged:
        found = list(paged.rows())
    expected = read_rows(config)
    assert len(found) == len(expected) == 8
    for mine, reference in zip(found, expected, strict=True):
        require_same_row(mine, reference)


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
