"""Repair after a crash, and garbage collection of objects that no manifest needs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from mlip_job.config import StorageConfig
from mlip_job.errors import ConfigError, IntegrityError
from mlip_job.registry import Claim, DatasetReference, Manifest, Registry, maintenance
from mlip_job.registry.claim import read_claim
from mlip_job.registry.maintenance import Orphan, collect_garbage, find_orphans, parse_age, repair
from mlip_job.runtime.environment import ProcessIdentity
from mlip_job.store.base import ObjectInfo, ObjectStore
from mlip_job.training.trainer import FitPosition
from tests.manifests import make_checkpoint, make_manifest, put_dataset

FAMILY = "cu-ni"
NOW = timedelta(0)
LONG = timedelta(days=7)


@pytest.fixture
def dataset(registry: Registry, tmp_path: Path) -> DatasetReference:
    return put_dataset(registry, tmp_path / "dataset", "one")


def publish(
    registry: Registry, directory: Path, generation: int, attempt: str, dataset: DatasetReference
) -> Manifest:
    """Publish a generation with its log and a checkpoint, like a run."""
    names = ("potential.yace", "potential.yaml", "report.json")
    files = {name: directory / f"{attempt}-{name}" for name in names}
    for name, path in files.items():
        path.write_text(f"{name} of {attempt}\n")
    begin(registry, directory, generation, attempt, dataset)
    return registry.publish(
        generation,
        attempt,
        files,
        lambda artefacts: make_manifest(
            generation, attempt=attempt, artefacts=artefacts, dataset=dataset
        ),
    )


def begin(
    registry: Registry, directory: Path, generation: int, attempt: str, dataset: DatasetReference
) -> None:
    potential = directory / "potential"
    potential.write_text(attempt)
    place = FitPosition(ladder_step=0, iteration=5, step_done=False, last_step=True)
    registry.checkpoints(generation).save(
        {"potential.yaml": potential},
        lambda hashes: make_checkpoint(
            hashes, attempt=attempt, number=1, position=place, dataset=dataset
        ),
    )
    registry.store.put(registry.keys.attempt(generation, attempt, "metrics/metrics.txt"), b"rows")


def whats(orphans: Iterable[Orphan]) -> dict[str, str]:
    return {orphan.prefix.removeprefix(f"{FAMILY}/"): orphan.what for orphan in orphans}


def content(registry: Registry) -> dict[str, bytes]:
    return {info.key: registry.store.get(info.key) for info in registry.store.list("")}


def hold(registry: Registry, generation: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    elsewhere = ProcessIdentity(host="another", pid=1, started=1)
    with monkeypatch.context() as patched:
        patched.setattr(ProcessIdentity, "current", lambda: elsewhere)
        return registry.claim(generation, "running", stale_after_s=600)


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5d", "7 d", "1y", "7d1h"])
def test_invalid_ages_are_rejected(text: str) -> None:
    """A misread age might remove too much."""
    with pytest.raises(ConfigError, match="is no age"):
        parse_age(text)
    hours = {"0s": 0, "90m": 1.5, "12h": 12, "30d": 720, "2w": 336}
    assert {age: parse_age(age) / timedelta(hours=1) for age in hours} == hours


def test_an_empty_store_needs_no_repair(registry: Registry) -> None:
    repairs = repair(registry)
    assert (repairs.repaired, repairs.damaged, repairs.orphans) == ((), (), ())
    assert collect_garbage(registry, NOW) == []
    assert content(registry) == {}


def test_repair_rolls_forward_after_a_crash(
    registry: Registry, tmp_path: Path, dataset: DatasetReference
) -> None:
    """Missing and damaged copies and the pointer, one line each; a second repair does nothing."""
    for generation in (1, 2):
        publish(registry, tmp_path, generation, f"a{generation}", dataset)
    before, latest = content(registry), registry.latest()
    registry.store.delete(registry.keys.potential(1, "yace"))
    registry.store.put(registry.keys.potential(2, "yaml"), b"half")
    registry.store.delete(registry.keys.latest)
    assert repair(registry).repaired == (
        "wrote cu-ni/potentials/gen_01.yace",
        "wrote cu-ni/potentials/gen_02.yaml",
        "wrote cu-ni/latest.json",
    )
    assert registry.latest() == latest == 2
    # The pointer has the time of its last move.
    assert content(registry) | {registry.keys.latest: b""} == before | {registry.keys.latest: b""}
    assert repair(registry).repaired == ()


@pytest.mark.parametrize("pointer", [b"", b"garbage", b'{"generation": 1, "name": "gen_01"}'])
def test_repair_rewrites_the_pointer(
    registry: Registry, tmp_path: Path, dataset: DatasetReference, pointer: bytes
) -> None:
    """Unreadable, or outdated because of a crash."""
    for generation in (1, 2):
        publish(registry, tmp_path, generation, f"a{generation}", dataset)
    registry.store.put(registry.keys.latest, pointer)
    assert repair(registry).repaired == ("wrote cu-ni/latest.json",)
    assert registry.latest() == 2


def test_other_generations_are_repaired_despite_damage(
    registry: Registry, tmp_path: Path, dataset: DatasetReference
) -> None:
    """A damaged original and a damaged manifest are named, everything else is repaired."""
    manifests = [publish(registry, tmp_path, n, f"a{n}", dataset) for n in (1, 2, 3)]
    original = manifests[0].artefacts["potential.yace"].key
    registry.store.put(original, b"damaged")
    registry.store.put(registry.keys.potential(1, "yace"), b"damaged too")
    registry.store.put(registry.keys.manifest(2), b"{}")
    registry.store.delete(registry.keys.potential(3, "yace"))
    repairs = repair(registry)
    assert repairs.repaired == ("wrote cu-ni/potentials/gen_03.yace",)
    assert [text.partition(" ")[0] for text in repairs.damaged] == [
        original,
        registry.keys.manifest(2),
    ]
    assert registry.store.get(registry.keys.potential(1, "yace")) == b"damaged too"
    with pytest.raises(IntegrityError, match=r"gen_02/manifest\.json is no manifest"):
        collect_garbage(registry, NOW)


def test_objects_without_a_manifest_are_orphans(
    registry: Registry, tmp_path: Path, dataset: DatasetReference
) -> None:
    """Each kind has a description; reporting removes nothing."""
    publish(registry, tmp_path, 1, "a1", dataset)
    begin(registry, tmp_path, 1, "loser", dataset)
    other = put_dataset(registry, tmp_path / "other", "two")
    begin(registry, tmp_path, 2, "killed", other)
    unnamed = put_dataset(registry, tmp_path / "third", "three")
    registry.store.put(registry.keys.dataset("half", "train.xyz"), b"half")
    registry.store.put(registry.keys.potential(9, "yace"), b"of nothing")
    registry.store.put(registry.keys.potential(1, "asi"), b"of another attempt")
    before = content(registry)
    expected = {
        "generations/gen_01/attempts/a1/": "checkpoints of gen_01, which is published",
        "generations/gen_01/attempts/loser/": "an attempt at gen_01 that did not become it",
        "generations/gen_02/attempts/killed/": "an attempt at gen_02, which is not published",
        f"datasets/{other.id}/": "a dataset of no generation",
        f"datasets/{unnamed.id}/": "a dataset of no generation",
        "datasets/half/": "a dataset without its record",
        "potentials/gen_01.asi": "a potential of no generation",
        "potentials/gen_09.yace": "a potential of no generation",
    }
    assert whats(repair(registry).orphans) == expected
    assert content(registry) == before
    sizes = {orphan.prefix: orphan.size for orphan in find_orphans(registry, NOW)}
    assert sizes["cu-ni/potentials/gen_09.yace"] == len(b"of nothing")

    manifest = registry.get(1)
    assert whats(collect_garbage(registry, NOW)) == expected
    assert registry.verify(manifest) == []
    assert registry.store.get(registry.keys.attempt(1, "a1", "metrics/metrics.txt")) == b"rows"
    left = content(registry)
    named = {artefact.key for artefact in manifest.artefacts.values()}
    assert named < left.keys()
    assert left.keys() < before.keys()
    assert whats(find_orphans(registry, NOW)) == {}


def test_recent_objects_are_kept(
    registry: Registry, tmp_path: Path, dataset: DatasetReference
) -> None:
    """Including everything that a run needs to resume from a checkpoint."""
    begin(registry, tmp_path, 1, "killed", dataset)
    put_dataset(registry, tmp_path / "third", "three")
    before = content(registry)
    assert collect_garbage(registry, LONG) == []
    assert content(registry) == before


def test_the_dataset_of_a_kept_checkpoint_is_kept(
    registry: Registry,
    tmp_path: Path,
    dataset: DatasetReference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if the dataset is old: the next attempt trains on it."""
    begin(registry, tmp_path, 1, "killed", dataset)
    listing = registry.store.list

    def make_old(start: str) -> None:
        def list_old(prefix: str) -> Iterator[ObjectInfo]:
            for info in listing(prefix):
                yield replace(info, modified=0) if info.key.startswith(start) else info

        monkeypatch.setattr(registry.store, "list", list_old)

    make_old(registry.keys.dataset(dataset.id))
    assert collect_garbage(registry, LONG) == []
    make_old(f"{FAMILY}/")
    assert len(collect_garbage(registry, LONG)) == 2


