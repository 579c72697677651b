"""Full and read-only disks: small file systems, mounted for the test."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mlip_job.config import DatabaseConfig
from mlip_job.dataset.database import StructureDatabase
from mlip_job.errors import DatabaseError
from tests.faults import jobs
from tests.faults.jobs import Job, MakeConfig
from tests.faults.replay import REPLAYED, REPLAYED_ITERATIONS, replayed_pacemaker
from tests.faults.tally import Tally
from tests.servers.kernel import require_kernel
from tests.support import rattled, write_database

RUN = {"checkpoint_interval": 0.05, "heartbeat_interval": 0.2, "retry_timeout": 3}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("only root mounts file systems: run the tests as root")
    require_kernel("unshare", "--mount", "--", "mount", "-t", "tmpfs", "none", str(tmp_path))
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


def remount(disk: Path, options: str) -> None:
    command = ["mount", "-o", f"remount,{options}", str(disk)]
    for _ in range(1000):
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.005)
    raise AssertionError(f"can't remount {disk} with {options}")


@pytest.mark.parametrize("place", ["store", "work"])
def test_a_disk_fills_up(
    make_config: MakeConfig, disk: Path, tmp_path: Path, tally: Tally, place: str
) -> None:
    """Each failure is one line; with more space the same command resumes."""
    places = {"storage": {"url": str(disk)}} if place == "store" else {"work_dir": str(disk)}
    config = make_config(REPLAYED, run=RUN, **places)
    fault = replayed_pacemaker(tmp_path)
    ended: list[Job] = []
    for size in (16, 64, 112, 160, 240, 320, 100_000):
        remount(disk, f"size={size}k")
        ended.append(jobs.run_job(config, tmp_path, fault=fault))
        jobs.require_whole_or_nothing(config)
        if ended[-1].code == 0:
            break
        jobs.require_one_error(ended[-1], str(disk))
    assert len(ended) > 3
    manifest = jobs.require_complete(config)
    assert manifest.headline.iterations == REPLAYED_ITERATIONS
    tally.count_end([job.text() for job in ended], REPLAYED_ITERATIONS)
    jobs.require_repeatable(config, tmp_path)


def test_a_store_turns_read_only_in_the_fit(
    make_config: MakeConfig, disk: Path, tmp_path: Path, tally: Tally
) -> None:
    remount(disk, "size=50m")
    config = make_config(REPLAYED, run=RUN, storage={"url": str(disk)})
    fault = replayed_pacemaker(tmp_path)
    job = jobs.start_job(config, tmp_path, fault=fault)
    end = time.monotonic() + 60
    while jobs.iterations_safe(config) == 0:
        assert job.poll() is None, job.text()
        assert time.monotonic() < end, job.text()
    remount(disk, "ro")
    job.wait()
    jobs.require_one_error(job, "Read-only file system")
    assert jobs.registry_of(config).numbers() == []
    remount(disk, "rw")
    jobs.require_whole_or_nothing(config)
    again = jobs.run_job(config, tmp_path, fault=fault)
    assert again.code == 0, again.text()
    assert "resuming from" in again.text()
    manifest = jobs.require_complete(config)
    tally.count_end([job.text(), again.text()], manifest.headline.iterations)


def test_an_unused_database_in_wal_mode_is_read_from_a_read_only_disk(disk: Path) -> None:
    """SQLite would have to create files next to it; a database that is not in use can't change."""
    remount(disk, "size=50m")
    path = disk / "structures.db"
    write_database(path, rattled(4))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    remount(disk, "ro")
    config = DatabaseConfig(url=str(path), select="")
    with StructureDatabase(config) as database:
        assert len(list(database.rows())) == 4
    with StructureDatabase(config) as pages:
        assert len(pages.select().ids) == 4


def test_a_database_in_use_in_wal_mode_on_a_read_only_disk_has_a_remedy(disk: Path) -> None:
    remount(disk, "size=50m")
    path = disk / "structures.db"
    write_database(path, rattled(4))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE other (id INTEGER)")
        connection.commit()
        wal = path.with_name("structures.db-wal").read_bytes()
    path.with_name("structures.db-wal").write_bytes(wal)
    remount(disk, "ro")
    with (
        pytest.raises(DatabaseError, match="it is in WAL mode") as error,
        StructureDatabase(DatabaseConfig(url=str(path), select="")),
    ):
        pass
    assert "journal_mode=DELETE" in (error.value.hint or "")
