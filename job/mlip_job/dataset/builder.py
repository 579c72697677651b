"""Build a dataset from an ASE database: read, validate, split, find reference energies, write."""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.config.training import ByGroup, EnergyBased
from mlip_job.dataset.connection import describe_url
from mlip_job.dataset.contents import Outcome, Written, summarise
from mlip_job.dataset.database import Selected, StructureDatabase
from mlip_job.dataset.files import ContentHash, OutputFile, read_index, write_index
from mlip_job.dataset.frames import FrameWriter, require_convex_hull, weigh_groups
from mlip_job.dataset.record import SideNames
from mlip_job.dataset.references import (
    ReferenceEnergies,
    automatic_references,
    by_composition,
    configured_references,
    fit_references,
    require_determined_references,
    require_fitting_energies,
    require_references_of_parent,
)
from mlip_job.dataset.rows import SIDES, Spool, name_rows
from mlip_job.dataset.split import (
    Inheritance,
    require_elements_in_training,
    split_by_key,
    split_rows,
)
from mlip_job.dataset.twins import require_consistent_duplicates
from mlip_job.dataset.validation import collect_rows
from mlip_job.dataset.xyz import structures_text
from mlip_job.errors import ConfigError, DataError
from mlip_job.paths import DatasetFiles, cant_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlip_job.config import DatabaseConfig, DatasetConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord, SelectedRows
    from mlip_job.dataset.rows import Entries, Side
    from mlip_job.dataset.split import Split
    from mlip_job.dataset.validation import Collected


_QUERY_VERSION = 4
"""Increase it when the same rows and settings produce a different dataset, so that datasets of
earlier versions are not reused. A dataset with unchanged content keeps its id."""

_DECISIVE = {"cutoff", "test_fraction", "elements", "weighting"}
"""Training settings that affect a dataset."""


def write_files(files: DatasetFiles, spool: Spool, outcome: Outcome) -> Written:
    """Write all files but the record."""
    split = outcome.split
    with OutputFile(files.index, compressed=True) as index:
        contents = {"index": write_index(index, outcome.collected.entries, split)}
    frames = {
        side: FrameWriter(files, side, outcome.references, outcome.weighting) for side in SIDES
    }
    hashes = {side: ContentHash() for side in SIDES}
    force_components = dict.fromkeys(SIDES, 0)
    with ExitStack() as stack:
        texts = {side: stack.enter_context(OutputFile(files.xyz(side))) for side in SIDES}
        for structures, place in spool:
            right_handed = structures.right_handed()
            for side in SIDES:
                chosen = split.on(side)[place]
                if not chosen.any():
                    continue
                some = right_handed.take(chosen)
                texts[side].write(structures_text(some))
                hashes[side].update(some)
                force_components[side] += some.count_force_components()
                frames[side].add(some)
        for side in SIDES:
            frames[side].flush()
    written = [index, *(f for side in SIDES for f in (texts[side], *frames[side].written))]
    return Written(
        contents=contents | {side: hashes[side].hexdigest() for side in SIDES},
        force_components=force_components,
        frames=SideNames(train=frames["train"].names(), test=frames["test"].names()),
        files=dict(sorted((file.path.name, file.record()) for file in written)),
    )


@dataclass(frozen=True)
class ParentDataset:
    """Dataset of the parent generation: its record, and a copy of its index."""

    record: DatasetRecord
    index: Path

    def inheritance(self, group_by: str | None) -> Inheritance:
        """Return the inherited sides; those of groups only if `group_by` is unchanged.

        Raise `IntegrityError` if the index can't be read.
        """
        groups: dict[str, Side] = {}
        same_groups = group_by is not None and group_by == self.record.split.group_by

        def fingerprints() -> Iterator[tuple[str, Side]]:
            for _, fingerprint, group, side in read_index(self.index, f"dataset {self.record.id}"):
                if same_groups and group:
                    groups[group] = side
                yield fingerprint, side

        return Inheritance.of(fingerprints(), groups)


@dataclass(frozen=True)
class Built:
    """A dataset and the state of its rows; `found` if it already existed."""

    record: DatasetRecord
    rows: SelectedRows
    found: bool


