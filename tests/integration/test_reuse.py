"""A dataset in the store is found by its query, and not reused after a row was written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import JobConfig, StorageConfig
from mlip_job.dataset.record import DatasetRecord
from mlip_job.generation import export_generation
from mlip_job.registry import Registry
from mlip_job.registry.maintenance import collect_garbage, find_orphans
from mlip_job.store.open import open_store
from tests.generations import Silent, make_config
from tests.servers.databases import DatabaseServer
from tests.support import open_for_writing, rattled, write_database

FOUND = "no row was written since"


def config_of(tmp_path: Path, **sections: Any) -> JobConfig:
    return make_config(tmp_path, **{"training": {}} | sections)


def export(config: JobConfig, generation: int = 1, **options: Any) -> tuple[DatasetRecord, bool]:
    observer, store = Silent(), open_store(config.storage)
    record = export_generation(config, generation, store=store, observer=observer, **options)
    said = "\n".join(observer.messages)
    found = FOUND in said
    assert found != ("reading " in said)
    return record, found


def test_the_same_query_finds_its_dataset(tmp_path: Path) -> None:
    """Without reading rows; with -o its files come unchanged from the store."""
    write_database(tmp_path / "structures.db", rattled(20))
    config = config_of(tmp_path)
    first, found = export(config, output=tmp_path / "built")
    assert not found
    for options in ({}, {"output": tmp_path / "fetched"}):
        assert export(config, **options) == (first, True)
    for path in (tmp_path / "built").iterdir():
        assert (tmp_path / "fetched" / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("change", ["update", "write", "delete", "deselect"])
def test_any_write_to_a_row_is_detected(tmp_path: Path, change: str) -> None:
    """Then the rows are read; their content decides, and is found the next time."""
    path = tmp_path / "structures.db"
    structures = rattled(21)
    write_database(path, structures[:20], status="completed")
    config = config_of(tmp_path)
    first, _ = export(config)
    with open_for_writing(path) as database:
        if change == "update":
            database.update(3, remark="looked at")
        elif change == "write":
            database.write(structures[20], status="completed")
        elif change == "delete":
            database.delete([3])
        else:
            database.update(3, status="failed")
    second, found = export(config)
    assert not found
    assert (second.id == first.id) == (change == "update")
    again, found = export(config)
    assert (again.id, found) == (second.id, True)


@pytest.mark.parametrize(
    "sections",
    [
        {"dataset": {"seed": 1}},
        {"dataset": {"max_force": 100.0}},
        {"training": {"cutoff": 6.0}},
        {"training": {"test_fraction": 0.2}},
        {"training": {"elements": ["Cu"]}},
    ],
    ids=str,
)
def test_other_settings_are_another_query(tmp_path: Path, sections: dict[str, Any]) -> None:
    """Settings that determine the dataset, or how its rows are checked."""
    write_database(tmp_path / "structures.db", rattled(20))
    export(config_of(tmp_path))
    assert not export(config_of(tmp_path, **sections))[1]


def test_settings_of_the_fit_do_not_change_the_query(tmp_path: Path) -> None:
    write_database(tmp_path / "structures.db", rattled(20))
    export(config_of(tmp_path))
    assert export(config_of(tmp_path, training={"max_iter": 7, "force_weight": 3.0}))[1]


def test_another_database_is_another_query(tmp_path: Path) -> None:
    write_database(tmp_path / "structures.db", rattled(20))
    record, _ = export(config_of(tmp_path))
    copy = tmp_path / "copy.db"
    copy.write_bytes((tmp_path / "structures.db").read_bytes())
    second, found = export(config_of(tmp_path, database={"url": str(copy)}))
    assert not found
    assert second.id == record.id


def test_changes_by_sql_need_rebuild(tmp_path: Path) -> None:
    """ASE records the time of each write, SQL does not; --rebuild always reads the rows."""
    path = tmp_path / "structures.db"
    write_database(path, rattled(20))
    config = config_of(tmp_path)
    first, _ = export(config)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE systems SET free_energy = free_energy + 0.001 WHERE id = 1")
        connection.commit()
    assert export(config) == (first, True)
    second, found = export(config, rebuild=True)
    assert not found
    assert second.id != first.id
    assert export(config) == (second, True)


@pytest.mark.parametrize("damage", ["note", "other note", "record", "no record", "file"])
def test_a_damaged_dataset_is_rebuilt(tmp_path: Path, damage: str) -> None:
    """The query record is a hint; nothing damaged or changed is used."""
    write_database(tmp_path / "structures.db", rattled(20))
    config = config_of(tmp_path)
    first, _ = export(config)
    folder = tmp_path / "store" / "cu"
    (note,) = (folder / "queries").iterdir()
    record = folder / "datasets" / first.id / "dataset.json"
    if damage == "note":
        note.write_text("{")
    elif damage == "other note":
        note.write_text(note.read_text().replace(first.id, "0" * 16))
    elif damage == "record":
        record.write_text(record.read_text().replace('"seed": 42', '"seed": 43'))
    elif damage == "no record":
        record.unlink()
    else:
        record.with_name("train.pckl.gzip").write_bytes(b"")
    second, found = export(config, output=tmp_path / "out")
    assert not found
    assert second.id == first.id
    assert (tmp_path / "out" / "train.pckl.gzip").stat().st_size > 0


def test_gc_removes_query_records_of_removed_datasets(tmp_path: Path) -> None:
    write_database(tmp_path / "structures.db", rattled(20))
    config = config_of(tmp_path)
    export(config)
    registry = Registry(open_store(config.storage), config.family)
    assert [orphan.what for orphan in find_orphans(registry, timedelta(0))] == [
        "a dataset of no generation"
    ]
    assert [orphan.what for orphan in collect_garbage(registry, timedelta(0))] == [
        "a dataset of no generation",
        "a note of a dataset that is gone",
    ]
    assert list(registry.store.list("cu/")) == []
    assert not export(config)[1]


def test_on_postgresql_and_s3(
    tmp_path: Path,
    postgresql: DatabaseServer,
    s3_bucket: StorageConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", postgresql.password)
    name = postgresql.new_database()
    write_database(postgresql.url_with_password(name), rattled(20))
    config = config_of(
        tmp_path, database={"url": postgresql.url(name)}, storage=s3_bucket.model_dump()
    )
    first, found = export(config)
    assert not found
    assert export(config, output=tmp_path / "out") == (first, True)
    store = open_store(config.storage)
    (note,) = store.list("cu/queries/")
    assert postgresql.password.encode() not in store.get(note.key)
    with open_for_writing(postgresql.url_with_password(name)) as database:
        database.update(3, remark="looked at")
    second, found = export(config)
    assert (second.id, found) == (first.id, False)
