"""Transient failures are retried: for a limited time, with pauses, and logged."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlip_job import retry
from mlip_job.config import StorageConfig
from mlip_job.errors import DataError, ObjectExistsError, StoreError
from mlip_job.retry import retrying
from mlip_job.store.base import ObjectStore
from mlip_job.store.directory import DirectoryStore
from mlip_job.store.open import RetryingStore, open_store

METHODS = [
    name
    for name, member in inspect.getmembers(ObjectStore, inspect.isfunction)
    if not name.startswith("_")
]


class _Clock:
    """A clock that advances only during sleep or work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("tenacity.nap.time.sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    return _Clock(monkeypatch)


def _failing(clock: _Clock, times: int, *, takes: float = 0.0) -> Callable[[], str]:
    left = [times]

    def call() -> str:
        clock.now += takes
        if left[0] == 0:
            return "done"
        left[0] -= 1
        raise StoreError("the network is away", transient=True)

    return call


def test_a_transient_failure_is_retried_and_logged(
    clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """With growing pauses, and a line for each with reason and length."""
    with caplog.at_level(logging.WARNING, logger=retry.__name__):
        assert retrying(_failing(clock, 4), 300) == "done"
    assert len(clock.sleeps) == 4
    assert clock.sleeps == sorted(clock.sleeps)
    assert clock.sleeps[-1] > 3 * clock.sleeps[0]
    assert [record.getMessage() for record in caplog.records] == [
        f"the network is away; trying again in {pause:.1f} s" for pause in clock.sleeps
    ]


def test_retries_end(clock: _Clock) -> None:
    """The last error is raised in time, and pauses stay short enough to notice a recovery."""
    with pytest.raises(StoreError, match="the network is away"):
        retrying(_failing(clock, 10_000), 300)
    assert 200 < sum(clock.sleeps) < 300
    assert max(clock.sleeps) < 31
    clock.sleeps.clear()
    with pytest.raises(StoreError):
        retrying(_failing(clock, 1), 0)
    assert clock.sleeps == []
    # An export that ran for an hour before the server became unavailable is retried.
    assert retrying(_failing(clock, 1, takes=3600.0), 300) == "done"


@pytest.mark.parametrize(
    "error", [StoreError("access denied"), DataError("a row is damaged"), ValueError("a bug")]
)
def test_a_permanent_failure_is_not_retried(clock: _Clock, error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        retrying(call, 300)
    assert clock.sleeps == []


class _Flaky(DirectoryStore):
    """A store in which each call fails twice, before or after its effect."""

    def __init__(self, root: Path, *, after: bool, transient: bool = True) -> None:
        super().__init__(root)
        self.failures: dict[str, int] = {}
        self._after = after
        self._transient = transient
        self._inner = DirectoryStore(root)

    def __getattribute__(self, name: str) -> Any:
        if name not in METHODS or name == "check":
            return super().__getattribute__(name)
        found = getattr(self._inner, name)

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


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_every_call_of_a_store_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """Whether the request or the response was lost: conditional writes recognise their content."""
    monkeypatch.setattr(retry, "LONGEST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.0)
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
    assert store.upload(tmp_path / "up", "b/f") == store.download("b/f", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == b"file"
    assert [info.key for info in store.list("a/")] == ["a/1", "a/2"]
    assert list(store.list_prefixes("")) == [".mlip-job-probe", "a", "b"]
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


def test_permanent_errors_of_a_store_are_not_retried(tmp_path: Path) -> None:
    flaky = _Flaky(tmp_path / "store", after=False, transient=False)
    with pytest.raises(StoreError, match="put failed"):
        RetryingStore(flaky, 60).put("a", b"x")
    assert flaky.failures == {"put": 1}


def test_retries_are_opt_in(tmp_path: Path) -> None:
    config = StorageConfig(url=str(tmp_path))
    assert isinstance(open_store(config), DirectoryStore)
    assert isinstance(open_store(config, patience=5), RetryingStore)
