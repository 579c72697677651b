"""A database that becomes unavailable during the export."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import JobConfig
from mlip_job.dataset.rows import Row
from tests.faults import jobs
from tests.faults.jobs import Job, MakeConfig
from tests.faults.replay import REPLAYED, both, replayed_pacemaker
from tests.servers.databases import DatabaseServer
from tests.support import rattled, write_database

RUN = {"checkpoint_interval": 0.1, "heartbeat_interval": 0.3, "retry_timeout": 20}


def after_pages(count: int, action: Callable[[], None]) -> Callable[[], None]:
    """Return a fault that happens once, after a number of pages of selected rows."""

    def install() -> None:
        from mlip_job.dataset import database

        database.PAGE = 3
        original = database.StructureDatabase.pages
        pending = [action]

        def pages(*arguments: Any) -> Iterator[list[Row]]:
            found = original(*arguments)
            for _ in range(count):
                yield next(found)
            while pending:
                pending.pop()()
            yield from found

        database.StructureDatabase.pages = pages  # type: ignore[method-assign]

    return install


@pytest.fixture
def database(postgresql: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", postgresql.password)
    name = postgresql.new_database()
    write_database(postgresql.url_with_password(name), rattled(8))
    return name


def disconnect(server: DatabaseServer, name: str) -> None:
    ids = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    server.execute(f"{ids} WHERE datname = '{name}'")


def require_nothing_written(job: Job, config: JobConfig, tmp_path: Path) -> None:
    jobs.require_one_error(job)
    registry = jobs.registry_of(config)
    assert not list(registry.store.list(registry.keys.datasets))
    assert not list((tmp_path / "work").glob("gen_01/*/dataset/*"))


def test_a_lost_connection_is_restored(
    make_config: MakeConfig, postgresql: DatabaseServer, database: str, tmp_path: Path
) -> None:
    config = make_config(REPLAYED, run=RUN, database={"url": postgresql.url(database)})
    cut = after_pages(1, lambda: disconnect(postgresql, database))
    job = jobs.run_job(config, tmp_path, fault=both(replayed_pacemaker(tmp_path), cut))
    assert job.code == 0, job.text()
    assert "trying again in" in job.text()
    assert postgresql.password not in job.text()
    manifest = jobs.require_complete(config)
    assert manifest.dataset.train + manifest.dataset.test == 8


def test_a_server_that_stays_unavailable_ends_the_job(
    make_config: MakeConfig, postgresql: DatabaseServer, database: str, tmp_path: Path
) -> None:
    """After limited retries, with one line; once it is available the same command trains."""
    run = RUN | {"retry_timeout": 1.5}
    config = make_config(REPLAYED, run=run, database={"url": postgresql.url(database)})

    def shut() -> None:
        postgresql.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        disconnect(postgresql, database)

    fit = replayed_pacemaker(tmp_path)
    started = time.monotonic()
    job = jobs.run_job(config, tmp_path, fault=both(fit, after_pages(1, shut)))
    assert time.monotonic() - started < 60
    require_nothing_written(job, config, tmp_path)
    assert postgresql.password not in job.text()
    postgresql.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    again = jobs.run_job(config, tmp_path, fault=fit)
    assert again.code == 0, again.text()
    jobs.require_complete(config)


def test_a_locked_file_is_waited_for(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(REPLAYED, run=RUN)

    def wait_little_for_locks() -> None:
        connect = sqlite3.connect
        sqlite3.connect = lambda name, **_: connect(name, timeout=0.1)  # type: ignore[assignment]

    fault = both(replayed_pacemaker(tmp_path), wait_little_for_locks)
    hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); "
    # A separate process, because SQLite's locks are shared with forked children.
    writer = subprocess.Popen(
        [sys.executable, "-c", hold + "print(flush=True); input()", tmp_path / "structures.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    job = jobs.start_job(config, tmp_path, fault=fault)
    end = time.monotonic() + 60
    while "trying again in" not in job.text():
        assert job.poll() is None, job.text()
        assert time.monotonic() < end, job.text()
        time.sleep(0.05)
    writer.communicate(b"\n")
    assert job.wait() == 0, job.text()
    jobs.require_complete(config)


def test_a_truncated_file_ends_the_export(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(REPLAYED, run=RUN)
    path = tmp_path / "structures.db"
    whole = path.read_bytes()

    def cut() -> None:
        path.write_bytes(bytes(len(whole) // 3))

    fit = replayed_pacemaker(tmp_path)
    job = jobs.run_job(config, tmp_path, fault=both(fit, after_pages(0, cut)))
    require_nothing_written(job, config, tmp_path)
    assert "structures.db can't be read" in job.text()
    path.write_bytes(whole)
    again = jobs.run_job(config, tmp_path, fault=fit)
    assert again.code == 0, again.text()
    jobs.require_complete(config)