@dataclass(frozen=True)
class DatasetBuilder:
    """Build the dataset of one generation.

    Of `training` only cutoff, elements, test fraction and weighting are used, and whether a stress
    is fitted, which all periodic rows must have then. Split and reference energies of `parent` are
    inherited. `progress` is called with messages.
    """

    database: DatabaseConfig
    dataset: DatasetConfig
    training: TrainingConfig
    parent: ParentDataset | None = None
    progress: Callable[[str], None] = field(default=lambda _: None)

    def build(self, directory: Path) -> DatasetRecord:
        """Write the dataset's files into a directory, ``dataset.json`` last.

        On an error no files are left there. During the build, the directory holds a copy of the
        selected structures.

        Raise `DatabaseError` if the database can't be read; `DataError` if the data can't be
        trained on; `ConfigError` if selection, reference energies or weights don't fit the data, or
        the directory can't be created; `OSError` if the disk is full.
        """
        return self.find_or_build(directory, lambda _: None).record

    def find_or_build(
        self, directory: Path, find: Callable[[SelectedRows], DatasetRecord | None]
    ) -> Built:
        """Build a dataset as `build` does, unless `find` returns one of the same rows."""
        with StructureDatabase(self.database) as source:
            selected = source.select()
            rows = selected.summary()
            found = find(rows)
            if found is not None:
                return Built(found, rows, found=True)
            with _scratch(directory) as scratch:
                record = self._make(source, selected, scratch)
                _move(scratch, directory, record)
        return Built(record, rows, found=False)

    def preview(self, most: int) -> tuple[DatasetRecord, int]:
        """Return the record that `build` would write, and the number of selected rows.

        Above `most` rows, read an evenly spaced sample; error messages say so.
        """
        with StructureDatabase(self.database) as source:
            selected = source.select()
            step = max(1, -(-len(selected.ids) // most))
            some = Selected(selected.ids[::step], selected.mtimes[::step])
            with tempfile.TemporaryDirectory(prefix="mlip-job-") as scratch:
                try:
                    record = self._make(source, some, Path(scratch))
                except (DataError, ConfigError) as error:
                    if step > 1:
                        of = f"{len(some.ids)} of {len(selected.ids)} rows"
                        error.message += f" (in a sample of {of})"
                    raise
        return record, len(selected.ids)

    def _make(self, source: StructureDatabase, selected: Selected, scratch: Path) -> DatasetRecord:
        with Spool(scratch / "rows.spool") as spool:
            collected = self._collect(source, selected, spool)
            return self._write(DatasetFiles(scratch), spool, self._decide(source, collected))

    def query_key(self) -> str:
        """Return the hash of everything but the rows that determines the dataset."""
        parent = self.parent.record if self.parent else None
        query: dict[str, object] = {
            "format": _QUERY_VERSION,
            "database": describe_url(self.database.url),
            "select": self.database.select,
            "dataset": self.dataset.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json", include=_DECISIVE),
            "parent": [parent.id, parent.split.group_by] if parent else None,
        }
        if parent and self._starts_from_nothing:
            query["isolated_first"] = True
        if self.training.stress_weight > 0:
            query["stresses_required"] = True
        text = json.dumps(query, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _collect(self, source: StructureDatabase, selected: Selected, spool: Spool) -> Collected:
        select = self.database.select
        self.progress(f"reading {source.describe()} where {select or 'anything'}")
        if source.slow_because:
            self.progress(f"ASE itself reads the rows, slower: {source.slow_because}")
        return collect_rows(
            source,
            selected,
            self.dataset,
            select=select,
            cutoff=self.training.cutoff,
            spool=spool,
            progress=self.progress,
        )

    def _decide(self, source: StructureDatabase, collected: Collected) -> Outcome:
        """Split, determine reference energies and weights, and reject unusable data."""
        entries = collected.entries
        collected.require_few_rejections(self.dataset.max_rejected_fraction)
        if self.training.stress_weight > 0:
            collected.require_stresses()
        elements = require_configured_elements(entries, self.training.elements)
        repeats = require_consistent_duplicates(
            entries, self.dataset.duplicate_tolerance, source.describe_row
        )
        require_group_key(entries, self.dataset.group_by)
        split = self._split(entries)
        require_elements_in_training(entries, split, elements)
        references = self._references(collected, split, elements)
        weighting = self.training.weighting
        above = self.training.override("weighting", "energy", default="convex_hull")
        if isinstance(weighting, EnergyBased) and above == "convex_hull":
            require_convex_hull(entries, elements)
        return Outcome(
            collected=collected,
            elements=elements,
            repeats=repeats,
            split=split,
            references=references,
            energy_range=require_fitting_energies(
                entries,
                references.corrected(entries),
                automatic=self.dataset.reference_energies == "auto",
            ),
            weighting=weigh_groups(weighting.by_group, entries, split)
            if isinstance(weighting, ByGroup)
            else None,
        )

    def _split(self, entries: Entries) -> Split:
        inherited = self.parent.inheritance(self.dataset.group_by) if self.parent else None
        if self.dataset.split_key is not None:
            return split_by_key(entries, key=self.dataset.split_key, inherited=inherited)
        return split_rows(
            entries,
            fraction=self.training.test_fraction,
            seed=self.dataset.seed,
            inherited=inherited,
        )

    def _references(
        self, collected: Collected, split: Split, elements: Sequence[str]
    ) -> ReferenceEnergies:
        setting = self.dataset.reference_energies
        parent = self.parent.record if self.parent else None
        if setting != "auto":
            references = configured_references(setting, elements)
            if parent and not self._starts_from_nothing:
                require_references_of_parent(references, parent.reference_energies)
            return references
        sources = parent.reference_energy_sources if parent else {}
        undetermined = [e for e, source in sources.items() if source == "undetermined"]
        training = by_composition(collected.entries, split.on("train"))
        references = automatic_references(
            elements,
            inherited=parent.reference_energies if parent else {},
            undetermined=undetermined,
            isolated=[a for a in collected.references if a.row_id not in collected.ions],
            isolated_first=self._starts_from_nothing,
            training=training,
            tolerance=self.dataset.duplicate_tolerance,
        )
        if undetermined:
            known = {e: v for e, v in references.energies.items() if e not in undetermined}
            fitted, determined = fit_references(undetermined, known, training)
            require_determined_references(
                collected.entries, references, fitted if determined else {}
            )
        return references

    @property
    def _starts_from_nothing(self) -> bool:
        """Whether the fit starts from scratch, so that no reference energies are prescribed."""
        return self.training.is_linear or self.training.start_from == "none"

    def _write(self, files: DatasetFiles, spool: Spool, outcome: Outcome) -> DatasetRecord:
        split = outcome.split
        self.progress(f"writing {split.train} train and {split.test} test rows")
        written = write_files(files, spool, outcome)
        record = summarise(
            outcome,
            database=self.database,
            dataset=self.dataset,
            training=self.training,
            parent=self.parent.record if self.parent else None,
            written=written,
        )
        files.record.write_text(record.to_json(), encoding="utf-8")
        return record


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """Make a scratch directory inside `directory`, which is removed on an error if it is new."""
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


def _move(scratch: Path, directory: Path, record: DatasetRecord) -> None:
    """Move the finished files into place; first remove a record of other files."""
    target = DatasetFiles(directory).record
    target.unlink(missing_ok=True)
    for name in (*record.files, target.name):
        (scratch / name).replace(directory / name)


def require_group_key(entries: Entries, group_by: str | None) -> None:
    """Raise `DataError` if no row has the grouping key, which is probably misspelt."""
    if group_by is not None and not entries.groups:
        raise DataError(
            f"no row has the key_value_pair {group_by!r} that dataset.group_by names",
            hint="check its spelling, or set group_by: null",
        )


def require_configured_elements(
    entries: Entries, configured: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the elements of the data, sorted.

    Raise `DataError` if `configured` is a list and the data has other elements: pacemaker ignores
    atoms of elements that its potential lacks, and one that the data lacks shifts its ZBL pairs.
    """
    found = entries.elements()
    if isinstance(configured, str):
        return found
    for element in found:
        if element not in configured:
            raise DataError(
                f"the data holds {element} ({name_rows(entries.rows_with(element))}), "
                "which training.elements lacks",
                hint="add it, set elements: auto, or exclude the rows with database.select",
            )
    absent = [element for element in configured if element not in found]
    if absent:
        examples = "; ".join(f"{e}: {name_rows(entries.rows_with(e)[:3])}" for e in found)
        raise DataError(
            f"training.elements names {', '.join(absent)}, which no structure to train on holds "
            f"(the data has {examples})",
            hint="take it out, set elements: auto, or select rows that hold it",
        )
    return found
