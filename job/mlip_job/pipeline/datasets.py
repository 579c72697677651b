"""The dataset of a generation: found in the store, or built and published."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.dataset.builder import DatasetBuilder, ParentDataset
from mlip_job.dataset.files import frames_from_texts
from mlip_job.dataset.record import DatasetRecord, SideNames
from mlip_job.disk import cant_write, reported
from mlip_job.errors import IntegrityError
from mlip_job.naming import DatasetFiles, generation_name
from mlip_job.registry import Registry
from mlip_job.registry.queries import KnownQuery
from mlip_job.retries import retrying

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import SelectedRows
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Manifest


@dataclass(frozen=True)
class Dataset:
    """A generation's dataset.

    Attributes
    ----------
    record
        What it is.
    query, rows
        Which query gave it, and the rows that it was made of.
    stored_sha256
        Of the record as it is in the store; None where the dataset was built and lies in a
        directory only.
    """

    record: DatasetRecord
    query: str
    rows: SelectedRows
    stored_sha256: str | None

    def publish(self, registry: Registry, directory: Path) -> str:
        """Put it into the store unless it is there; return the sha256 of its record."""
        if self.stored_sha256 is not None:
            return self.stored_sha256
        sha256 = registry.publish_dataset(directory, self.record)
        self.remember(registry, sha256)
        return sha256

    def remember(self, registry: Registry, record_sha256: str) -> None:
        """Let later runs find it, now that it is in the store."""
        registry.queries.remember(
            self.query,
            KnownQuery(rows=self.rows, dataset=self.record.id, record_sha256=record_sha256),
        )


Fetch = Callable[[Registry, DatasetRecord, Path], DatasetRecord]
"""Brings files of a dataset into a directory; returns its record, as the directory has it."""


def make_frames(shard_size: int) -> Fetch:
    """Bring what a fit reads: frames of at most so many structures, made from the texts.

    A frame from the store is never read: it is a pickle, and runs what its writer put into it.
    """

    def fetch(registry: Registry, record: DatasetRecord, directory: Path) -> DatasetRecord:
        files = DatasetFiles(directory)
        for path in (files.xyz("train"), files.xyz("test")):
            registry.fetch_dataset_file(record, path.name, path)
        names = frames_from_texts(record, directory, shard_size)
        return record.model_copy(update={"frames": SideNames(**names)})

    return fetch


def all_files(registry: Registry, record: DatasetRecord, directory: Path) -> DatasetRecord:
    """Bring every file but the record, unread."""
    for name in record.files:
        registry.fetch_dataset_file(record, name, directory / name)
    return record


def no_files(_registry: Registry, record: DatasetRecord, _directory: Path) -> DatasetRecord:
    """Bring nothing."""
    return record


def find_or_build_dataset(
    config: JobConfig,
    generation: int,
    registry: Registry,
    parent: Manifest | None,
    directory: Path,
    observer: Observer,
    *,
    fetch: Fetch,
    rebuild: bool = False,
) -> Dataset:
    """Find a generation's dataset in the store, or build it in `directory`.

    On an error the directory is as it was.

    Parameters
    ----------
    config, generation, registry, parent
        Whose dataset it is, and the generation whose split it continues.
    directory
        Made for the files.
    observer
        Who is told.
    fetch
        Brings what is wanted into the directory where the dataset is found.
    rebuild
        Build it even if no row was written since it was built last.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cant_write(directory, error, hint="set work_dir, or choose -o DIR") from None
    with reported(directory), tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
        builder = DatasetBuilder(
            config.database.for_generation(generation),
            config.dataset,
            config.training,
            parent=fetch_parent_dataset(registry, parent, Path(temporary)),
            progress=observer.message,
        )
        key = builder.query_key()
        stored: list[str] = []

        def find(rows: SelectedRows) -> DatasetRecord | None:
            found = None if rebuild else registry.queries.find(key, rows)
            record = (
                None if found is None else _fetch(registry, found[0], fetch, directory, observer)
            )
            if found is not None and record is not None:
                stored.append(found[1])
            return record

        try:
            built = retrying(
                lambda: builder.find_or_build(directory, find), config.run.retry_timeout
            )
        except BaseException:
            with suppress(OSError):
                directory.rmdir()
            raise
    return Dataset(built.record, key, built.rows, stored[0] if built.found else None)


def without_new_data(record: DatasetRecord, before: Manifest | None) -> str | None:
    """Return a warning where a dataset has the very structures of an earlier generation's."""
    counts, split = record.counts, record.split
    if before is None or (split.inherited_train, split.inherited_test) != (
        before.dataset.train,
        before.dataset.test,
    ):
        return None
    if (counts.train, counts.test) != (split.inherited_train, split.inherited_test):
        return None
    return (
        f"warning: no new data since {generation_name(before.generation)}: the dataset has the "
        f"same {counts.train} train and {counts.test} test structures. Stop the run now, unless "
        "it is to repeat the fit with other settings, other labels or more iterations"
    )


def _fetch(
    registry: Registry,
    record: DatasetRecord,
    fetch: Fetch,
    directory: Path,
    observer: Observer,
) -> DatasetRecord | None:
    """Fetch files of a dataset that was found; return None where it is damaged."""
    try:
        fetched = fetch(registry, record, directory)
    except IntegrityError as error:
        observer.message(f"warning: {error.message}; building the dataset anew")
        return None
    observer.message(
        f"dataset {record.id} of {record.counts.train} train and {record.counts.test} test rows "
        "is in the store; no row was written since it was made"
    )
    return fetched


def fetch_parent_dataset(
    registry: Registry, manifest: Manifest | None, directory: Path
) -> ParentDataset | None:
    """Fetch what a dataset inherits from that of an earlier generation."""
    if manifest is None:
        return None
    record = registry.dataset_record(manifest.dataset)
    index = directory / DatasetFiles.INDEX
    registry.fetch_dataset_file(record, DatasetFiles.INDEX, index)
    return ParentDataset(record, index)
