"""The same structures give the same dataset from SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

from mlip_job.config import DatabaseConfig, DatasetConfig, TrainingConfig
from mlip_job.dataset.builder import DatasetBuilder
from mlip_job.dataset.database import Selected, StructureDatabase
from mlip_job.dataset.record import DatasetRecord
from mlip_job.dataset.rows import StructureRow
from mlip_job.errors import ConfigError, DatabaseError, DataError
from tests.servers.databases import DatabaseServer
from tests.support import labelled, open_for_writing, rattled, with_emt, write_database

# ase-db-backends 0.11 calls PyMySQL with deprecated argument names.
pytestmark = pytest.mark.filterwarnings("ignore:'(db|passwd)' is deprecated:DeprecationWarning")

PASSWORD = "MLIP_JOB_DATABASE_PASSWORD"  # noqa: S105 - the name of the variable


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DatabaseServer:
    running: DatabaseServer = request.getfixturevalue(request.param)
    monkeypatch.setenv(PASSWORD, running.password)
    return running


def structures() -> list[Atoms]:
    """Return crystals of five elements, molecules, a constrained cell and isolated atoms."""
    fixed = rattled(1, seed=9)[0]
    constrained = fixed.copy()
    constrained.set_constraint(FixAtoms([0, 1]))
    molecules = [with_emt(Atoms("CO", [(0, 0, 0), (0, 0, 1.1 + n / 50)])) for n in range(6)]
    return [
        *rattled(30, symbols=("Cu", "Ag", "Au", "Ni", "Pt")),
        labelled(constrained, **fixed.calc.results),
        *molecules,
        labelled(Atoms("Cu"), energy=-0.1),
    ]


def fill(target: Path | str, rows: list[Atoms], order: list[int]) -> None:
    """Reserve a row for each structure, then store them in this order under the same ids."""
    with open_for_writing(target) as database:
        ids = [database.reserve(number=number) for number in range(len(rows))]
        for index in order:
            pairs = {"number": index, "status": "completed", "config_type": f"type {index % 3}"}
            database.write(rows[index], key_value_pairs=pairs, id=ids[index])
        # An update moves the row to the end of PostgreSQL's table.
        for index in order[::4]:
            database.update(ids[index], status="completed")


def build(url: str, directory: Path, select: str = "status=completed") -> DatasetRecord:
    config = DatabaseConfig(url=url, select=select)
    return DatasetBuilder(config, DatasetConfig(), TrainingConfig()).build(directory)


def test_same_dataset_from_every_database(tmp_path: Path, server: DatabaseServer) -> None:
    """Identity and bytes don't depend on the kind of database or on the order of insertion."""
    rows = structures()
    forwards = list(range(len(rows)))
    fill(tmp_path / "structures.db", rows, forwards)
    expected = build(str(tmp_path / "structures.db"), tmp_path / "sqlite")
    assert expected.counts.accepted == len(rows) - 1
    name = server.new_database()
    shuffled = np.random.default_rng(1).permutation(len(rows)).tolist()
    assert shuffled != forwards
    fill(server.url_with_password(name), rows, shuffled)
    record = build(server.url(name), tmp_path / "server")
    assert record.id == expected.id
    assert record.files == expected.files
    for file in expected.files:
        assert (tmp_path / "server" / file).read_bytes() == (
            tmp_path / "sqlite" / file
        ).read_bytes()
    assert record.database == server.url(name)
    assert server.password not in record.to_json()


