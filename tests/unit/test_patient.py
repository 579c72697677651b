"""Each call of a patient store is repeated; what it returns and refuses stays the same."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job import retries
from mlip_job.config import StorageConfig
from mlip_job.errors import ObjectExistsError, StoreError
from mlip_job.store.base import ObjectStore
from mlip_job.store.directory import DirectoryStore
from mlip_job.store.open import RetryingStore, open_store

if TYPE_CHECKING:
    from pathlib import Path

METHODS = [
    name
    for name, member in inspect.getmembers(ObjectStore, inspect.isfunction)
    if not name.startswith("_")
]


class _Flaky(DirectoryStore):
    """A store of which each call fails twice, before or after it did its work."""

    def __init__(self, root: Path, *, after: bool, transient: bool = True) -> None:
        super().__init__(root)
        self.failures: dict[str, int] = {}
        self._after = after
        self._transient = transient

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in METHODS or name == "check":
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            fails = self.failures.get(name, 0) < 2
            if fails and not self._after:
                self._fail(name)
            result = found(*arguments, **options)
            if inspect.isgenerator(result):
                result = list(result)
            if fails:
                self._fail(name)
            return result

        return call

    def _fail(self, name: str) -> None:
        self.failures[name] = self.failures.get(name, 0) + 1
        raise StoreError(f"{name} failed", transient=self._transient)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr(retries, "_LONGEST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(retries, "_FIRST_WAIT_SECONDS", 0.0)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_call_is_repeated(tmp_path: Path, *, after: bool) -> None:
    """Whether the call was lost or its answer: conditional writes know their own content."""
    flaky = _Flaky(tmp_path / "store", after=after)
    store: ObjectStore = RetryingStore(flaky, 60)
    store.check()
    store.put("a/1", b"one")
    store.put_if_absent("a/2", b"two")
    with pytest.raises(ObjectExistsError):
        store.put_if_absent("a/2", b"other")
    data, version = store.get_versioned("a/2")
    store.put_if_match("a/2", data + b"!", version)
    assert store.get("a/2") == b"two!"
    (tmp_path / "up").write_bytes(b"file")
    assert store.upload(tmp_path / "up", "b/f", if_absent=True) == store.download(
        "b/f", tmp_path / "down"
    )
    assert (tmp_path / "down").read_bytes() == b"file"
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(ObjectExistsError):
        store.upload(tmp_path / "other", "b/f", if_absent=True)
    assert [info.key for info in store.list("a/")] == ["a/1", "a/2"]
    assert list(store.list_prefixes("")) == [".mlip-job-probe", "a", "b"]
    assert [info.key for info in store.list_named("", "2")] == ["a/2"]
    info = store.head("a/1")
    assert info is not None
    assert info.size == 3
    store.delete("a/1")
    assert store.head("a/1") is None
    (tmp_path / "store" / "a" / ".tmp-0").write_bytes(b"half")
    assert list(store.leftovers(0)) == ["a/.tmp-0"]
    store.remove_leftover("a/.tmp-0")
    assert not (tmp_path / "store" / "a" / ".tmp-0").exists()
    assert store.url == str(tmp_path / "store")
    assert {*flaky.failures, "check"} == {*METHODS}
    assert set(flaky.failures.values()) == {2}


def test_lasting_errors_are_not_repeated(tmp_path: Path) -> None:
    """A store that refuses a call refuses it the second time too."""
    flaky = _Flaky(tmp_path / "store", after=False, transient=False)
    with pytest.raises(StoreError, match="put failed"):
        RetryingStore(flaky, 60).put("a", b"x")
    assert flaky.failures == {"put": 1}


def test_only_runs_are_patient(tmp_path: Path) -> None:
    """Whoever asks from a terminal gets the error itself."""
    config = StorageConfig(url=str(tmp_path))
    assert isinstance(open_store(config), DirectoryStore)
    assert isinstance(open_store(config, patience=5), RetryingStore)
