"""Pull a generation, repair incomplete writes after a crash, remove unreferenced objects."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, ConflictError, IntegrityError
from mlip_job.paths import (
    MEMBERS,
    DatasetFiles,
    cant_write,
    generation_name,
    parse_generation_name,
    sha256_of,
)
from mlip_job.registry.checkpoints import STATE, Checkpoint, read_checkpoint
from mlip_job.registry.claim import is_live, read_claim
from mlip_job.registry.members import AGREEMENT, members_in, read_agreement
from mlip_job.registry.objects import at_once
from mlip_job.registry.registry import COPIED_SUFFIXES
from mlip_job.store.base import PROBES, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mlip_job.registry.manifest import Manifest
    from mlip_job.registry.registry import Registry
    from mlip_job.store.base import ObjectInfo, ObjectStore

_AGE = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_HINT = "remove it, or choose another -o DIR"


def pull_generation(
    registry: Registry, manifest: Manifest, directory: Path, *, with_dataset: bool
) -> list[Path]:
    """Download all artefacts of a generation, check their hashes, and return their paths.

    The potential is named after the generation (``gen_04.yace``), as LAMMPS input files will
    refer to it; the other files keep their names. Nothing appears in `directory` before all of it
    was downloaded and checked; existing files are not changed.

    Raises
    ------
    IntegrityError
        If an artefact is missing or damaged, or two have one name.
    ConflictError
        If a file of the same name and other content is there, or a link out of `directory`.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".pull-") as temporary:
            staging = Path(temporary)
            files = _download(registry, manifest, staging, with_dataset=with_dataset)
            for file in _new(files, staging, directory):
                (directory / file).parent.mkdir(parents=True, exist_ok=True)
                (staging / file).rename(directory / file)
    except OSError as error:
        raise cant_write(directory, error, hint="choose another -o DIR") from None
    return [directory / file for file in files]


def _download(
    registry: Registry, manifest: Manifest, staging: Path, *, with_dataset: bool
) -> list[str]:
    """Download into a private directory; return the files' paths in it."""
    name = generation_name(manifest.generation)
    artefacts = [(file.replace("potential.", f"{name}.", 1), file) for file in manifest.artefacts]
    record = registry.dataset_record(manifest.dataset) if with_dataset else None
    dataset = [] if record is None else [(f"dataset/{file}", file) for file in record.files]
    own = ["manifest.json"] if record is None else ["manifest.json", "dataset/dataset.json"]
    files = [*(path for path, _ in (*artefacts, *dataset)), *own]
    _require_apart(registry, manifest, files)
    for path in files:
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
    for path, file in artefacts:
        registry.fetch(manifest, file, staging / path)
    (staging / "manifest.json").write_bytes(manifest.to_json())
    if record is not None:
        for path, file in dataset:
            registry.fetch_dataset_file(record, file, staging / path)
        registry.fetch_dataset_record(manifest, staging / "dataset" / "dataset.json")
    return sorted(files)


def _require_apart(registry: Registry, manifest: Manifest, files: Sequence[str]) -> None:
    """Raise an IntegrityError where two files would be one, or one the folder of another."""
    taken = {parent.as_posix() for file in files for parent in PurePosixPath(file).parents}
    for file in files:
        if file in taken:
            raise IntegrityError(
                f"{registry.keys.manifest(manifest.generation)} names {shown(file)} twice, or as "
                "file and folder"
            )
        taken.add(file)


def _new(files: Sequence[str], staging: Path, directory: Path) -> list[str]:
    """Return the files that are not in the directory yet.

    Raises
    ------
    ConflictError
        If one is there with other content, or a link leads elsewhere.
    """
    root = directory.resolve()
    new = []
    for file in files:
        target = directory / file
        if not target.parent.resolve().is_relative_to(root):
            raise ConflictError(
                f"{target.parent} is a link that leads out of {directory}", hint=_HINT
            )
        if not os.path.lexists(target):
            new.append(file)
        elif target.is_symlink() or not target.is_file():
            raise ConflictError(f"{target} exists, and is no file", hint=_HINT)
        elif sha256_of(target) != sha256_of(staging / file):
            raise ConflictError(f"{target} exists with other content", hint=_HINT)
    return new


@dataclass(frozen=True)
class Orphan:
    """Objects that no manifest names, their keys, and their size in bytes, all together.

    `prefix` is the start of their keys; for the rest of a write that was cut short, the name of
    that, which has no keys.
    """

    prefix: str
    what: str
    keys: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Repairs:
    """Result of `repair`.

    One line for each repair, and for each generation that can't be repaired from the store;
    `orphans` are not changed.
    """

    repaired: tuple[str, ...]
    damaged: tuple[str, ...]
    orphans: tuple[Orphan, ...]


