"""Checkpoints are complete or absent; two are kept; the furthest is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlip_job.errors import IntegrityError, StoreError
from mlip_job.registry import Checkpoint, Checkpoints, DatasetReference, Registry
from mlip_job.training.trainer import FitPosition
from tests.manifests import make_checkpoint

DATASET = DatasetReference(
    id="0123456789abcdef",
    record_sha256="0" * 64,
    train=90,
    test=10,
    database="structures.db",
    selection="",
    inherited_from=None,
)


@pytest.fixture
def checkpoints(registry: Registry) -> Checkpoints:
    return registry.checkpoints(3)


def at(iteration: int, *, step: int = 0, finished: bool = False) -> FitPosition:
    return FitPosition(
        ladder_step=step,
        iteration=iteration,
        step_done=finished,
        last_step=True,
        finished=finished,
    )


def save(
    checkpoints: Checkpoints,
    directory: Path,
    attempt: str,
    number: int,
    position: FitPosition,
    **details: Any,
) -> Checkpoint:
    """Store a checkpoint whose potential contains its position; return it."""
    files = {"potential.yaml": directory / "p", "metrics/metrics.txt": directory / "m"}
    for path in files.values():
        path.write_text(f"{path.name} of {attempt} at {position}")
    known = {"attempt": attempt, "number": number, "position": position, "dataset": DATASET}
    saved = []

    def describe(hashes: dict[str, str]) -> Checkpoint:
        saved.append(make_checkpoint(hashes, **known, **details))
        return saved[0]

    checkpoints.save(files, describe)
    return saved[0]


def keys(registry: Registry) -> list[str]:
    prefix = registry.keys.generation(3, "attempts/")
    return [info.key.removeprefix(prefix) for info in registry.store.list(prefix)]


def test_a_stored_checkpoint_can_be_fetched(checkpoints: Checkpoints, tmp_path: Path) -> None:
    saved = save(checkpoints, tmp_path, "a1", 1, at(7))
    assert checkpoints.found() == [saved]
    checkpoints.fetch(saved, tmp_path / "new")
    assert (tmp_path / "new" / "potential.yaml").read_text() == "p of a1 at iteration 7"
    assert (tmp_path / "new" / "metrics" / "metrics.txt").read_text() == "m of a1 at iteration 7"
    assert str(saved) == "checkpoint 1 of attempt a1"


def test_the_furthest_comes_first(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Not the newest: an attempt that lost its claim may have continued for a while."""
    for attempt, position in (
        ("a1", at(9)),
        ("a2", at(2, step=1)),
        ("a3", at(3)),
        ("a4", at(1, finished=True)),
    ):
        save(checkpoints, tmp_path, attempt, 1, position)
    assert [found.attempt for found in checkpoints.found()] == ["a4", "a2", "a1", "a3"]


def test_the_newest_two_are_kept(
    checkpoints: Checkpoints, registry: Registry, tmp_path: Path
) -> None:
    """Two of each attempt; attempts do not remove checkpoints of others."""
    save(checkpoints, tmp_path, "a1", 1, at(1))
    for number in range(1, 5):
        save(checkpoints, tmp_path, "a2", number, at(10 * number))
    assert [(c.attempt, c.number) for c in checkpoints.found()] == [("a2", 4), ("a2", 3), ("a1", 1)]
    folders = sorted({key.partition("/")[0] + key.split("/")[2] for key in keys(registry)})
    assert folders == ["a1000001", "a2000003", "a2000004"]