def test_a_generation_in_training_is_kept(
    registry: Registry,
    tmp_path: Path,
    dataset: DatasetReference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attempt, and every dataset: a run may not have recorded yet which one it uses."""
    begin(registry, tmp_path, 1, "killed", dataset)
    begin(registry, tmp_path, 2, "earlier", dataset)
    put_dataset(registry, tmp_path / "third", "three")
    held = hold(registry, 2, monkeypatch)
    assert whats(collect_garbage(registry, NOW)) == {
        "generations/gen_01/attempts/killed/": "an attempt at gen_01, which is not published"
    }
    held.release()
    assert len(collect_garbage(registry, NOW)) == 3


def test_a_generation_published_during_gc_is_kept(
    registry: Registry,
    tmp_path: Path,
    dataset: DatasetReference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its claim is released right after: claims must be read before manifests."""
    held = hold(registry, 1, monkeypatch)

    def read_too_late(store: ObjectStore, key: str) -> Claim | None:
        if registry.find(1) is None:
            publish(registry, tmp_path, 1, "a1", dataset)
            held.release()
        return read_claim(store, key)

    monkeypatch.setattr(maintenance, "read_claim", read_too_late)
    collect_garbage(registry, NOW)
    assert registry.verify(registry.get(1)) == []


def test_states_and_records_are_removed_first(
    registry: Registry, tmp_path: Path, dataset: DatasetReference
) -> None:
    """An interrupted gc leaves no incomplete object that looks complete."""
    begin(registry, tmp_path, 1, "killed", dataset)
    deleted: list[str] = []
    delete = registry.store.delete
    registry.store.delete = lambda key: deleted.append(key) or delete(key)  # type: ignore[method-assign]
    collect_garbage(registry, NOW)
    names = [key.rpartition("/")[2] for key in deleted if ".mlip-job-probe" not in key]
    assert names[0] == "state.json"
    assert names[3] == "dataset.json"
    assert len(names) == 9


def test_interrupted_writes_are_removed(
    registry: Registry, storage: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no objects, but take up space; a wrong local clock makes none of them old."""
    if storage.url.startswith("s3://"):
        bucket, _, prefix = storage.url.removeprefix("s3://").partition("/")
        client = boto3.client("s3", endpoint_url=storage.endpoint_url, region_name="us-east-1")
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{FAMILY}/big")
        client.close()
    else:
        registry.store.put(f"{FAMILY}/x", b"x")
        Path(storage.url, FAMILY, ".tmp-0123").write_bytes(b"half")
    now = time.time()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: now + 365 * 86400)
        if not storage.url.startswith("s3://"):  # moto dates every upload in parts 2010
            assert list(find_orphans(registry, LONG)) == []
    (found,) = find_orphans(registry, NOW)
    assert found.what == "a write that was cut short"
    collect_garbage(registry, NOW)
    assert list(find_orphans(registry, NOW)) == []
