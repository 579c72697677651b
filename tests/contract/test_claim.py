"""Claims: exactly one attempt trains a generation; the next one may after it has ended."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlip_job.errors import ConflictError, StoreError
from mlip_job.registry.claim import (
    Claim,
    HeldClaim,
    age_by_store,
    is_live,
    read_claim,
    take_claim,
)
from mlip_job.runtime.environment import ProcessIdentity
from mlip_job.store.base import ObjectStore

KEY = "cu/generations/gen_01/claim.json"
ELSEWHERE = ProcessIdentity(host="another", pid=1, started=1)


def _take(store: ObjectStore, attempt: str, *, stale_after_s: float = 600) -> HeldClaim:
    return take_claim(store, KEY, 1, attempt=attempt, stale_after_s=stale_after_s)


def _from_elsewhere(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, attempt: str, **options: Any
) -> HeldClaim:
    """Take the claim as a process on another machine."""
    with monkeypatch.context() as patched:
        patched.setattr(ProcessIdentity, "current", lambda: ELSEWHERE)
        return _take(store, attempt, **options)


def _holder(store: ObjectStore) -> str:
    claim = read_claim(store, KEY)
    assert claim is not None
    return claim.attempt


def test_a_live_claim_is_a_conflict(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 73, with the holder, its job, and the age of its last heartbeat."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    held = _from_elsewhere(store, monkeypatch, "first")
    assert held.takeover is None
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(ConflictError) as caught:
        _take(store, "second")
    assert caught.value.exit_code == 73
    assert caught.value.message.startswith(
        "gen_01 is being trained by attempt first (slurm job 4711), whose last sign of life is "
    )
    assert "after 600 s without one" in str(caught.value.hint)
    assert _holder(store) == "first"


def test_a_released_claim_is_free(store: ObjectStore) -> None:
    held = _take(store, "first")
    held.beat()
    held.release()
    after = _take(store, "second")
    assert after.takeover is None
    assert _holder(store) == "second"
    held.beat()
    held.release()
    assert _holder(store) == "second"
    assert held.loss() is None


def test_the_claim_of_an_ended_process_is_free(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was killed on this machine: its pid is unused, or used by another process."""
    identify = (
        "from mlip_job.runtime.environment import ProcessIdentity\n"
        "print(ProcessIdentity.current().model_dump_json(), flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", identify], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    here = ProcessIdentity.current()
    theirs = ProcessIdentity.model_validate_json(process.stdout.readline())
    with monkeypatch.context() as patched:
        patched.setattr(ProcessIdentity, "current", lambda: theirs)
        _take(store, "first")
    with pytest.raises(ConflictError):
        _take(store, "second")
    process.kill()
    # It is a zombie until its exit code is read; that counts as ended.
    for _ in range(1000):
        if theirs.is_gone(here):
            break
        time.sleep(0.01)
    held = _take(store, "second")
    process.communicate()
    assert held.takeover is not None
    assert (held.takeover.attempt, held.takeover.reason) == ("first", "whose process is gone")