def test_rows_come_in_the_order_of_ids_across_pages(
    server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paging yields each selected row once, in order, although updates moved some of them."""
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", 7)
    name = server.new_database()
    fill(server.url_with_password(name), structures(), list(range(37, -1, -1)))
    with StructureDatabase(DatabaseConfig(url=server.url(name), select="number!=20")) as database:
        ids = [row.id for row in database.rows()]
        assert len(ids) == 37
        assert database.describe() == server.url(name)
        assert ids == sorted(ids)
        assert database.count_by_status() == {"completed": 38}


@pytest.mark.parametrize("step", [3, 30])
def test_only_requested_rows_are_read(server: DatabaseServer, step: int) -> None:
    name = server.new_database()
    rows = structures()
    fill(server.url_with_password(name), rows, list(range(len(rows))))
    with StructureDatabase(DatabaseConfig(url=server.url(name))) as database:
        selected = database.select()
        assert len(selected.ids) == len(rows)
        some = Selected(selected.ids[::step], selected.mtimes[::step])
        found = [row.id for page in database.pages(some) for row in page]
    assert found == some.ids.tolist()


def test_gaps_between_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows far apart, after many were deleted or deselected, are all found."""
    monkeypatch.setattr("mlip_job.dataset.database.PAGE", 2)
    path = tmp_path / "structures.db"
    ids = write_database(path, [labelled(Atoms("Cu"), energy=0.0)] * 30)
    kept = [ids[0], ids[9], ids[10], ids[29]]
    with open_for_writing(path) as database:
        for id_ in kept:
            database.update(id_, kept=True)
    with StructureDatabase(DatabaseConfig(url=str(path), select="kept=True")) as database:
        assert [row.id for row in database.rows()] == kept


def test_misshapen_forces(server: DatabaseServer, tmp_path: Path) -> None:
    """Forces of the wrong shape are rejected with their row, the others are kept."""
    name = server.new_database()
    write_database(server.url_with_password(name), rattled(20))
    broken = labelled(rattled(1)[0], energy=-1.0, forces=np.zeros((4, 2)))
    (row_id,) = write_database(server.url_with_password(name), [broken])
    record = build(server.url(name), tmp_path / "out")
    ((_, rejected),) = record.rejections.items()
    assert rejected.rows == (row_id,)
    assert record.counts.accepted == 20


def test_not_finite_numbers(
    postgresql: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, postgresql.password)
    name = postgresql.new_database()
    target = postgresql.url_with_password(name)
    write_database(target, rattled(20))
    write_database(target, [labelled(rattled(1)[0], energy=float("nan"), forces=np.zeros((4, 3)))])
    record = build(postgresql.url(name), tmp_path / "out")
    assert record.rejections["energy not finite"].rows == (21,)


def test_nothing_selected(server: DatabaseServer, tmp_path: Path) -> None:
    name = server.new_database()
    write_database(server.url_with_password(name), rattled(3), status="failed")
    with pytest.raises(DataError, match="failed: 3"):
        build(server.url(name), tmp_path / "out")


def test_wrong_password(
    server: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rejected password is reported without it, with the variable that holds it."""
    monkeypatch.setenv(PASSWORD, "s3cret-and-wrong")
    name = server.new_database()
    with pytest.raises(DatabaseError) as caught:
        build(server.url(name), tmp_path / "out")
    text = str(caught.value)
    assert server.url(name) in text
    assert PASSWORD in text
    assert "s3cret-and-wrong" not in text
    assert not (tmp_path / "out").exists()


def test_password_of_the_drivers_own_variable(
    server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD)
    own = "PGPASSWORD" if server.scheme == "postgresql" else "MYSQL_PWD"
    monkeypatch.setenv(own, server.password)
    name = server.new_database()
    write_database(server.url_with_password(name), rattled(2))
    with StructureDatabase(DatabaseConfig(url=server.url(name))) as database:
        rows = list(database.rows())
    assert all(isinstance(row, StructureRow) for row in rows)
    assert len(rows) == 2


def test_empty_database_is_left_empty(server: DatabaseServer, tmp_path: Path) -> None:
    """A database without ASE's tables is rejected, and none are created: reading writes nothing."""
    name = server.new_database()
    for _ in range(2):
        with pytest.raises(DatabaseError, match="not an ASE database"):
            build(server.url(name), tmp_path / "out")


def test_absent_database(server: DatabaseServer, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="no_such_database"):
        build(server.url("no_such_database"), tmp_path / "out")


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_server_down(tmp_path: Path, scheme: str) -> None:
    """A server that is not running is a transient error with its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(DatabaseError, match=f"127.0.0.1:{port}") as caught:
            build(f"{scheme}://ase@127.0.0.1:{port}/db", tmp_path / "out")
    assert caught.value.exit_code == 69
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://host:3306/db",
        "mysql://user@host",
        "mysql://u@h:port/db",
        "postgresql://u@h:p%zz/db",
    ],
)
def test_malformed_url(tmp_path: Path, url: str) -> None:
    """A URL that can't be parsed is a configuration error with an example."""
    with pytest.raises(ConfigError, match=r"not a valid .* URL"):
        build(url, tmp_path / "out")


def test_missing_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver, the error names the package and extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    with pytest.raises(DatabaseError, match="psycopg2") as caught:
        build("postgresql://u@localhost/db", tmp_path / "out")
    assert "mlip-job[postgresql]" in str(caught.value.hint)
