"""From an ASE database to the files of a dataset: the only place that knows the order of steps."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.config.training import ByGroup
from mlip_job.dataset import checks
from mlip_job.dataset.entry import Spool
from mlip_job.dataset.extxyz import write_structure
from mlip_job.dataset.frame import FrameWriter
from mlip_job.dataset.index import ParentDataset, index_text, write_index
from mlip_job.dataset.intake import take_in
from mlip_job.dataset.record import DatasetRecord, FileRecord, SideNames, dataset_id
from mlip_job.dataset.reference_energies import (
    ReferenceEnergies,
    automatic_references,
    configured_references,
)
from mlip_job.dataset.split import split_rows
from mlip_job.dataset.summary import Outcome, summarise
from mlip_job.dataset.weights import weigh_groups
from mlip_job.disk import cant_write
from mlip_job.naming import DatasetFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlip_job.config import DatabaseConfig, DatasetConfig, TrainingConfig
    from mlip_job.dataset.entry import Entry
    from mlip_job.dataset.intake import Intake
    from mlip_job.dataset.split import Side, Split

__all__ = ["DatasetBuilder", "ParentDataset"]


def _silent(_: str) -> None:
    """Drop a line of progress."""


@dataclass(frozen=True)
class DatasetBuilder:
    """Makes the dataset of one generation.

    Parameters
    ----------
    database
        Where the structures are.
    dataset
        What becomes of them.
    training
        Cutoff, elements, test fraction and weighting.
    parent
        The dataset of the generation that this one follows: its split and its reference energies
        are inherited.
    progress
        Called with lines that say how far it is.
    """

    database: DatabaseConfig
    dataset: DatasetConfig
    training: TrainingConfig
    parent: ParentDataset | None = None
    progress: Callable[[str], None] = _silent

    def build(self, directory: Path) -> DatasetRecord:
        """Write the dataset's files into a directory, ``dataset.json`` last.

        On an error nothing is left there. While it works, the directory holds a copy of the
        selected structures.

        Raises
        ------
        DatabaseError
            If the database can't be read.
        DataError
            If the data can't be trained on.
        ConfigError
            If selection, reference energies or weights don't fit the data, or the directory can't
            be made.
        OSError
            If its disk fills up.
        """
        with _scratch(directory) as scratch:
            record = self._build(scratch)
            _move(scratch, directory, record)
        return record

    def _build(self, scratch: Path) -> DatasetRecord:
        with Spool(scratch / "rows.spool") as spool:
            intake = take_in(
                self.database,
                self.dataset,
                cutoff=self.training.cutoff,
                spool=spool,
                progress=self.progress,
            )
            outcome = self._decide(intake)
            frames = self._write(DatasetFiles(scratch), spool, outcome)
        return self._record(DatasetFiles(scratch), outcome, frames)

    def _decide(self, intake: Intake) -> Outcome:
        """Split, find the reference energies and weights, and refuse what can't be trained on."""
        entries = intake.entries
        checks.require_few_rejections(intake, self.dataset.max_rejected_fraction)
        elements = checks.require_configured_elements(entries, self.training.elements)
        repeats = checks.require_consistent_duplicates(entries, self.dataset.duplicate_tolerance)
        checks.require_group_key(entries, self.dataset.group_by)
        split = split_rows(
            entries,
            fraction=self.training.test_fraction,
            seed=self.dataset.seed,
            inherited=self.parent.inheritance(self.dataset.group_by) if self.parent else None,
        )
        checks.require_elements_in_training(entries, split.sides, elements)
        references = self._references(intake, split, elements)
        weighting = self.training.weighting
        return Outcome(
            intake=intake,
            elements=elements,
            repeats=repeats,
            split=split,
            references=references,
            energy_range=checks.require_fitting_energies(
                entries, references, automatic=self.dataset.reference_energies == "auto"
            ),
            weighting=weigh_groups(weighting.by_group, entries, split.sides)
            if isinstance(weighting, ByGroup)
            else None,
        )

    def _references(
        self, intake: Intake, split: Split, elements: Sequence[str]
    ) -> ReferenceEnergies:
        setting = self.dataset.reference_energies
        if setting != "auto":
            return configured_references(setting, elements)
        return automatic_references(
            elements,
            inherited=self.parent.record.reference_energies if self.parent else {},
            isolated=intake.references,
            training=_on_side("train", intake.entries, split.sides),
            tolerance=self.dataset.duplicate_tolerance,
        )

    def _write(self, files: DatasetFiles, spool: Spool, outcome: Outcome) -> SideNames:
        """Write the structures: one pass over the spool fills both sides."""
        entries, sides = outcome.intake.entries, outcome.split.sides
        self.progress(f"writing {sides.count('train')} train and {outcome.split.test} test rows")
        frames = {
            side: FrameWriter(files, side, self.dataset.frame_shard_size, outcome.weighting)
            for side in _SIDES
        }
        with (
            files.xyz("train").open("w", encoding="utf-8") as train,
            files.xyz("test").open("w", encoding="utf-8") as test,
        ):
            texts = {"train": train, "test": test}
            for row, entry, side in zip(spool, entries, sides, strict=True):
                write_structure(
                    texts[side],
                    row,
                    energy=entry.energy,
                    group=entry.group,
                    config_type=entry.config_type,
                )
                frames[side].add(
                    row,
                    energy=entry.energy,
                    energy_corrected=outcome.references.corrected(entry.composition, entry.energy),
                    config_type=entry.config_type,
                )
        for frame in frames.values():
            frame.flush()
        return SideNames(train=tuple(frames["train"].names), test=tuple(frames["test"].names))

    def _record(self, files: DatasetFiles, outcome: Outcome, frames: SideNames) -> DatasetRecord:
        index = index_text(outcome.intake.entries, outcome.split.sides)
        write_index(files.index, index)
        paths = [files.xyz("train"), files.xyz("test"), files.index]
        paths += [files.directory / name for name in (*frames.train, *frames.test)]
        written = {path.name: _file_record(path) for path in paths}
        hashes = {name: written[name].sha256 for name in ("train.xyz", "test.xyz")}
        # The compressed bytes of the index depend on the version of zlib, its text does not.
        hashes["index"] = hashlib.sha256(index).hexdigest()
        weights = outcome.weighting.by_group if outcome.weighting else None
        record = summarise(
            outcome,
            identity=dataset_id(hashes, outcome.references.energies, weights),
            database=self.database,
            dataset=self.dataset,
            training=self.training,
            frames=frames,
            files=written,
        )
        files.record.write_text(record.to_json(), encoding="utf-8")
        return record


_SIDES: tuple[Side, Side] = ("train", "test")


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """Make a scratch directory inside `directory`, which vanishes on an error if it is new."""
    existed = directory.is_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".building-", dir=directory)
    except OSError as error:
        raise cant_write(directory, error, hint="choose another directory") from None
    try:
        with scratch as name:
            yield Path(name)
    except BaseException:
        if not existed:
            with suppress(OSError):
                directory.rmdir()
        raise


def _on_side(side: Side, entries: Sequence[Entry], sides: Sequence[Side]) -> list[Entry]:
    return [entry for entry, its in zip(entries, sides, strict=True) if its == side]


def _file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(
            sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size
        )


def _move(scratch: Path, directory: Path, record: DatasetRecord) -> None:
    """Move the finished files into place; a record that describes other files goes first."""
    target = DatasetFiles(directory).record
    target.unlink(missing_ok=True)
    for name in (*record.files, target.name):
        (scratch / name).replace(directory / name)
