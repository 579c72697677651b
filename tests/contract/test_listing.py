"""Lists of generations come from the manifests, several of which are read concurrently."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import StorageConfig
from mlip_job.errors import IntegrityError
from mlip_job.registry import GenerationSummary, Registry
from mlip_job.registry.maintenance import collect_garbage, repair
from mlip_job.store.open import open_store
from tests.manifests import make_manifest, publish

FAMILY = "cu-ni"


def require_true_list(registry: Registry) -> None:
    expected = [GenerationSummary.of(manifest) for manifest in registry.manifests()]
    assert registry.summaries() == expected
    assert [summary.generation for summary in expected] == registry.numbers()


def test_generations_are_listed_in_the_order_of_their_numbers(
    registry: Registry, tmp_path: Path
) -> None:
    assert registry.summaries() == []
    for generation in (100, 2, 1):
        publish(registry, tmp_path, generation)
    registry.store.put(registry.keys.attempt(3, "a", "train.log"), b"")
    require_true_list(registry)
    assert [summary.generation for summary in registry.summaries()] == [1, 2, 100]
    assert registry.summaries()[0].yace_sha256 is not None


def test_the_catalog_of_an_earlier_version_is_ignored(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, 1)
    registry.store.put(f"{FAMILY}/catalog.json", b'{"schema_version": 1, "generations": {}}')
    require_true_list(registry)
    assert repair(registry).repaired == ()
    assert collect_garbage(registry, timedelta(0)) == []
    assert registry.store.get(f"{FAMILY}/catalog.json").startswith(b"{")


def test_a_damaged_manifest_is_named(registry: Registry, tmp_path: Path) -> None:
    """A list without that generation would be wrong."""
    for generation in (1, 2, 3):
        publish(registry, tmp_path, generation)
    registry.store.put(registry.keys.manifest(2), b"{")
    with pytest.raises(IntegrityError, match="gen_02"):
        registry.summaries()


def test_many_generations_are_read_several_at_a_time(
    s3_bucket: StorageConfig, on_s3_event: Callable[..., None]
) -> None:
    """One request for each generation, and one for their names."""
    registry = Registry(open_store(s3_bucket), FAMILY)
    manifests = {n: make_manifest(n, family=FAMILY) for n in range(1, 301)}

    def put(number: int) -> None:
        registry.store.put(registry.keys.manifest(number), manifests[number].to_json())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, manifests))
    requests, threads = [], set()

    def note(event_name: str, **_: Any) -> None:
        requests.append(event_name.rpartition(".")[2])
        threads.add(threading.get_ident())

    on_s3_event("before-send.s3", note)
    assert [summary.generation for summary in registry.summaries()] == list(manifests)
    assert sorted(set(requests)) == ["GetObject", "ListObjectsV2"]
    assert requests.count("GetObject") == 300
    assert requests.count("ListObjectsV2") == 1
    assert len(threads) > 4
