"""The data of a generation: find or build its dataset, split it for the fit, preview it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.dataset.builder import DatasetBuilder, ParentDataset
from mlip_job.dataset.frames import FramePart, frames_from_texts
from mlip_job.dataset.record import DatasetRecord, SideNames
from mlip_job.dataset.split import Parts, part_training_set
from mlip_job.errors import IntegrityError
from mlip_job.generation.lineage import Lineage, find_lineage
from mlip_job.paths import (
    DatasetFiles,
    WorkFiles,
    cant_write,
    generation_name,
    make_private_directory,
    reported,
)
from mlip_job.registry import DatasetReference, KnownQuery, Registry
from mlip_job.retry import retrying
from mlip_job.training.size import DataSize, choose_size
from mlip_job.training.trainer import FitData

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.record import SelectedRows
    from mlip_job.dataset.survey import Sample
    from mlip_job.generation.context import Run
    from mlip_job.registry import Manifest
    from mlip_job.training.size import BasisSize

MOST_PREVIEW_ROWS = 20_000
"""Maximum number of rows that a preview reads; larger selections are sampled evenly."""
_LISTED = 5


@dataclass(frozen=True)
class Dataset:
    """A generation's dataset, in the store or in a directory.

    Attributes
    ----------
    record
        The record (``dataset.json``).
    query, rows
        The query that selected the rows, and the rows.
    stored_sha256
        Hash of the record in the store; None if the dataset is only in a local directory.
    """

    record: DatasetRecord
    query: str
    rows: SelectedRows
    stored_sha256: str | None

    def publish(self, registry: Registry, directory: Path) -> str:
        """Upload the dataset unless the store has it; return the sha256 of its record."""
        if self.stored_sha256 is not None:
            return self.stored_sha256
        sha256 = registry.publish_dataset(directory, self.record)
        self.remember(registry, sha256)
        return sha256

    def remember(self, registry: Registry, record_sha256: str) -> None:
        """Let later runs find the stored dataset by its query."""
        registry.remember_query(
            self.query,
            KnownQuery(rows=self.rows, dataset=self.record.id, record_sha256=record_sha256),
        )


def refer_to(
    record: DatasetRecord, record_sha256: str, parent: Manifest | None
) -> DatasetReference:
    """Return the reference by which manifests and checkpoints name a dataset."""
    return DatasetReference(
        id=record.id,
        record_sha256=record_sha256,
        train=record.counts.train,
        test=record.counts.test,
        database=record.database,
        selection=record.selection,
        inherited_from=parent.generation if parent is not None else None,
    )


# -- fetch from a stored dataset -----------------------------------------------------------------

Fetch = Callable[[Registry, DatasetRecord, Path], DatasetRecord]
"""Fetches files of a dataset into a directory; returns the record of the files there."""


def make_frames(registry: Registry, record: DatasetRecord, directory: Path) -> DatasetRecord:
    """Make the frames for the trainer from the xyz files.

    Frames from the store are not used, because they are pickles and unpickling can run any code.
    """
    files = DatasetFiles(directory)
    fetch_missing(registry, record, files.xyz("train"), files.xyz("test"))
    names = frames_from_texts(record, directory)
    return record.model_copy(update={"frames": SideNames(**names)})


def all_files(registry: Registry, record: DatasetRecord, directory: Path) -> DatasetRecord:
    """Fetch all files but the record."""
    for name in record.files:
        registry.fetch_dataset_file(record, name, directory / name)
    return record


def no_files(_registry: Registry, record: DatasetRecord, _directory: Path) -> DatasetRecord:
    """Fetch nothing."""
    return record


def fetch_missing(registry: Registry, record: DatasetRecord, *paths: Path) -> None:
    """Fetch the files of a dataset that are not in the work directory yet."""
    for path in paths:
        if not path.exists():
            registry.fetch_dataset_file(record, path.name, path)


# -- find or build -------------------------------------------------------------------------------


def find_or_build_dataset(
    run: Run, parent: Manifest | None, directory: Path, *, fetch: Fetch, rebuild: bool = False
) -> Dataset:
    """Find a generation's dataset in the store, or build it in `directory`.

    An error leaves the directory unchanged.

    Parameters
    ----------
    parent
        The generation whose split is inherited.
    fetch
        Called for a dataset that is found.
    rebuild
        Build it even if no row has changed since it was last built.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cant_write(directory, error, hint="set work_dir, or choose -o DIR") from None
    observe = run.observer.message
    builders = _builder(run.config, run.generation, run.registry, parent, observe)
    with reported(directory), builders as builder:
        key = builder.query_key()
        stored: list[str] = []

        def find(rows: SelectedRows) -> DatasetRecord | None:
            found = None if rebuild else run.registry.known_dataset(key, rows)
            if found is None:
                return None
            try:
                record = fetch(run.registry, found[0], directory)
            except IntegrityError as error:
                observe(f"warning: {error.message}; rebuilding the dataset")
                return None
            stored.append(found[1])
            observe(
                f"dataset {record.id} of {record.counts.train} train and {record.counts.test} test "
                "rows is in the store; no row was written since it was made"
            )
            return record

        try:
            built = retrying(
                lambda: builder.find_or_build(directory, find), run.config.run.retry_timeout
            )
        except BaseException:
            with suppress(OSError):
                directory.rmdir()
            raise
    return Dataset(built.record, key, built.rows, stored[0] if built.found else None)


