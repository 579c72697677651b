"""Target of ``latest.json``, on a directory and on a real S3 API."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlip_job.config import StorageConfig
from mlip_job.errors import ConfigError
from mlip_job.registry import LatestPointer, Registry
from mlip_job.registry.maintenance import repair
from mlip_job.store.open import open_store
from tests.manifests import publish

FAMILY = "cu-ni"
REJECTED = ("the energy RMSE on the test set is 9 meV/atom, more than the 5 that the gate allows",)


def _pointer(registry: Registry) -> LatestPointer:
    pointer = registry.pointer()
    assert pointer is not None
    return pointer


def test_a_rejected_generation_is_published_but_not_the_latest(
    registry: Registry, tmp_path: Path
) -> None:
    """It can be found and read, but does not become the latest."""
    publish(registry, tmp_path, 1, rejected_because=REJECTED)
    assert registry.numbers() == [1]
    assert registry.latest() is None
    assert registry.store.get(registry.keys.potential(1, "yace")) == b"potential.yace of a1\n"
    publish(registry, tmp_path, 2)
    publish(registry, tmp_path, 3, rejected_because=REJECTED)
    assert registry.latest() == 2
    assert registry.get(3).headline.rejected_because == REJECTED
    assert (_pointer(registry).reason, _pointer(registry).forced) == (
        "published, no gate set",
        False,
    )


def test_promoting_a_rejected_generation_needs_force(registry: Registry, tmp_path: Path) -> None:
    """The promotion is recorded as forced, and lasts until the next accepted generation."""
    publish(registry, tmp_path, 1)
    publish(registry, tmp_path, 2, rejected_because=REJECTED)
    with pytest.raises(ConfigError, match="more than the 5 that the gate allows") as caught:
        registry.promote(2, "it is good enough", force=False)
    assert "--force" in str(caught.value)
    with pytest.raises(ConfigError, match="gen_03 of cu-ni is not published"):
        registry.promote(3, "why not", force=True)
    assert registry.latest() == 1
    registry.promote(2, "it is good enough", force=True)
    stored = json.loads(registry.store.get(registry.keys.latest))
    expected = {"generation": 2, "name": "gen_02", "reason": "it is good enough", "forced": True}
    assert stored | expected == stored
    publish(registry, tmp_path, 3)
    assert registry.latest() == 3
    registry.promote(1, "again", force=True)
    assert not _pointer(registry).forced  # gen_01 was accepted


def test_promoting_an_older_generation_lasts_until_a_newer_one_is_accepted(
    registry: Registry, tmp_path: Path
) -> None:
    """Neither confirming nor repairing a published generation moves the pointer forward again."""
    manifests = [publish(registry, tmp_path, number) for number in (1, 2, 3)]
    registry.promote(1, "gen_03 melts", force=False)
    assert registry.latest() == 1
    for manifest in manifests:
        registry.roll_forward(manifest)
    assert repair(registry).repaired == ()
    assert registry.latest() == 1
    publish(registry, tmp_path, 4, rejected_because=REJECTED)
    assert registry.latest() == 1
    publish(registry, tmp_path, 5)
    assert registry.latest() == 5


def test_a_pointer_that_a_crash_left_outdated_is_repaired(
    registry: Registry, tmp_path: Path
) -> None:
    """A generation was published after a promotion, but its job died before moving the pointer."""
    for number in (1, 2):
        publish(registry, tmp_path, number)
    registry.promote(1, "back", force=False)
    before = registry.store.get(registry.keys.latest)
    publish(registry, tmp_path, 3)
    _, version = registry.store.get_versioned(registry.keys.latest)
    registry.store.put_if_match(registry.keys.latest, before, version)
    assert registry.latest() == 1
    assert repair(registry).repaired == (f"wrote {registry.keys.latest}",)
    assert registry.latest() == 3


@pytest.mark.parametrize("data", [b"", b"{", b'{"generation": 9}', None])
def test_a_lost_pointer_is_restored_from_accepted_generations(
    registry: Registry, tmp_path: Path, data: bytes | None
) -> None:
    publish(registry, tmp_path, 1)
    publish(registry, tmp_path, 2)
    publish(registry, tmp_path, 3, rejected_because=REJECTED)
    for mend in (repair, lambda registry: registry.promote(2, "so be it", force=False)):
        if data is None:
            registry.store.delete(registry.keys.latest)
        else:
            registry.store.put(registry.keys.latest, data)
        mend(registry)
        assert registry.latest() == 2


def test_nothing_is_latest_if_nothing_is_accepted(registry: Registry, tmp_path: Path) -> None:
    publish(registry, tmp_path, 1, rejected_because=REJECTED)
    assert repair(registry).repaired == ()
    assert registry.latest() is None


def test_concurrent_promotions_and_publications(storage: StorageConfig, tmp_path: Path) -> None:
    """A promotion supersedes exactly what was published by then, so there are two valid results.

    Either the promotion came last and supersedes all, or the highest generation is the latest.
    """
    for number in (1, 2, 3):
        publish(Registry(open_store(storage), FAMILY), tmp_path, number)

    def act(number: int) -> None:
        registry = Registry(open_store(storage), FAMILY)
        if number % 2:
            registry.promote(1, f"choice {number}", force=False)
        else:
            publish(registry, tmp_path / str(number), 10 + number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(8)))
    registry = Registry(open_store(storage), FAMILY)
    pointer = _pointer(registry)
    assert (pointer.generation, pointer.passed_over) in {(1, 16), (16, 0)}
    publish(registry, tmp_path, 17)
    assert registry.latest() == 17
