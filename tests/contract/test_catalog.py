"""A list of generations takes few requests and shows what the manifests say, whatever happens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.registry import GenerationSummary, Manifest, Registry
from mlip_job.registry.maintenance import repair
from mlip_job.store.open import open_store
from tests.manifests import make_manifest, put_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.config import StorageConfig
    from mlip_job.registry import Artefact
    from mlip_job.store.base import ObjectStore

FAMILY = "cu-ni"


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    """Return the registry of an empty store."""
    return Registry(store, FAMILY)


def publish(registry: Registry, directory: Path, generation: int, attempt: str = "a1") -> Manifest:
    """Publish a generation with one file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{attempt}-{generation}.yace"
    path.write_text(f"{attempt} of {generation}")
    dataset = put_dataset(registry, directory / f"dataset-{generation}", "one")

    def describe(artefacts: dict[str, Artefact]) -> Manifest:
        return make_manifest(
            generation, attempt=attempt, family=FAMILY, artefacts=artefacts, dataset=dataset
        )

    return registry.publish(generation, attempt, {"potential.yace": path}, describe)


def require_true_list(registry: Registry) -> None:
    """Hold a list against the manifests."""
    expected = [GenerationSummary.of(manifest) for manifest in registry.manifests()]
    assert registry.summaries() == expected
    assert [summary.generation for summary in expected] == registry.numbers()


def manifests_read(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many manifests a list reads."""
    keys: list[str] = []
    get = registry.store.get
    monkeypatch.setattr(registry.store, "get", lambda key: (keys.append(key), get(key))[1])
    registry.summaries()
    monkeypatch.undo()
    return sum(key.endswith("manifest.json") for key in keys)


def test_published_generations_are_in_the_catalog(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of their numbers; none has to be read."""
    for generation in (100, 2, 1):
        publish(registry, tmp_path, generation)
    require_true_list(registry)
    assert [summary.generation for summary in registry.summaries()] == [1, 2, 100]
    assert registry.summaries()[0].yace_sha256 is not None
    assert manifests_read(registry, monkeypatch) == 0


@pytest.mark.parametrize("damage", ["absent", "cut short", "of another version", "emptied"])
def test_a_damaged_catalog_is_done_without_and_repaired(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Manifests are read instead, until a repair writes it anew."""
    for generation in (1, 2, 3):
        publish(registry, tmp_path, generation)
    key = registry.keys.catalog
    data = {
        "cut short": registry.store.get(key)[:100],
        "of another version": b'{"schema_version": 2, "generations": {}}',
        "emptied": b'{"schema_version": 1, "generations": {}}',
    }
    if damage == "absent":
        registry.store.delete(key)
    else:
        registry.store.put(key, data[damage])
    require_true_list(registry)
    assert manifests_read(registry, monkeypatch) == 3
    assert f"wrote {key}" in repair(registry).mended
    assert manifests_read(registry, monkeypatch) == 0
    assert repair(registry).mended == ()


def test_an_entry_of_another_manifest_is_not_believed(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody restored a backup, or removed a generation and trained it again."""
    for generation in (1, 2, 3):
        publish(registry, tmp_path, generation)
    other = make_manifest(2, attempt="from-elsewhere", family=FAMILY)
    registry.store.put(registry.keys.manifest(2), other.to_json())
    registry.store.delete(registry.keys.manifest(3))
    require_true_list(registry)
    assert [summary.attempt for summary in registry.summaries()] == ["a1", "from-elsewhere"]
    assert manifests_read(registry, monkeypatch) == 1
    repair(registry)
    assert manifests_read(registry, monkeypatch) == 0


def test_a_crash_before_the_entry_is_made_good(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run of the generation rolls it forward."""
    manifest = make_manifest(1, family=FAMILY)
    registry.store.put_if_absent(registry.keys.manifest(1), manifest.to_json())
    require_true_list(registry)
    assert manifests_read(registry, monkeypatch) == 1
    registry.roll_forward(manifest)
    assert manifests_read(registry, monkeypatch) == 0


def test_entries_made_at_the_same_time_are_all_kept(
    storage: StorageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight jobs publish at once, each with a registry of its own."""

    def run(generation: int) -> None:
        publish(Registry(open_store(storage), FAMILY), tmp_path / str(generation), generation)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(1, 9)))
    registry = Registry(open_store(storage), FAMILY)
    require_true_list(registry)
    assert manifests_read(registry, monkeypatch) == 0


def test_a_thousand_generations_take_a_few_requests(s3_bucket: StorageConfig) -> None:
    """One per thousand objects of the listing, and two; not one per generation."""
    registry = Registry(open_store(s3_bucket), FAMILY)
    manifests = {n: make_manifest(n, family=FAMILY) for n in range(1, 1001)}

    def put(number: int) -> None:
        registry.store.put(registry.keys.manifest(number), manifests[number].to_json())
        registry.store.put(registry.keys.attempt(number, "a", "train.log"), b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, manifests))
    registry.mend_catalog()
    requests: list[str] = []

    def note(request: Any, event_name: str, **_: Any) -> None:
        requests.append(f"{event_name.rpartition('.')[2]} {request.url.partition('?')[0]}")

    registry.store._client.meta.events.register("before-send.s3", note)  # type: ignore[attr-defined]
    summaries = registry.summaries()
    latest = registry.latest()
    assert [summary.generation for summary in summaries] == list(manifests)
    assert latest is None
    kinds = [request.partition(" ")[0] for request in requests]
    assert kinds.count("ListObjectsV2") == 2
    assert kinds.count("GetObject") == 2
    assert len(kinds) == 4
    requests.clear()
    assert registry.numbers() == list(manifests)
    assert len(requests) == 2