def test_a_requeued_job_takes_over_its_own_claim(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is requeued on another node does not wait for its own claim."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    first = _from_elsewhere(store, monkeypatch, "first")
    second = _take(store, "second")
    assert second.takeover is not None
    assert second.takeover.reason == "which was an earlier run of the same job"
    first.beat()
    assert first.lost_to == "second"


def test_a_claim_without_heartbeat_is_taken_over(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the store's clock; the former holder notices at its next beat, and changes nothing."""
    first = _from_elsewhere(store, monkeypatch, "first", stale_after_s=1.5)
    first.beat()
    time.sleep(2.6)  # including rounding of the store's clock
    second = _take(store, "second")
    assert second.takeover is not None
    assert second.takeover.reason.startswith("which gave no sign of life for ")
    first.release()
    loss = first.loss()
    assert isinstance(loss, ConflictError)
    assert "attempt second took this generation over: this attempt (first)" in loss.message
    claim = read_claim(store, KEY)
    assert claim is not None
    assert (claim.attempt, claim.released) == ("second", False)
    second.beat()
    assert second.lost_to is None


def test_an_unreadable_claim_is_held_until_it_is_old(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(KEY, b'{"schema_version": 2}')
    with pytest.raises(ConflictError, match=r"by attempt \(unreadable\), whose last sign"):
        _take(store, "second")
    time.sleep(1.5)
    held = _take(store, "second", stale_after_s=0.1)
    assert held.takeover is not None
    assert held.takeover.attempt == "(unreadable)"


class _Together:
    """A store whose users all read before the first one writes; then they write one by one."""

    def __init__(self, store: ObjectStore, users: int) -> None:
        self._store = store
        self._all_have_read = threading.Barrier(users)
        self._turn = threading.Lock()
        self._reads = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        self._reads.count = getattr(self._reads, "count", 0) + 1
        try:
            return self._store.get_versioned(key)
        finally:
            if self._reads.count == 1:
                self._all_have_read.wait(60)
                self._turn.acquire()
            elif self._reads.count == 2:
                self._turn.release()


@pytest.mark.parametrize("before", [None, "released"])
def test_one_of_many_concurrent_attempts_claims(store: ObjectStore, before: str | None) -> None:
    """Eight attempts have all seen that the generation is free."""
    if before == "released":
        _take(store, "before").release()
    together = _Together(store, 8)

    def take(number: int) -> str | None:
        try:
            _take(together, f"a{number}")
        except ConflictError:
            return None
        return f"a{number}"

    with ThreadPoolExecutor(8) as pool:
        winners = [name for name in pool.map(take, range(8)) if name]
    assert winners == [_holder(store)]


class _LostAnswers:
    """A store whose next calls of one method succeed, but lose the response."""

    def __init__(self, store: ObjectStore) -> None:
        self.failing = ""
        self._store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)

        def call(*arguments: Any) -> Any:
            result = found(*arguments)
            if name == self.failing:
                self.failing = ""
                raise StoreError("the answer was lost", transient=True)
            return result

        return call


@pytest.mark.parametrize("failing", ["put_if_match", "get_versioned"])
@pytest.mark.parametrize("then", ["beat", "release"])
def test_a_heartbeat_survives_a_lost_response(store: ObjectStore, failing: str, then: str) -> None:
    """The object is newer than expected, but still the holder's own."""
    lossy = _LostAnswers(store)
    held = _take(lossy, "first")
    held.beat()
    lossy.failing = failing
    with pytest.raises(StoreError, match="the answer was lost"):
        held.beat()
    getattr(held, then)()
    assert held.loss() is None
    claim = read_claim(store, KEY)
    assert claim is not None
    assert claim.released == (then == "release")
    assert claim.beat == (2 if then == "beat" else 3)


def test_a_claim_that_was_removed_is_lost(store: ObjectStore) -> None:
    """After a person deleted it, another attempt may start at any moment."""
    held = _take(store, "first")
    store.delete(KEY)
    held.beat()
    assert held.lost_to == "(unknown)"
    assert store.head(KEY) is None


def test_liveness(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither released, nor ended, nor silent for too long."""
    _from_elsewhere(store, monkeypatch, "first", stale_after_s=600)
    claim = read_claim(store, KEY)
    assert claim is not None
    assert is_live(store, KEY, claim)
    for change in (
        {"released": True},
        {"process": ProcessIdentity.current().model_copy(update={"started": 1})},
        {"stale_after_s": -10.0},
    ):
        assert not is_live(store, KEY, claim.model_copy(update=change))
    store.delete(KEY)
    assert not is_live(store, KEY, claim)
    assert read_claim(store, KEY) is None


def test_age_is_by_the_stores_clock(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks of machines may be wrong; the probe is removed."""
    store.put("a", b"x")
    assert age_by_store(store, "b") is None
    time.sleep(1.1)
    age = age_by_store(store, "a")
    assert age is not None
    assert 0.1 <= age < 60
    assert [info.key for info in store.list("")] == ["a"]


def test_a_claim_identifies_its_job(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import platform

    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    _take(store, "first")
    data = store.get(KEY)
    claim = Claim.model_validate_json(data)
    assert claim.scheduler is not None
    assert (claim.scheduler.kind, claim.scheduler.id) == ("slurm", "4711")
    for name in (platform.node(), getpass.getuser()):
        assert f'"{name}"'.encode() not in data