def parse_age(text: str) -> timedelta:
    """Return the time that ``30d``, ``12h`` or ``90m`` stands for; raise `ConfigError` for none."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no age", hint="write a number with s, m, h, d or w: 30d")
    return timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})


def repair(registry: Registry) -> Repairs:
    """Roll every published generation forward; report objects that belong to none.

    Copies under ``potentials/`` that are missing or differ from their manifest are rewritten, and
    so is ``latest.json`` where it is missing, unreadable or behind.
    """
    repaired: list[str] = []
    damaged: list[str] = []
    orphans: list[Orphan] = []

    def repair_copies(generation: int) -> tuple[list[str], str | None]:
        written: list[str] = []
        try:
            manifest = registry.get(generation)
            written.extend(
                f"wrote {registry.keys.potential(generation, suffix)}"
                for suffix in COPIED_SUFFIXES
                if registry.repair_copy(manifest, suffix)
            )
        except IntegrityError as error:
            return written, error.message
        return written, None

    for written, problem in at_once(repair_copies, registry.numbers()):
        repaired += written
        damaged += [problem] if problem is not None else []
    if registry.repair_latest():
        repaired.append(f"wrote {registry.keys.latest}")
    try:
        orphans = list(find_orphans(registry, timedelta(0)))
    except IntegrityError as error:
        damaged.append(error.message)
    return Repairs(tuple(repaired), tuple(dict.fromkeys(damaged)), tuple(orphans))


def collect_garbage(registry: Registry, keep: timedelta) -> list[Orphan]:
    """Remove attempts, checkpoints and datasets that no manifest names; return them.

    Objects that were written within `keep`, by the store's clock, stay; so do all of a generation
    that is being trained, and every dataset while any is. A dataset also stays for a checkpoint
    that does.
    """
    removed = []
    for orphan in find_orphans(registry, keep):
        # States and records first: the files that they name must not outlive them in part.
        for key in sorted(orphan.keys, key=lambda key: not key.endswith(".json")):
            registry.store.delete(key)
        if not orphan.keys:
            registry.store.remove_leftover(orphan.prefix)
        removed.append(orphan)
    return removed


def find_orphans(registry: Registry, keep: timedelta) -> Iterator[Orphan]:
    """Yield what `collect_garbage` would remove; see there."""
    yield from _Collection(registry, keep).orphans()
    for name in registry.store.leftovers(keep.total_seconds()):
        yield Orphan(name, "a write that was cut short", (), 0)


class _Collection:
    """The objects of a family, from one listing, and the records that name them.

    The order of reading matters. Objects are listed first: later ones stay. Claims are read before
    manifests: a run that publishes in between has its manifest then.
    """

    def __init__(self, registry: Registry, keep: timedelta) -> None:
        self._registry = registry
        self._store, self._keys = registry.store, registry.keys
        self._objects = list(self._store.list(f"{registry.family}/"))
        self._written_before = _time_of(self._store) - keep.total_seconds()
        self._training = _training(registry)
        self._manifests = {m.generation: m for m in registry.manifests()}
        names = _by_folder(self._objects, self._keys.generations)
        self._generations = {
            n: o for name, o in names.items() if (n := parse_generation_name(name))
        }

    def orphans(self) -> Iterator[Orphan]:
        """Yield all kinds of them."""
        for generation, objects in self._generations.items():
            if generation not in self._training:
                manifest = self._manifests.get(generation)
                yield from self._attempts(self._registry, generation, manifest, objects)
                yield from self._ensemble(generation, manifest, objects)
        # A run that found its dataset in the store has not named it in the store yet.
        if not self._training:
            yield from self._datasets()
        yield from self._queries()
        yield from self._potentials()

    def _attempts(
        self,
        registry: Registry,
        generation: int,
        manifest: Manifest | None,
        objects: Sequence[ObjectInfo],
    ) -> Iterator[Orphan]:
        named = {part.attempt for part in manifest.attempts} if manifest is not None else set()
        name = generation_name(generation)
        prefix = registry.own.generation(generation, "attempts/")
        for attempt, files in _by_folder(objects, prefix).items():
            folder = f"{prefix}{attempt}/"
            if attempt in named:
                checkpoints = [info for info in files if "/checkpoints/" in info.key]
                what = f"checkpoints of {name}, which is published"
                yield from self._if_old(folder, what, checkpoints)
            elif manifest is not None:
                yield from self._if_old(
                    folder, f"an attempt at {name} that did not become it", files
                )
            else:
                what = f"an attempt at {name}, which is not published"
                yield from self._if_old(folder, what, files)

    def _ensemble(
        self, generation: int, manifest: Manifest | None, objects: Sequence[ObjectInfo]
    ) -> Iterator[Orphan]:
        """Yield the rest of an ensemble; one that became no generation goes as a whole."""
        prefix = self._keys.generation(generation, MEMBERS)
        if manifest is not None and manifest.ensemble is not None:
            members = members_in(self._registry, _by_folder(objects, prefix)).values()
            manifests = at_once(lambda member: member.find_own(generation), members)
            for member, own in zip(members, manifests, strict=True):
                yield from self._attempts(member, generation, own, objects)
            return
        fate = "which is not published" if manifest is None else "that did not become it"
        what = f"an ensemble for {generation_name(generation)}, {fate}"
        yield from self._if_old(prefix, what, self._of_ensemble(generation, objects))

    def _of_ensemble(self, generation: int, objects: Iterable[ObjectInfo]) -> list[ObjectInfo]:
        starts = tuple(self._keys.generation(generation, name) for name in (MEMBERS, AGREEMENT))
        return [info for info in objects if info.key.startswith(starts)]

    def _datasets(self) -> Iterator[Orphan]:
        named = {manifest.dataset.id for manifest in self._manifests.values()}
        named |= self._datasets_to_resume()
        for dataset, objects in _by_folder(self._objects, self._keys.datasets).items():
            if dataset not in named:
                complete = any(info.key.endswith(f"/{DatasetFiles.RECORD}") for info in objects)
                what = "a dataset of no generation" if complete else "a dataset without its record"
                yield from self._if_old(self._keys.dataset(dataset), what, objects)

    def _datasets_to_resume(self) -> set[str]:
        """Return the datasets of young checkpoints and ensembles: the next attempt uses them."""
        ensembles, states = [], []
        for generation, objects in self._generations.items():
            if not self._are_old(self._of_ensemble(generation, objects)):
                ensembles.append(generation)
            prefix = self._keys.generation(generation, "attempts/")
            for files in _by_folder(objects, prefix).values():
                if not self._are_old(files):
                    states += [
                        info.key
                        for info in files
                        if "/checkpoints/" in info.key and info.key.endswith(f"/{STATE}")
                    ]
        agreements = at_once(lambda n: read_agreement(self._registry, n), ensembles)
        checkpoints = at_once(lambda key: read_checkpoint(self._store, key), states)
        return {agreement.dataset.id for agreement in agreements if agreement is not None} | {
            found.training.dataset.id for found in checkpoints if isinstance(found, Checkpoint)
        }

    def _queries(self) -> Iterator[Orphan]:
        def names_nothing(info: ObjectInfo) -> bool:
            query = self._registry.known_query(PurePosixPath(info.key).stem)
            if query is None:
                return True
            return self._store.head(self._keys.dataset(query.dataset, DatasetFiles.RECORD)) is None

        notes = [info for info in self._objects if info.key.startswith(self._keys.queries)]
        for info, obsolete in zip(notes, at_once(names_nothing, notes), strict=True):
            if obsolete:
                yield from self._if_old(info.key, "a note of a dataset that is gone", [info])

    def _potentials(self) -> Iterator[Orphan]:
        prefix = self._keys.potentials
        for info in self._objects:
            if info.key.startswith(prefix):
                name, _, suffix = info.key.removeprefix(prefix).partition(".")
                manifest = self._manifests.get(parse_generation_name(name) or 0)
                if manifest is None or f"potential.{suffix}" not in manifest.artefacts:
                    yield from self._if_old(info.key, "a potential of no generation", [info])

    def _if_old(self, prefix: str, what: str, objects: Sequence[ObjectInfo]) -> Iterator[Orphan]:
        if objects and self._are_old(objects):
            keys = tuple(info.key for info in objects)
            yield Orphan(prefix, what, keys, sum(info.size for info in objects))

    def _are_old(self, objects: Iterable[ObjectInfo]) -> bool:
        return all(info.modified <= self._written_before for info in objects)


def _by_folder(objects: Iterable[ObjectInfo], prefix: str) -> dict[str, list[ObjectInfo]]:
    """Return the objects below a prefix by the next part of their keys."""
    found: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in objects:
        folder, separator, _ = info.key.removeprefix(prefix).partition("/")
        if separator and info.key.startswith(prefix):
            found[folder].append(info)
    return found


def _training(registry: Registry) -> set[int]:
    """Return the generations of which an attempt, perhaps at a member, may be running."""
    prefix = registry.keys.generations
    keys = [i.key for i in registry.store.list(prefix) if i.key.endswith("/claim.json")]

    def holds(key: str) -> bool:
        claim = read_claim(registry.store, key)
        return claim is not None and is_live(registry.store, key, claim)

    names = (key.removeprefix(prefix).partition("/")[0] for key in keys)
    live = zip(names, at_once(holds, keys), strict=True)
    return {n for name, is_held in live if is_held and (n := parse_generation_name(name))}


def _time_of(store: ObjectStore) -> float:
    """Return the time by the store's clock, as its listings show it."""
    probe = f"{PROBES}/{secrets.token_hex(8)}"
    store.put(probe, b"")
    try:
        return next(info.modified for info in store.list(probe))
    finally:
        store.delete(probe)
