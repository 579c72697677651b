"""The claim on a generation in training: ``claim.json``, kept alive by a heartbeat.

A claim avoids duplicate work; it does not protect the result: a generation is published by
creating its manifest, which only one attempt can do. A claim taken over by mistake therefore
costs only GPU hours.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from mlip_job.errors import (
    ConflictError,
    ObjectChangedError,
    ObjectNotFoundError,
    StoreError,
)
from mlip_job.models import Record
from mlip_job.paths import generation_name
from mlip_job.registry.objects import swapped
from mlip_job.runtime.environment import ProcessIdentity, SchedulerJob, current_scheduler_job
from mlip_job.store.base import PROBES, StoredName

if TYPE_CHECKING:
    from mlip_job.store.base import ObjectStore

_TRIES = 20


class Claim(Record):
    """Content of ``claim.json``.

    The next attempt of the same scheduler's job, or one that can see that the process has ended,
    need not wait. ``taken`` is by the attempt's clock and only informs; no decision uses it.
    ``beat`` counts the heartbeats, so that each one changes the object; without one for
    ``stale_after_s`` the claim is abandoned. ``released`` says that the attempt has ended.
    """

    schema_version: Literal[1] = 1
    attempt: StoredName
    scheduler: SchedulerJob | None
    process: ProcessIdentity
    taken: datetime
    beat: int = 0
    stale_after_s: float
    released: bool = False


@dataclass(frozen=True)
class Takeover:
    """The attempt whose claim was taken over, and why."""

    attempt: str
    reason: str


class HeldClaim:
    """A claim that this process holds.

    ``takeover`` says whose claim it was before, if that attempt had not released it; ``lost_to`` is
    the attempt that took it over, once that was noticed.
    """

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        claim: Claim,
        version: str,
        *,
        takeover: Takeover | None,
    ) -> None:
        self.takeover = takeover
        self.lost_to: str | None = None
        self._store = store
        self._key = key
        self._claim = claim
        self._version = version
        self._writing = Lock()

    def beat(self) -> None:
        """Write a heartbeat and detect a lost claim.

        After a `StoreError` the claim may still be held.
        """
        self._write(released=False)

    def release(self) -> None:
        """Release the claim, so that the next attempt starts at once."""
        self._write(released=True)

    def loss(self) -> ConflictError | None:
        """Return the error to raise if another attempt has taken over the generation."""
        if self.lost_to is None:
            return None
        return ConflictError(
            f"attempt {self.lost_to} took this generation over: this attempt "
            f"({self._claim.attempt}) gave no sign of life for {self._claim.stale_after_s:.0f} s",
            hint="that attempt resumes from the last checkpoint; there is nothing to do",
        )

    def _write(self, *, released: bool) -> None:
        """Write the next beat; heartbeat and release come from different threads."""
        with self._writing:
            for _ in range(_TRIES):
                if self.lost_to is not None or self._claim.released:
                    return
                changes = {"beat": self._claim.beat + 1, "released": released}
                claim = self._claim.model_copy(update=changes)
                with suppress(ObjectChangedError, ObjectNotFoundError):
                    self._store.put_if_match(self._key, claim.to_json(), self._version)
                if self._look() == claim:
                    return
            raise StoreError(f"{self._key} changes faster than it can be written")

    def _look(self) -> Claim | None:
        """Read who holds the claim; it may hold an earlier beat of ours whose answer was lost."""
        try:
            found, version = self._store.get_versioned(self._key)
            claim = _parse(found)
        except ObjectNotFoundError:
            claim, version = None, ""
        if claim is not None and claim.attempt == self._claim.attempt:
            self._claim, self._version = claim, version
        else:
            self.lost_to = claim.attempt if claim is not None else "(unknown)"
        return claim


def take_claim(
    store: ObjectStore, key: str, generation: int, *, attempt: str, stale_after_s: float
) -> HeldClaim:
    """Claim a generation, or take an abandoned claim over.

    Raise `ConflictError` if a live attempt holds it.
    """
    mine = Claim(
        attempt=attempt,
        scheduler=current_scheduler_job(),
        process=ProcessIdentity.current(),
        taken=datetime.now(UTC),
        stale_after_s=stale_after_s,
    )
    data = mine.to_json()
    for _ in range(_TRIES):
        takeover = None
        try:
            found, version = store.get_versioned(key)
        except ObjectNotFoundError:
            found, version = b"", ""
        if version:
            takeover = _require_abandoned(store, key, generation, _parse(found), mine)
        if not swapped(store, key, data, version):
            continue  # a concurrent writer was faster: read again
        held, version = store.get_versioned(key)
        if held == data:
            return HeldClaim(store, key, mine, version, takeover=takeover)
    raise StoreError(f"{key} changes faster than it can be read")


def _require_abandoned(
    store: ObjectStore, key: str, generation: int, claim: Claim | None, mine: Claim
) -> Takeover | None:
    """Return why a claim may be taken over, or raise `ConflictError`; None if it was released."""
    if claim is not None and claim.released:
        return None
    attempt = claim.attempt if claim is not None else "(unreadable)"
    if claim is not None and claim.scheduler is not None and claim.scheduler == mine.scheduler:
        return Takeover(attempt, "which was an earlier run of the same job")
    if claim is not None and claim.process.is_gone(mine.process):
        return Takeover(attempt, "whose process is gone")
    stale_after_s = (claim or mine).stale_after_s
    age = age_by_store(store, key)
    if age is not None and age > stale_after_s:
        return Takeover(attempt, f"which gave no sign of life for {age:.0f} s")
    job = f" ({claim.scheduler.kind} job {claim.scheduler.id})" if claim and claim.scheduler else ""
    raise ConflictError(
        f"{generation_name(generation)} is being trained by attempt {attempt}{job}, whose last "
        f"sign of life is {age or 0:.0f} s old",
        hint=f"wait for it; it counts as abandoned after {stale_after_s:.0f} s without one",
    )


def read_claim(store: ObjectStore, key: str) -> Claim | None:
    """Return a generation's claim; None where there is none, or none that can be read."""
    try:
        return _parse(store.get(key))
    except ObjectNotFoundError:
        return None


def is_live(store: ObjectStore, key: str, claim: Claim) -> bool:
    """Return whether the attempt that holds a claim may still be running."""
    if claim.released or claim.process.is_gone(ProcessIdentity.current()):
        return False
    age = age_by_store(store, key)
    return age is not None and age <= claim.stale_after_s


def age_by_store(store: ObjectStore, key: str) -> float | None:
    """Return the age of an object, in seconds; None if it was removed.

    Both moments are by the store's clock, the second being that of an object written now: the
    clocks of the machines that train may differ.
    """
    probe = f"{PROBES}/{secrets.token_hex(8)}"
    store.put(probe, b"")
    try:
        now, then = store.head(probe), store.head(key)
    finally:
        store.delete(probe)
    return now.modified - then.modified if now is not None and then is not None else None


def _parse(data: bytes) -> Claim | None:
    try:
        return Claim.model_validate_json(data)
    except ValidationError:
        return None
