"""The registry of one family: the only reader and writer of its part of the store."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from mlip_job.dataset.record import DatasetRecord, SelectedRows
from mlip_job.errors import (
    ConfigError,
    ConflictError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from mlip_job.models import Record
from mlip_job.paths import DatasetFiles, FamilyKeys, generation_name, parse_generation_name
from mlip_job.registry.checkpoints import Checkpoints
from mlip_job.registry.claim import HeldClaim, take_claim
from mlip_job.registry.latest import Pointer
from mlip_job.registry.manifest import Artefact, DatasetReference, GenerationSummary, Manifest
from mlip_job.registry.objects import at_once, damaged, fetch_bytes, fetch_file
from mlip_job.store.base import Sha256, StoredName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlip_job.registry.latest import LatestPointer
    from mlip_job.store.base import ObjectStore

COPIED_SUFFIXES = ("yace", "yaml", "asi")
"""Formats of the potential that are copied to ``potentials/``, where present."""


class KnownQuery(Record):
    """Content of ``queries/<key>.json``: the rows of a query, and the dataset made of them.

    A cache that saves an export: any of these objects may be removed or rewritten. A dataset is
    found only if its record has the hash that was noted here.
    """

    schema_version: Literal[1] = 1
    rows: SelectedRows
    dataset: StoredName
    record_sha256: Sha256


class Registry:
    """Generations of one family in a store.

    ``keys`` are the family's; ``own`` are those of what is trained here, which differ for a member
    of an ensemble.
    """

    def __init__(self, store: ObjectStore, family: str) -> None:
        self.store = store
        self.family = family
        self.keys = self.own = FamilyKeys(family)
        self._pointer = Pointer(store, self.keys.latest)

    # -- reading ---------------------------------------------------------------------------------

    def find(self, generation: int) -> Manifest | None:
        """Return a generation's manifest, or None where it is not published."""
        return self._read_manifest(self.keys.manifest(generation))

    def find_own(self, generation: int) -> Manifest | None:
        """Return the manifest of the generation trained here, or of a member's part of it."""
        return self._read_manifest(self.own.manifest(generation))

    def _read_manifest(self, key: str) -> Manifest | None:
        try:
            return Manifest.from_json(self.store.get(key), key=key)
        except ObjectNotFoundError:
            return None

    def get(self, generation: int) -> Manifest:
        """Return a manifest, or raise a `ConfigError` that says what is published."""
        manifest = self.find(generation)
        if manifest is None:
            known = ", ".join(map(generation_name, self.numbers())) or "none yet"
            raise ConfigError(
                f"{generation_name(generation)} of {self.family} is not published in "
                f"{self.store.url} (published: {known})"
            )
        return manifest

    def started(self) -> list[int]:
        """Return the numbers of all generations that have objects in the store, ascending."""
        names = self.store.list_prefixes(self.keys.generations)
        return sorted(n for n in map(parse_generation_name, names) if n is not None)

    def numbers(self) -> list[int]:
        """Return the numbers of all published generations, ascending."""
        prefix, end = self.keys.generations, f"/{self.keys.MANIFEST}"
        keys = (info.key for info in self.store.list(prefix) if info.key.endswith(end))
        names = (key.removeprefix(prefix).removesuffix(end) for key in keys)
        return sorted(n for n in map(parse_generation_name, names) if n is not None)

    def manifests(self, generations: Iterable[int] | None = None) -> list[Manifest]:
        """Return the manifests of all published generations, or of these, ascending."""
        numbers = self.started() if generations is None else sorted(generations)
        return [found for found in at_once(self.find, numbers) if found is not None]

    def summaries(self, generations: Iterable[int] | None = None) -> list[GenerationSummary]:
        """Return the summaries of `manifests`."""
        return [GenerationSummary.of(manifest) for manifest in self.manifests(generations)]

    def pointer(self) -> LatestPointer | None:
        """Return ``latest.json``."""
        return self._pointer.read()

    def latest(self) -> int | None:
        """Return the generation that ``latest.json`` points at."""
        pointer = self.pointer()
        return None if pointer is None else pointer.generation

    # -- training --------------------------------------------------------------------------------

    def claim(self, generation: int, attempt: str, *, stale_after_s: float) -> HeldClaim:
        """Claim a generation for an attempt; see `take_claim`."""
        key = self.own.claim(generation)
        return take_claim(self.store, key, generation, attempt=attempt, stale_after_s=stale_after_s)

    def checkpoints(self, generation: int) -> Checkpoints:
        """Return the checkpoints of a generation that is being trained."""
        return Checkpoints(self.store, self.own, generation)

    def agreed_dataset(self, generation: int) -> DatasetReference | None:  # noqa: ARG002
        """Return the dataset that others decided on; only members of an ensemble have any."""
        return None

    def agree_on_dataset(self, generation: int, dataset: DatasetReference) -> None:
        """Decide on a dataset for all members of an ensemble."""

    # -- datasets --------------------------------------------------------------------------------

    def publish_dataset(self, directory: Path, record: DatasetRecord) -> str:
        """Put a dataset into the store, its record last; return the sha256 of that record.

        A dataset is named by its content: an existing one is not changed.
        """
        record_key = self.keys.dataset(record.id, DatasetFiles.RECORD)
        if self.store.head(record_key) is None:
            for name, file in sorted(record.files.items()):
                key = self.keys.dataset(record.id, name)
                sent = self.store.upload(directory / name, key)
                if sent != file.sha256:
                    raise damaged(key, file.sha256, sent)
            data = DatasetFiles(directory).record.read_bytes()
            with suppress(ObjectExistsError):  # another job put the same dataset there meanwhile
                self.store.put_if_absent(record_key, data)
        return hashlib.sha256(self.store.get(record_key)).hexdigest()

    def dataset_record(self, dataset: DatasetReference) -> DatasetRecord:
        """Return the record of a dataset that a manifest or a checkpoint names."""
        return self._dataset_record(dataset.id, dataset.record_sha256)

    def _dataset_record(self, dataset_id: str, sha256: str) -> DatasetRecord:
        key = self.keys.dataset(dataset_id, DatasetFiles.RECORD)
        return DatasetRecord.from_json(fetch_bytes(self.store, key, sha256), key=key)

    def fetch_dataset_file(self, record: DatasetRecord, name: str, path: Path) -> None:
        """Download one file of a dataset and check its hash."""
        key = self.keys.dataset(record.id, name)
        if name not in record.files:
            raise IntegrityError(f"{key} is not in the record of dataset {record.id}")
        fetch_file(self.store, key, record.files[name].sha256, path)

    def fetch_dataset_record(self, manifest: Manifest, path: Path) -> None:
        """Download ``dataset.json`` of a generation's dataset and check its hash."""
        key = self.keys.dataset(manifest.dataset.id, DatasetFiles.RECORD)
        fetch_file(self.store, key, manifest.dataset.record_sha256, path)

    def known_dataset(self, query: str, rows: SelectedRows) -> tuple[DatasetRecord, str] | None:
        """Return the dataset that a query gave from these very rows, and its record's sha256."""
        known = self.known_query(query)
        if known is None or known.rows.sha256 != rows.sha256:
            return None
        try:
            return self._dataset_record(known.dataset, known.record_sha256), known.record_sha256
        except IntegrityError:
            return None

    def known_query(self, query: str) -> KnownQuery | None:
        """Return the record of a query."""
        try:
            return KnownQuery.model_validate_json(self.store.get(self.keys.query(query)))
        except (ObjectNotFoundError, ValidationError):
            return None

    def remember_query(self, query: str, known: KnownQuery) -> None:
        """Record the result of a query, replacing the previous record."""
        self.store.put(self.keys.query(query), known.to_json())

    # -- publishing ------------------------------------------------------------------------------

    def publish(
        self,
        generation: int,
        attempt: str,
        files: Mapping[str, Path],
        describe: Callable[[dict[str, Artefact]], Manifest],
    ) -> Manifest:
        """Publish a generation: every file first, the manifest once and last.

        `files` are local, by the names of artefacts; `describe` makes the manifest from these as
        they were stored.

        Raises
        ------
        ConflictError
            If the generation was published by another attempt meanwhile.
        IntegrityError
            If the dataset that the manifest names is not in the store.
        """
        artefacts = {}
        for name, path in sorted(files.items()):
            key = self.own.attempt(generation, attempt, name)
            sha256 = self.store.upload(path, key)
            artefacts[name] = Artefact(key=key, sha256=sha256, size=path.stat().st_size)
        return self.commit(describe(artefacts))

    def commit(self, manifest: Manifest) -> Manifest:
        """Create the manifest, which publishes its generation; see `publish`."""
        # A run whose heartbeat stopped for long may have lost its dataset to gc.
        self.dataset_record(manifest.dataset)
        generation = manifest.generation
        key = self.own.manifest(generation)
        try:
            self.store.put_if_absent(key, manifest.to_json())
        except ObjectExistsError:
            winner = Manifest.from_json(self.store.get(key), key=key)
            raise ConflictError(
                f"{generation_name(generation)} of {self.family} was published by attempt "
                f"{winner.attempt} meanwhile; this attempt ({manifest.attempt}) is not",
                hint=f"mlip-job show -g {generation} shows what is there",
            ) from None
        self.roll_forward(manifest)
        return manifest

    def roll_forward(self, manifest: Manifest) -> None:
        """Roll forward what is derived from a manifest, after a possible crash.

        ``latest.json`` follows accepted generations only, and never moves back.
        """
        for suffix in COPIED_SUFFIXES:
            if self.store.head(self.keys.potential(manifest.generation, suffix)) is None:
                self.repair_copy(manifest, suffix)
        if manifest.headline.accepted:
            self._advance_latest(manifest)

    def repair_copy(self, manifest: Manifest, suffix: str) -> bool:
        """Write the copy of a potential under ``potentials/`` unless it exists and is intact.

        Return whether it had to be written.
        """
        artefact = manifest.artefacts.get(f"potential.{suffix}")
        if artefact is None:
            return False
        key = self.keys.potential(manifest.generation, suffix)
        with tempfile.TemporaryDirectory(prefix="mlip-job-") as directory:
            local = Path(directory) / f"potential.{suffix}"
            with suppress(ObjectNotFoundError):
                if self.store.download(key, local) == artefact.sha256:
                    return False
            fetch_file(self.store, artefact.key, artefact.sha256, local)
            self.store.upload(local, key)
        return True

    def repair_latest(self) -> bool:
        """Correct ``latest.json``; return whether it had to be changed.

        An unreadable one is removed first. A generation that a person chose stays.
        """
        self._pointer.remove_unreadable()
        published = (self.get(number) for number in reversed(self.numbers()))
        highest = next((found for found in published if found.headline.accepted), None)
        return highest is not None and self._advance_latest(highest)

    def promote(self, generation: int, reason: str, *, force: bool) -> None:
        """Point ``latest.json`` at a generation, older or newer than the one that it points at.

        Generations that are published by then don't move it again, later ones do. Raise
        `ConfigError` if it is not published, or was rejected and there is no `force`.
        """
        headline = self.get(generation).headline
        if not (headline.accepted or force):
            reasons = "\n".join(f"  {reason}" for reason in headline.rejected_because)
            raise ConfigError(
                f"{generation_name(generation)} was rejected:\n{reasons}",
                hint="--force takes it all the same, and is recorded",
            )
        self._pointer.remove_unreadable()
        self._pointer.choose(
            generation,
            reason,
            forced=not headline.accepted,
            highest=lambda: max(self.numbers()),
        )

    def _advance_latest(self, manifest: Manifest) -> bool:
        verdict = manifest.headline.verdict
        reason = "accepted by the gate" if verdict == "accepted" else verdict
        return self._pointer.advance(manifest.generation, reason)

    # -- artefacts -------------------------------------------------------------------------------

    def fetch(self, manifest: Manifest, name: str, path: Path) -> None:
        """Download one artefact; raise `IntegrityError`, and leave no file, if it is damaged."""
        artefact = manifest.artefacts[name]
        fetch_file(self.store, artefact.key, artefact.sha256, path)

    def read(self, manifest: Manifest, name: str) -> bytes:
        """Return the content of a small artefact; raise `IntegrityError` if it is damaged."""
        artefact = manifest.artefacts[name]
        return fetch_bytes(self.store, artefact.key, artefact.sha256)

    def verify(self, manifest: Manifest) -> list[str]:
        """Read back all files of a generation; return the problems found."""
        problems: list[str] = []
        expected = {a.key: a.sha256 for a in manifest.artefacts.values()}
        for suffix in COPIED_SUFFIXES:
            if artefact := manifest.artefacts.get(f"potential.{suffix}"):
                expected[self.keys.potential(manifest.generation, suffix)] = artefact.sha256
        try:
            record = self.dataset_record(manifest.dataset)
        except IntegrityError as error:
            problems.append(error.message)
        else:
            for name, file in record.files.items():
                expected[self.keys.dataset(record.id, name)] = file.sha256
        with tempfile.TemporaryDirectory(prefix="mlip-job-") as directory:
            for key, sha256 in expected.items():
                try:
                    fetch_file(self.store, key, sha256, Path(directory) / "object")
                except IntegrityError as error:
                    problems.append(error.message)
        return problems