@contextmanager
def scratch_directory(config: JobConfig) -> Iterator[WorkFiles]:
    """Make a temporary directory for a dataset; in the work directory, which has enough space."""
    work = Path(config.work_dir)
    try:
        make_private_directory(work)
        scratch = tempfile.TemporaryDirectory(dir=work, prefix="scratch-")
    except OSError as error:
        raise cant_write(work, error, hint="set work_dir") from None
    with reported(work), scratch as directory:
        yield WorkFiles(Path(directory))


@contextmanager
def _builder(
    config: JobConfig,
    generation: int,
    registry: Registry | None,
    parent: Manifest | None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[DatasetBuilder]:
    """Make a builder that inherits the split and the reference energies of `parent`."""
    with tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
        inherited = None
        if parent is not None and registry is not None:
            record = registry.dataset_record(parent.dataset)
            index = Path(temporary) / DatasetFiles.INDEX
            registry.fetch_dataset_file(record, DatasetFiles.INDEX, index)
            inherited = ParentDataset(record, index)
        yield DatasetBuilder(
            config.database.for_generation(generation),
            config.dataset,
            config.training,
            parent=inherited,
            progress=progress,
        )


def without_new_data(record: DatasetRecord, before: Manifest | None) -> str | None:
    """Return a warning if an earlier generation's dataset has the same structures."""
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


# -- data of the fit -----------------------------------------------------------------------------


def make_fit_data(
    training: TrainingConfig, record: DatasetRecord, registry: Registry, files: WorkFiles
) -> FitData:
    """Split the training set into a fitted and a validation part; write the frames of both.

    The work directory must hold pacemaker's frames of the whole dataset.
    """
    whole = FitData(
        elements=record.elements,
        reference_energies={e: record.reference_energies[e] for e in record.elements},
        structures=record.counts.train,
        atoms=record.atoms.train,
        train=WorkFiles.in_dataset(record.frames.train),
        test=WorkFiles.in_dataset(record.frames.test),
    )
    if training.is_linear or training.test_evaluation == "pacemaker":
        whole = replace(whole, second=whole.test)
    parts = _parts(training, record, registry, files)
    if training.is_linear:
        return replace(whole, held_out=parts.validation)
    if not parts.validation and parts.why_whole is not None:
        whole = _without_validation(whole, parts.why_whole)
    if not parts.validation and training.trainer == "pacemaker":
        return whole
    fitted = FramePart("fit", "train", parts.fit if parts.validation else None)
    held_out = [FramePart("validation", "train", parts.validation)] if parts.validation else []
    frames = frames_from_texts(
        record,
        files.dataset.directory,
        [fitted, *held_out],
        "pacemaker" if training.trainer == "pacemaker" else "gracemaker",
    )
    return replace(
        whole,
        train=WorkFiles.in_dataset(frames["fit"]),
        second=WorkFiles.in_dataset(frames.get("validation", ())),
        validation=parts.validation,
        held_out=parts.validation,
    )


def _parts(
    training: TrainingConfig, record: DatasetRecord, registry: Registry, files: WorkFiles
) -> Parts:
    """Return the parts of the training set; without a validation part the rows don't matter."""
    if training.validation_fraction == 0:
        return Parts(frozenset())
    if training.evaluator == "pyace" and not training.is_linear:
        return Parts(frozenset(), why_whole="evaluator pyace measures no second set")
    fetch_missing(registry, record, files.dataset.index, files.dataset.xyz("train"))
    return part_training_set(files.dataset, record, training.validation_fraction)


def _without_validation(whole: FitData, why: str) -> FitData:
    note = (
        f"the fit had no validation part: {why}; its last iteration is the result, and it may have "
        "overfitted"
    )
    return replace(whole, notes=(note,))


def data_size(record: DatasetRecord) -> DataSize:
    """Return the number of labels of a training set."""
    atoms = record.atoms
    if record.force_components is None:
        forces = 3 * atoms.train
    else:
        forces = round(record.force_components * atoms.train / (atoms.train + atoms.test))
    return DataSize(energies=record.counts.train, forces=forces, elements=len(record.elements))


def expected_size(training: TrainingConfig, sample: Sample) -> BasisSize | None:
    """Estimate the basis of a fit from scratch to all rows; None without rows."""
    if not sample.elements:
        return None
    share = 1 - training.test_fraction
    data = DataSize(
        energies=round(share * sample.selected),
        forces=round(share * sample.force_components),
        elements=len(sample.elements),
    )
    return choose_size(training, data, parent=None)


# -- preview -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preview:
    """Dataset and basis of the next generation.

    Attributes
    ----------
    selected
        Number of selected rows; larger than in the record if a sample was taken.
    record
        Record of the dataset, without files.
    size
        Size of the basis.
    warning
        Warning if there are no new data.
    """

    generation: int
    selected: int
    record: DatasetRecord
    size: BasisSize
    warning: str | None

    def __str__(self) -> str:
        """List the rows that would be used and rejected."""
        return "; ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        counts, split = self.record.counts, self.record.split
        rows = f"{self.selected} rows"
        if counts.selected < self.selected:
            rows = f"a sample of {counts.selected} of {self.selected} rows"
        name = generation_name(self.generation)
        yield f"{name} of {rows}: {counts.train} train, {counts.test} test"
        if counts.reference_atoms:
            plural = "s" if counts.reference_atoms > 1 else ""
            yield f"{counts.reference_atoms} isolated atom{plural}"
        if split.key is not None:
            yield f"split by the key {split.key}"
        if split.group_by is not None:
            yield f"grouped by {split.group_by}"
        for reason, rejected in self.record.rejections.items():
            some = ", ".join(map(str, rejected.rows[:_LISTED]))
            more = " …" if rejected.count > _LISTED else ""
            yield f"{rejected.count} rejected, {reason.replace('_', ' ')} (rows {some}{more})"
        for note in self.record.notes:
            yield f"note: {note}"
        if self.warning is not None:
            yield self.warning


def preview(config: JobConfig, registry: Registry | None, most: int = MOST_PREVIEW_ROWS) -> Preview:
    """Select, validate and split like a run, without writing anything.

    Without a registry, generation 1 is previewed.

    Raises
    ------
    MlipJobError
        The error that a run would raise.
    """
    generation, lineage = 1, Lineage(None, None)
    if registry is not None:
        generation = max(registry.numbers(), default=0) + 1
        lineage = find_lineage(registry, config.training, generation)
    with _builder(config, generation, registry, lineage.dataset) as builder:
        record, selected = builder.preview(most)
    counts = record.counts
    data = data_size(record).scaled(selected / counts.selected)
    return Preview(
        generation,
        selected,
        record,
        choose_size(config.training, data, lineage.functions),
        without_new_data(record, lineage.dataset) if counts.selected == selected else None,
    )
