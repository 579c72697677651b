"""Repair incomplete writes after a crash, and find unreferenced objects."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, IntegrityError
from mlip_job.paths import MEMBERS, DatasetFiles, generation_name, parse_generation_name
from mlip_job.registry.claim import age_by_store, is_live, read_claim
from mlip_job.registry.members import AGREEMENT, members_of, read_agreement
from mlip_job.registry.registry import DERIVED_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.registry.manifest import Manifest
    from mlip_job.registry.registry import Registry
    from mlip_job.store.base import ObjectInfo

_AGE = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Orphan:
    """Objects that no manifest names.

    Attributes
    ----------
    prefix
        What their keys start with.
    what
        Readable description.
    keys
        All of them.
    size
        Bytes, all together.
    """

    prefix: str
    what: str
    keys: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Repairs:
    """Result of `repair`.

    Attributes
    ----------
    mended
        One line for each repair.
    damaged
        One line for each generation that can't be repaired from the store.
    orphans
        Objects that no manifest names; not changed.
    """

    mended: tuple[str, ...]
    damaged: tuple[str, ...]
    orphans: tuple[Orphan, ...]


def parse_age(text: str) -> timedelta:
    """Return the time that ``30d``, ``12h`` or ``90m`` stands for.

    Raises
    ------
    ConfigError
        If it stands for none.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no age", hint="write a number with s, m, h, d or w: 30d")
    return timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})


def repair(registry: Registry) -> Repairs:
    """Roll every published generation forward; report what belongs to none.

    Copies under ``potentials/`` that are missing or differ from their manifest are rewritten, and
    so is ``latest.json`` where it is missing, unreadable or behind.
    """
    mended: list[str] = []
    damaged: list[str] = []
    orphans: list[Orphan] = []
    for generation in registry.numbers():
        with _noting(damaged):
            manifest = registry.get(generation)
            mended.extend(
                f"wrote {registry.keys.potential(generation, suffix)}"
                for suffix in DERIVED_SUFFIXES
                if registry.mend_copy(manifest, suffix)
            )
    if registry.mend_latest():
        mended.append(f"wrote {registry.keys.latest}")
    with _noting(damaged):
        orphans = list(find_orphans(registry, timedelta(0)))
    return Repairs(tuple(mended), tuple(dict.fromkeys(damaged)), tuple(orphans))


@contextmanager
def _noting(damaged: list[str]) -> Iterator[None]:
    """Record damage and continue with the rest."""
    try:
        yield
    except IntegrityError as error:
        damaged.append(error.message)


def find_orphans(registry: Registry, keep: timedelta) -> Iterator[Orphan]:
    """Yield what `collect_garbage` would remove; see there."""
    # Claims are looked at before manifests: a run that publishes in between has its manifest then.
    for generation in _generations(registry):
        if not _is_training(registry, generation):
            manifest = registry.find(generation)
            yield from _attempts(registry, generation, manifest, keep)
            yield from _ensemble(registry, generation, manifest, keep)
    # A run that found its dataset in the store has not named it in the store yet.
    if not any(_is_training(registry, generation) for generation in _generations(registry)):
        yield from _datasets(registry, keep)
    yield from _queries(registry, keep)
    yield from _potentials(registry, keep)
    for name in registry.store.leftovers(keep.total_seconds()):
        yield Orphan(name, "a write that was cut short", (), 0)


def collect_garbage(registry: Registry, keep: timedelta) -> list[Orphan]:
    """Remove attempts, checkpoints and datasets that no manifest names.

    What was written within `keep`, by the store's clock, stays; so does all that belongs to a
    generation which is being trained, and every dataset while any is. A dataset also stays for a
    checkpoint that does.

    Returns
    -------
    list of Orphan
        What was removed.
    """
    removed = []
    for orphan in find_orphans(registry, keep):
        # States and records first: what they name must not outlive them half.
        for key in sorted(orphan.keys, key=lambda key: not key.endswith(".json")):
            registry.store.delete(key)
        if not orphan.keys:
            registry.store.remove_leftover(orphan.prefix)
        removed.append(orphan)
    return removed


def _generations(registry: Registry) -> list[int]:
    names = registry.store.list_prefixes(registry.keys.generations)
    return [n for n in map(parse_generation_name, names) if n is not None]


def _is_training(registry: Registry, generation: int) -> bool:
    for place in (registry, *members_of(registry, generation).values()):
        key = place.own.claim(generation)
        claim = read_claim(registry.store, key)
        if claim is not None and is_live(registry.store, key, claim):
            return True
    return False


