"""Contract of all stores, for a directory and a real S3 API."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import StorageConfig
from mlip_job.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from mlip_job.store.base import ObjectStore
from mlip_job.store.directory import DirectoryStore
from mlip_job.store.open import open_store

WRITERS = 16


@pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 100], ids=len)
def test_bytes_are_returned_unchanged(store: ObjectStore, data: bytes) -> None:
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    info = store.head("a/b.bin")
    assert info is not None
    assert (info.key, info.size) == ("a/b.bin", len(data))


def test_keys_may_hold_any_printable_character(store: ObjectStore) -> None:
    """Names from a user's key_value_pairs become parts of keys."""
    key = "fam/größe é=+&?%20 #1.json"
    store.put(key, b"x")
    assert store.get(key) == b"x"
    assert [info.key for info in store.list("fam/")] == [key]


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\nb", "a\0b", "k" * 2000]
)
def test_unsafe_keys_are_rejected(store: ObjectStore, key: str) -> None:
    """No key leads out of the store, or means different things to different stores."""
    with pytest.raises(StoreError, match="is no key"):
        store.put(key, b"x")


def test_an_absent_object_is_no_error_of_the_store(store: ObjectStore, tmp_path: Path) -> None:
    assert store.head("a/b") is None
    assert list(store.list("a/")) == []
    assert list(store.list_prefixes("a/")) == []
    store.delete("a/b")
    with pytest.raises(ObjectNotFoundError, match="a/b is not in"):
        store.get("a/b")
    with pytest.raises(ObjectNotFoundError):
        store.download("a/b", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_put_replaces_and_delete_removes(store: ObjectStore) -> None:
    store.put("k", b"1")
    store.put("k", b"2")
    assert store.get("k") == b"2"
    store.delete("k")
    store.delete("k")
    assert store.head("k") is None


def test_listings_are_sorted_and_cut_at_the_prefix(store: ObjectStore) -> None:
    """`list` returns all keys with the prefix; `list_prefixes` the folders directly below it."""
    for key in ("f/gen_10/m", "f/gen_02/m", "f/gen_02/a/b", "f/top", "g/x"):
        store.put(key, b"x")
    assert [i.key for i in store.list("f/gen_")] == ["f/gen_02/a/b", "f/gen_02/m", "f/gen_10/m"]
    assert list(store.list_prefixes("f/")) == ["gen_02", "gen_10"]
    assert [i.key for i in store.list("")] == sorted(i.key for i in store.list(""))


def test_create_only_keeps_the_first(store: ObjectStore) -> None:
    """Create-only writes ensure that a generation is never overwritten."""
    store.put_if_absent("m", b"first")
    with pytest.raises(ObjectExistsError, match="m exists in"):
        store.put_if_absent("m", b"second")
    assert store.get("m") == b"first"


def test_one_of_many_concurrent_creators_succeeds(storage: StorageConfig) -> None:
    """Sixteen concurrent jobs for one generation, each with its own store object."""

    def create(number: int) -> int | None:
        try:
            open_store(storage).put_if_absent("m", str(number).encode())
        except ObjectExistsError:
            return None
        return number

    with ThreadPoolExecutor(WRITERS) as pool:
        winners = [n for n in pool.map(create, range(WRITERS)) if n is not None]
    assert len(winners) == 1
    assert open_store(storage).get("m") == str(winners[0]).encode()


def test_compare_and_swap_replaces_only_the_given_version(store: ObjectStore) -> None:
    with pytest.raises(ObjectChangedError):
        store.put_if_match("p", b"1", '"0123"')
    store.put("p", b"1")
    _, version = store.get_versioned("p")
    store.put_if_match("p", b"2", version)
    with pytest.raises(ObjectChangedError, match="p was changed"):
        store.put_if_match("p", b"3", version)
    assert store.get("p") == b"2"


def test_no_update_is_lost_between_swappers(storage: StorageConfig) -> None:
    """Eight concurrent writers add up to the sum of their increments."""

    def add(writer: int) -> None:
        mine = open_store(storage)
        while True:
            data, version = mine.get_versioned("n")
            try:
                mine.put_if_match("n", f"{int(data.split()[0]) + 1} by {writer}".encode(), version)
            except ObjectChangedError:
                continue
            return

    open_store(storage).put("n", b"0")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert open_store(storage).get("n").split()[0] == b"24"


def test_a_conditional_write_may_be_repeated(store: ObjectStore) -> None:
    """A writer that lost the response repeats the write, which succeeds."""
    store.put_if_absent("k", b"attempt a, beat 0")
    store.put_if_absent("k", b"attempt a, beat 0")
    _, version = store.get_versioned("k")
    store.put_if_match("k", b"attempt a, beat 1", version)
    store.put_if_match("k", b"attempt a, beat 1", version)
    with pytest.raises(ObjectChangedError):
        store.put_if_match("k", b"attempt b, beat 0", version)
    assert store.get("k") == b"attempt a, beat 1"


@pytest.mark.parametrize("size", [0, 1000, 8 << 20, 12 << 20], ids=["empty", "small", "=", "parts"])
def test_files_are_transferred_whole(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """In one request or in several parts, hashed during transfer in both directions."""
    data = os.urandom(size)
    (tmp_path / "up").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert store.upload(tmp_path / "up", "big") == expected
    assert store.download("big", tmp_path / "down") == expected
    assert (tmp_path / "down").read_bytes() == data


def test_check_passes_and_leaves_nothing(store: ObjectStore) -> None:
    """A store that honours conditions is accepted, and the probe is removed."""
    store.check()
    assert list(store.list("")) == []


def test_an_object_removed_during_listing_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a checkpoint that a run replaces while another command reads the status."""
    store = DirectoryStore(tmp_path)
    store.put("cu/old", b"1")
    store.put("cu/new", b"2")
    walk = os.walk

    def slow_walk(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(*arguments, **options):
            (tmp_path / "cu/old").unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", slow_walk)
    assert [info.key for info in store.list("cu/")] == ["cu/new"]


@pytest.mark.parametrize("prefix", ["../", "cu/../../", "/etc/", "cu/./"])
def test_nothing_outside_a_directory_is_listed(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "store").mkdir()
    store = DirectoryStore(tmp_path / "store")
    for listing in (store.list, store.list_prefixes):
        with pytest.raises(StoreError, match="is no prefix of keys"):
            list(listing(prefix))