def test_an_incomplete_checkpoint_is_ignored(
    checkpoints: Checkpoints,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not found, and the previous ones are not removed because of it."""
    for number in (1, 2):
        save(checkpoints, tmp_path, "a1", number, at(number))
    for failing in ("put", "upload"):
        with monkeypatch.context() as patched:
            patched.setattr(registry.store, failing, _fail)
            for number in (3, 4):
                with pytest.raises(StoreError, match="the network is away"):
                    save(checkpoints, tmp_path, "a1", number, at(number))
    assert [found.number for found in checkpoints.found()] == [2, 1]
    save(checkpoints, tmp_path, "a1", 5, at(5))
    assert [found.number for found in checkpoints.found()] == [5, 2]
    save(checkpoints, tmp_path, "a1", 6, at(6))
    assert [found.number for found in checkpoints.found()] == [6, 5]
    assert all("/000005/" in key or "/000006/" in key for key in keys(registry))


def _fail(*_arguments: object, **_options: object) -> None:
    raise StoreError("the network is away")


@pytest.mark.parametrize("name", ["potential.yaml", "metrics/metrics.txt"])
def test_damage_is_found_when_it_is_fetched(
    checkpoints: Checkpoints, registry: Registry, tmp_path: Path, name: str
) -> None:
    """Changed or missing files are named; the state itself may be intact."""
    saved = save(checkpoints, tmp_path, "a1", 1, at(7))
    key = registry.keys.checkpoint(3, "a1", 1, name)
    registry.store.put(key, registry.store.get(key)[:-1])
    with pytest.raises(IntegrityError, match=f"checkpoint 1 of attempt a1 is damaged: {key} has"):
        checkpoints.fetch(saved, tmp_path / "new")
    registry.store.delete(key)
    with pytest.raises(IntegrityError, match=f"checkpoint 1 of attempt a1 is damaged: {key} is m"):
        checkpoints.fetch(saved, tmp_path / "newer")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'{"schema_version": 3}'])
def test_an_unreadable_state_is_named(
    checkpoints: Checkpoints, registry: Registry, tmp_path: Path, data: bytes
) -> None:
    save(checkpoints, tmp_path, "a1", 1, at(1))
    save(checkpoints, tmp_path, "a1", 2, at(2))
    key = registry.keys.checkpoint(3, "a1", 2, "state.json")
    registry.store.put(key, data)
    assert [found.number for found in checkpoints.found()] == [1]
    (problem,) = checkpoints.unreadable()
    assert problem.startswith(f"{key} can't be read: ")


def test_discard_removes_checkpoints_and_nothing_else(
    checkpoints: Checkpoints, registry: Registry, tmp_path: Path
) -> None:
    """Shipped logs and other generations stay; a state is removed before its files."""
    save(checkpoints, tmp_path, "a1", 1, at(1))
    save(checkpoints, tmp_path, "a2", 1, at(2))
    registry.store.put(registry.keys.attempt(3, "a1", "train.log"), b"log")
    other = registry.checkpoints(4)
    save(other, tmp_path, "a9", 1, at(1))
    deleted = []
    delete = registry.store.delete
    registry.store.delete = lambda key: deleted.append(key) or delete(key)  # type: ignore[method-assign]
    checkpoints.discard()
    assert [key.endswith("state.json") for key in deleted] == [True] * 2 + [False] * 4
    assert checkpoints.found() == []
    assert keys(registry) == ["a1/train.log"]
    assert len(other.found()) == 1


def test_discard_keeps_state_of_the_same_job(
    checkpoints: Checkpoints, registry: Registry, tmp_path: Path
) -> None:
    """Checkpoints of other jobs or of no job are removed, also unreadable or incomplete ones."""
    save(checkpoints, tmp_path, "a1", 1, at(9))
    save(checkpoints, tmp_path, "a2", 1, at(8), job="slurm/1")
    kept = [save(checkpoints, tmp_path, "a3", n, at(n), job="slurm/2") for n in (1, 2)]
    registry.store.put(registry.keys.checkpoint(3, "a3", 3, "potential.yaml"), b"half")
    registry.store.put(registry.keys.checkpoint(3, "a4", 1, "state.json"), b"{")
    checkpoints.discard(but_of="slurm/2")
    assert checkpoints.found() == kept[::-1]
    assert {key.rpartition("checkpoints/")[2][:6] for key in keys(registry)} == {"000001", "000002"}
    for found in kept:
        checkpoints.fetch(found, tmp_path / str(found.number))
    checkpoints.discard(but_of="slurm/3")
    assert keys(registry) == []


def test_a_state_of_an_older_version_belongs_to_no_job(
    checkpoints: Checkpoints, registry: Registry, tmp_path: Path
) -> None:
    save(checkpoints, tmp_path, "a1", 1, at(1))
    key = registry.keys.checkpoint(3, "a1", 1, "state.json")
    state = json.loads(registry.store.get(key))
    del state["training"]["job"]
    registry.store.put(key, json.dumps(state).encode())
    assert [found.number for found in checkpoints.found()] == [1]
    checkpoints.discard(but_of="slurm/2")
    assert keys(registry) == []


@pytest.mark.parametrize("where", ["files", "attempt"])
def test_unsafe_names_in_a_checkpoint_are_unreadable(
    registry: Registry, checkpoints: Checkpoints, tmp_path: Path, where: str
) -> None:
    save(checkpoints, tmp_path, "a1", 1, at(5))
    (key,) = (i.key for i in registry.store.list("") if i.key.endswith("/state.json"))
    data = json.loads(registry.store.get(key))
    if where == "files":
        data["files"] = {"../../escaped": "0" * 64}
    else:
        data["attempt"] = "../a1"
    registry.store.put(key, json.dumps(data).encode())
    assert checkpoints.found() == []
    (problem,) = checkpoints.unreadable()
    assert problem.startswith(f"{key} can't be read: {where}: '../")
