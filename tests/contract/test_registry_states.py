"""Random interleavings of registry users keep the guarantees of docs/store.md."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mlip_job.errors import ConfigError, ConflictError
from mlip_job.registry import Manifest, Registry, claim
from mlip_job.registry.claim import HeldClaim
from mlip_job.registry.maintenance import collect_garbage, pull_generation, repair
from mlip_job.runtime.environment import ProcessIdentity
from mlip_job.store.base import ObjectStore
from tests.manifests import publish, put_dataset

STALE_AFTER_S = 100.0
GENERATIONS = st.integers(1, 3)
REJECTED = ("the energy RMSE on the test set is too high",)


@dataclass
class Attempt:
    """One run at a generation."""

    name: str
    generation: int
    held: HeldClaim
    alive: bool = True


class _PowerFailureError(Exception):
    """Crash of the process."""


@dataclass
class World:
    """Expected state, from the operations so far.

    Attributes
    ----------
    now
        The store's clock, s.
    beats
        Time of the last heartbeat of each generation's claim.
    holders
        Holder of each claim.
    published
        The text of every manifest that was ever published.
    pointer
        The latest generation, and the one up to which accepted ones are superseded.
    """

    now: float = 0.0
    beats: dict[int, float] = field(default_factory=dict)
    holders: dict[int, Attempt | None] = field(default_factory=dict)
    published: dict[int, bytes] = field(default_factory=dict)
    pointer: tuple[int, int] | None = None

    def advance(self, generation: int) -> None:
        if self.pointer is None or generation > max(self.pointer):
            self.pointer = (generation, 0)


class RegistryMachine(RuleBasedStateMachine):
    """Jobs and people at one registry; each step is compared with a model."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self.registry = Registry(store, "cu-ni")
        self.world = World()
        self.attempts: list[Attempt] = []
        self.names = (f"a{number}" for number in itertools.count(1))
        self.directory = Path(tempfile.mkdtemp())
        self.dataset = put_dataset(self.registry, self.directory / "dataset", "ninety and ten")

    def teardown(self) -> None:
        shutil.rmtree(self.directory)
        for info in list(self.registry.store.list("")):
            self.registry.store.delete(info.key)

    # -- jobs ------------------------------------------------------------------------------------

    @rule(generation=st.sampled_from([1, 1, 2, 3]))  # some have to collide
    def claim(self, generation: int) -> None:
        name, holder = next(self.names), self.world.holders.get(generation)
        free = holder is None or self._age(generation) > STALE_AFTER_S
        with self._at(name, generation):
            if not free:
                with pytest.raises(ConflictError, match="is being trained by attempt"):
                    self.registry.claim(generation, name, stale_after_s=STALE_AFTER_S)
                return
            held = self.registry.claim(generation, name, stale_after_s=STALE_AFTER_S)
        assert (held.takeover is None) == (holder is None)
        attempt = Attempt(name, generation, held)
        self.attempts.append(attempt)
        self.world.holders[generation] = attempt
        self.world.beats[generation] = self.world.now

    @rule(seconds=st.sampled_from([10, 150]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @precondition(lambda self: self._living())
    @rule(data=st.data())
    def heartbeat(self, data: Any) -> None:
        attempt = self._someone(data)
        with self._at(attempt.name, attempt.generation):
            attempt.held.beat()
        mine = self.world.holders.get(attempt.generation) is attempt
        assert (attempt.held.lost_to is None) == mine
        if mine:
            self.world.beats[attempt.generation] = self.world.now
        else:
            attempt.alive = False

    @precondition(lambda self: self._living())
    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        self._someone(data).alive = False

    @precondition(lambda self: self._living())
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        """End and release the claim; the next attempt need not wait."""
        attempt = self._someone(data)
        attempt.alive = False
        self._let_go(attempt)

    @precondition(lambda self: self._living())
    @rule(
        data=st.data(),
        accepted=st.booleans(),
        dies=st.sampled_from([None, None, None, "manifest", "copies", "pointer"]),
    )
    def publish(self, data: Any, accepted: bool, dies: str | None) -> None:
        attempt = self._someone(data)
        taken = attempt.generation in self.world.published
        with self._dying(dies), suppress(_PowerFailureError):
            if taken:
                with pytest.raises((ConflictError, _PowerFailureError)):
                    self._publish(attempt, accepted=accepted)
            else:
                self._publish(attempt, accepted=accepted)
        attempt.alive = False
        if dies is None:
            self._let_go(attempt)
        if taken or dies == "manifest":
            return
        key = self.registry.keys.manifest(attempt.generation)
        self.world.published[attempt.generation] = self.registry.store.get(key)
        if accepted and dies is None:
            self.world.advance(attempt.generation)

    # -- people ----------------------------------------------------------------------------------

    @precondition(lambda self: self.world.published)
    @rule(generation=GENERATIONS, force=st.booleans())
    def promote(self, generation: int, force: bool) -> None:
        """Promote a published generation; a rejected one needs force."""
        published = self.world.published
        possible = generation in published and (force or self._accepted(generation))
        if possible:
            self.registry.promote(generation, "because", force=force)
            self.world.pointer = (generation, max(published))
        else:
            with pytest.raises(ConfigError):
                self.registry.promote(generation, "because", force=force)

    @precondition(lambda self: self.world.published)
    @rule(generation=GENERATIONS)
    def pull(self, generation: int) -> None:
        target = self.directory / next(self.names)
        if generation not in self.world.published:
            with pytest.raises(ConfigError):
                self.registry.get(generation)
            return
        manifest = self.registry.get(generation)
        pull_generation(self.registry, manifest, target, with_dataset=False)
        pulled = (target / f"gen_{generation:02d}.yace").read_bytes()
        sha256 = manifest.artefacts["potential.yace"].sha256
        assert hashlib.sha256(pulled).hexdigest() == sha256

    @precondition(lambda self: self.world.published)
    @rule()
    def repair(self) -> None:
        """Repair: afterwards all copies exist, and the pointer is correct."""
        repaired = repair(self.registry)
        assert repaired.damaged == ()
        accepted = [n for n in self.world.published if self._accepted(n)]
        if accepted:
            self.world.advance(max(accepted))
        for generation in self.world.published:
            assert self.registry.verify(self.registry.get(generation)) == []
        assert repair(self.registry).repaired == ()

    @precondition(lambda self: self.world.published)
    @rule()
    def collect_garbage(self) -> None:
        """Remove nothing that a manifest names or that a generation in training needs."""
        with self._at("gc", 0):
            collect_garbage(self.registry, timedelta(0))
        # Attempts that have not named their dataset yet use the one of the model.
        put_dataset(self.registry, self.directory / "dataset", "ninety and ten")

    # -- invariants -------------------------------------------------------------------------------

    @invariant()
    def manifests_stay(self) -> None:
        """All generations ever published exist, unchanged."""
        assert self.registry.numbers() == sorted(self.world.published)
        for generation, text in self.world.published.items():
            assert self.registry.store.get(self.registry.keys.manifest(generation)) == text

    @invariant()
    def what_they_name_is_there(self) -> None:
        """Only copies may be missing, after a crash; nothing unpublished has any."""
        for generation in self.world.published:
            problems = self.registry.verify(self.registry.get(generation))
            assert [p for p in problems if "/potentials/" not in p] == []
        copies = {info.key for info in self.registry.store.list(self.registry.keys.potentials)}
        assert copies <= {self.registry.keys.potential(n, "yace") for n in self.world.published}

    @invariant()
    def the_pointer_is_where_it_belongs(self) -> None:
        pointer = self.registry.pointer()
        found = (pointer.generation, pointer.passed_over) if pointer is not None else None
        assert found == self.world.pointer

    # -- helpers ----------------------------------------------------------------------------------

    def _living(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.alive]

    def _someone(self, data: Any) -> Attempt:
        attempt: Attempt = data.draw(st.sampled_from(self._living()))
        return attempt

    def _age(self, generation: int) -> float:
        return self.world.now - self.world.beats[generation]

    def _accepted(self, generation: int) -> bool:
        text = self.world.published[generation]
        return Manifest.from_json(text, key="").headline.accepted

    def _let_go(self, attempt: Attempt) -> None:
        with self._at(attempt.name, attempt.generation):
            attempt.held.release()
        if self.world.holders.get(attempt.generation) is attempt:
            self.world.holders[attempt.generation] = None

    def _publish(self, attempt: Attempt, *, accepted: bool) -> None:
        publish(
            self.registry,
            self.directory / attempt.name,
            attempt.generation,
            attempt.name,
            rejected_because=() if accepted else REJECTED,
        )

    @contextmanager
    def _at(self, name: str, generation: int) -> Iterator[None]:
        """Act as a process on another machine, at the model's time."""

        def age(_store: ObjectStore, key: str) -> float | None:
            owned = {self.registry.keys.claim(n): n for n in (1, 2, 3)}
            if key in owned and owned[key] in self.world.beats:
                return self._age(owned[key])
            return 0.0

        with pytest.MonkeyPatch.context() as patched:
            me = ProcessIdentity(host=f"host of {name}", pid=1, started=generation)
            patched.setattr(ProcessIdentity, "current", lambda: me)
            patched.setattr(claim, "age_by_store", age)
            yield

    @contextmanager
    def _dying(self, where: str | None) -> Iterator[None]:
        """Crash the process at its first write of a manifest, a copy or the pointer."""
        store, keys = self.registry.store, self.registry.keys
        fatal = {"manifest": "/manifest.json", "copies": keys.potentials, "pointer": keys.latest}

        def dying(write: Callable[..., Any]) -> Callable[..., Any]:
            def write_or_die(*arguments: Any) -> Any:
                if where is not None and any(fatal[where] in str(part) for part in arguments[:2]):
                    raise _PowerFailureError
                return write(*arguments)

            return write_or_die

        with pytest.MonkeyPatch.context() as patched:
            for name in ("upload", "put_if_absent", "put_if_match"):
                patched.setattr(store, name, dying(getattr(store, name)))
            yield


EXAMPLES = {"DirectoryStore": 30, "S3Store": 2}  # a step on S3 takes a dozen requests


def test_interleavings(store: ObjectStore) -> None:
    """Claim, heartbeat, crash, takeover, publish, promote, pull, repair and gc, in any order."""

    class Machine(RegistryMachine):
        def __init__(self) -> None:
            super().__init__(store)

    examples = EXAMPLES[type(store).__name__]
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=40, derandomize=True)
    )


