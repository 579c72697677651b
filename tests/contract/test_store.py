"""What every store promises, against a directory and a real S3 API."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from mlip_job.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from mlip_job.store.open import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.config import StorageConfig
    from mlip_job.store.base import ObjectStore

WRITERS = 16


@pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 100], ids=len)
def test_bytes_come_back_as_they_were(store: ObjectStore, data: bytes) -> None:
    """Empty, textual and binary objects."""
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    info = store.head("a/b.bin")
    assert info is not None
    assert (info.key, info.size) == ("a/b.bin", len(data))


def test_keys_may_hold_any_printable_character(store: ObjectStore) -> None:
    """Names from a user's key_value_pairs end up in keys."""
    key = "fam/größe é=+&?%20 #1.json"
    store.put(key, b"x")
    assert store.get(key) == b"x"
    assert [info.key for info in store.list("fam/")] == [key]


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\nb", "a\0b", "k" * 2000]
)
def test_unsafe_keys_are_refused(store: ObjectStore, key: str) -> None:
    """No key leads out of the store, or means different things to different stores."""
    with pytest.raises(StoreError, match="is no key"):
        store.put(key, b"x")


def test_absent_objects_are_told_apart_from_errors(store: ObjectStore, tmp_path: Path) -> None:
    """Nothing there is an answer, not a failure of the store."""
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
    """The plain map."""
    store.put("k", b"1")
    store.put("k", b"2")
    assert store.get("k") == b"2"
    store.delete("k")
    store.delete("k")
    assert store.head("k") is None


def test_listings_are_sorted_and_cut_at_the_prefix(store: ObjectStore) -> None:
    """`list` sees what starts with the prefix; `list_prefixes` the folders right below it."""
    for key in ("f/gen_10/m", "f/gen_02/m", "f/gen_02/a/b", "f/top", "g/x"):
        store.put(key, b"x")
    assert [i.key for i in store.list("f/gen_")] == ["f/gen_02/a/b", "f/gen_02/m", "f/gen_10/m"]
    assert list(store.list_prefixes("f/")) == ["gen_02", "gen_10"]
    assert [i.key for i in store.list("")] == sorted(i.key for i in store.list(""))


def test_one_name_in_each_folder(store: ObjectStore) -> None:
    """Right below the prefix, and nowhere else."""
    for key in ("f/a/m", "f/b/m", "f/b/c/m", "f/c/n", "f/m", "g/a/m"):
        store.put(key, b"x" * len(key))
    found = sorted(store.list_named("f/", "m"), key=lambda info: info.key)
    assert [(info.key, info.size) for info in found] == [("f/a/m", 5), ("f/b/m", 5)]
    assert list(store.list_named("nothing/", "m")) == []


def test_create_only_keeps_the_first(store: ObjectStore) -> None:
    """The rule on which "a generation is never overwritten" rests."""
    store.put_if_absent("m", b"first")
    with pytest.raises(ObjectExistsError, match="m exists in"):
        store.put_if_absent("m", b"second")
    assert store.get("m") == b"first"


def test_of_many_creators_one_wins(storage: StorageConfig) -> None:
    """Sixteen jobs for one generation, each with a store of its own."""

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


def test_compare_and_swap_takes_only_the_version_it_was_told(store: ObjectStore) -> None:
    """Absent, current and outdated versions."""
    with pytest.raises(ObjectChangedError):
        store.put_if_match("p", b"1", '"0123"')
    store.put("p", b"1")
    _, version = store.get_versioned("p")
    store.put_if_match("p", b"2", version)
    with pytest.raises(ObjectChangedError, match="p was changed"):
        store.put_if_match("p", b"3", version)
    assert store.get("p") == b"2"


def test_no_update_is_lost_between_swappers(storage: StorageConfig) -> None:
    """Eight writers add up to the sum of what they added."""

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


def test_a_conditional_write_may_be_repeated(store: ObjectStore, tmp_path: Path) -> None:
    """Whoever lost the answer to his own write asks again, and hears that it succeeded."""
    store.put_if_absent("k", b"attempt a, beat 0")
    store.put_if_absent("k", b"attempt a, beat 0")
    _, version = store.get_versioned("k")
    store.put_if_match("k", b"attempt a, beat 1", version)
    store.put_if_match("k", b"attempt a, beat 1", version)
    with pytest.raises(ObjectChangedError):
        store.put_if_match("k", b"attempt b, beat 0", version)
    assert store.get("k") == b"attempt a, beat 1"


@pytest.mark.parametrize("size", [0, 1000, 5 << 20, 12 << 20], ids=["empty", "small", "=", "parts"])
def test_files_go_up_and_come_down_whole(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """In one request or in several parts, hashed on the way in both directions."""
    data = os.urandom(size)
    (tmp_path / "up").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert store.upload(tmp_path / "up", "big") == expected
    assert store.download("big", tmp_path / "down") == expected
    assert (tmp_path / "down").read_bytes() == data


@pytest.mark.parametrize("size", [1000, 12 << 20], ids=["small", "parts"])
def test_create_only_uploads_keep_the_first(store: ObjectStore, tmp_path: Path, size: int) -> None:
    """Also where the file goes in parts; the same content again is no conflict."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * size)
    second.write_bytes(b"2" * size)
    store.upload(first, "k", if_absent=True)
    with pytest.raises(ObjectExistsError):
        store.upload(second, "k", if_absent=True)
    assert store.get("k") == b"1" * size


def test_check_passes_and_leaves_nothing(store: ObjectStore) -> None:
    """A store that honours conditions is accepted, and the probe is gone."""
    store.check()
    assert list(store.list("")) == []