def _ensemble(
    registry: Registry, generation: int, manifest: Manifest | None, keep: timedelta
) -> Iterator[Orphan]:
    """Yield what is left of an ensemble; one that became no generation goes as a whole."""
    name = generation_name(generation)
    if manifest is not None and manifest.ensemble is not None:
        for member in members_of(registry, generation).values():
            yield from _attempts(member, generation, member.find_own(generation), keep)
        return
    prefix = registry.keys.generation(generation, MEMBERS)
    agreement = registry.keys.generation(generation, AGREEMENT)
    objects = [*registry.store.list(prefix), *registry.store.list(agreement)]
    fate = "which is not published" if manifest is None else "that did not become it"
    yield from _orphan(registry, prefix, f"an ensemble for {name}, {fate}", objects, keep)


def _attempts(
    registry: Registry, generation: int, manifest: Manifest | None, keep: timedelta
) -> Iterator[Orphan]:
    named = {part.attempt for part in manifest.attempts} if manifest is not None else set()
    prefix = registry.own.generation(generation, "attempts/")
    for attempt in registry.store.list_prefixes(prefix):
        objects = list(registry.store.list(f"{prefix}{attempt}/"))
        if attempt in named:
            objects = [info for info in objects if "/checkpoints/" in info.key]
            what = f"checkpoints of {generation_name(generation)}, which is published"
        elif manifest is not None:
            what = f"an attempt at {generation_name(generation)} that did not become it"
        else:
            what = f"an attempt at {generation_name(generation)}, which is not published"
        yield from _orphan(registry, f"{prefix}{attempt}/", what, objects, keep)


def _datasets(registry: Registry, keep: timedelta) -> Iterator[Orphan]:
    named = {manifest.dataset.id for manifest in registry.manifests()}
    doomed = {
        orphan.prefix
        for generation in _generations(registry)
        for find in (_attempts, _ensemble)
        for orphan in find(registry, generation, None, keep)
    }
    for generation in _generations(registry):
        agreement = read_agreement(registry, generation)
        if agreement is not None and registry.keys.generation(generation, MEMBERS) not in doomed:
            named.add(agreement.dataset.id)
        for checkpoint in registry.checkpoints(generation).found():
            attempt = registry.keys.attempt(generation, checkpoint.attempt)
            if attempt not in doomed:
                named.add(checkpoint.training.dataset.id)
    for dataset in registry.store.list_prefixes(registry.keys.datasets):
        if dataset not in named:
            prefix = registry.keys.dataset(dataset)
            objects = list(registry.store.list(prefix))
            complete = any(info.key.endswith(f"/{DatasetFiles.RECORD}") for info in objects)
            what = "a dataset of no generation" if complete else "a dataset without its record"
            yield from _orphan(registry, prefix, what, objects, keep)


def _queries(registry: Registry, keep: timedelta) -> Iterator[Orphan]:
    for info in registry.store.list(registry.keys.queries):
        query = registry.queries.read(PurePosixPath(info.key).stem)
        record = registry.keys.dataset(query.dataset, DatasetFiles.RECORD) if query else None
        if record is None or registry.store.head(record) is None:
            yield from _orphan(registry, info.key, "a note of a dataset that is gone", [info], keep)


def _potentials(registry: Registry, keep: timedelta) -> Iterator[Orphan]:
    prefix = registry.keys.potentials
    found = list(registry.store.list(prefix))  # before the manifests: a copy is written after it
    manifests = {manifest.generation: manifest for manifest in registry.manifests()}
    for info in found:
        name, _, suffix = info.key.removeprefix(prefix).partition(".")
        manifest = manifests.get(parse_generation_name(name) or 0)
        if manifest is None or f"potential.{suffix}" not in manifest.artefacts:
            yield from _orphan(registry, info.key, "a potential of no generation", [info], keep)


def _orphan(
    registry: Registry,
    prefix: str,
    what: str,
    objects: Sequence[ObjectInfo],
    keep: timedelta,
) -> Iterator[Orphan]:
    if not objects:
        return
    newest = max(objects, key=lambda info: info.modified)
    age = age_by_store(registry.store, newest.key)
    if age is not None and age >= keep.total_seconds():
        keys = tuple(info.key for info in objects)
        yield Orphan(prefix, what, keys, sum(info.size for info in objects))