class _Chosen:
    """Draws the attempt of a name."""

    def __init__(self, machine: RegistryMachine, name: str) -> None:
        self._attempt = next(a for a in machine.attempts if a.name == name)

    def draw(self, _: object) -> Attempt:
        return self._attempt


def test_a_suspended_attempt_is_taken_over(store: ObjectStore) -> None:
    """Random steps rarely get here: one is suspended, another takes over and publishes."""
    machine = RegistryMachine(store)
    machine.claim(2)
    machine.wait(150)
    machine.claim(2)
    machine.heartbeat(_Chosen(machine, "a1"))
    assert machine.attempts[0].held.lost_to == "a2"
    machine.publish(_Chosen(machine, "a2"), accepted=True, dies=None)
    machine.publish(_Chosen(machine, "a1"), accepted=True, dies=None)
    for generation, attempt in ((3, "a3"), (1, "a4")):
        machine.claim(generation)
        machine.publish(_Chosen(machine, attempt), accepted=True, dies="pointer")
    machine.promote(1, force=False)
    machine.repair()
    assert machine.world.pointer == (1, 3)
    for check in (
        machine.manifests_stay,
        machine.what_they_name_is_there,
        machine.the_pointer_is_where_it_belongs,
    ):
        check()
    machine.teardown()
