"""What a fit begins with: the dataset and a parent, or what an earlier attempt left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.disk import make_private_directory
from mlip_job.naming import generation_name
from mlip_job.pipeline.datasets import (
    Dataset,
    find_or_build_dataset,
    make_frames,
    without_new_data,
)
from mlip_job.pipeline.fit_data import FitData, make_fit_data
from mlip_job.pipeline.lineage import find_lineage, functions_of
from mlip_job.pipeline.resume import fetch_checkpoint, start_over
from mlip_job.pipeline.sizes import data_size
from mlip_job.pipeline.stages import fetch_parent, make_input, refer_to
from mlip_job.registry import TrainingState
from mlip_job.runtime.environment import job_of_this_start
from mlip_job.training.pacemaker.basis import potential_section
from mlip_job.training.pacemaker.input import Leg, legs_from
from mlip_job.training.size import choose_size, with_size

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.pipeline.context import AttemptContext
    from mlip_job.pipeline.datasets import Fetch
    from mlip_job.pipeline.lineage import Lineage
    from mlip_job.registry import AttemptPart, Checkpoint, DatasetReference
    from mlip_job.training.size import BasisSize


@dataclass(frozen=True)
class Prepared:
    """What a fit begins with.

    Attributes
    ----------
    record
        The dataset, whose frames lie in the work directory.
    given
        What of it the fit is given.
    training
        What the attempt does; its own part is the last of ``attempts``.
    legs
        What is left to fit, by input file; nothing where only publishing is left.
    """

    record: DatasetRecord
    given: FitData
    training: TrainingState
    legs: dict[Path, Leg]


class Preparation:
    """What an attempt does before its fit.

    Parameters
    ----------
    context
        Of which attempt; its work directory is made.
    part
        The attempt itself, as the next ones get to know it.
    """

    def __init__(self, context: AttemptContext, part: AttemptPart) -> None:
        self._context = context
        self._part = part

    def run(self, *, fresh: bool) -> Prepared:
        """Bring all that a fit begins with into the work directory; the claim has to be held.

        Parameters
        ----------
        fresh
            Remove what attempts of other jobs left, and start over.
        """
        if fresh:
            start_over(self._context.registry, self._context.generation)
        make_private_directory(self._context.files.directory.parent)
        self._context.files.directory.mkdir(mode=0o700)
        try:
            with self._context.clock.stage("fetch"):
                found = fetch_checkpoint(
                    self._context.config,
                    self._context.generation,
                    self._context.registry,
                    self._context.files,
                    self._context.observer,
                )
            return self._begin() if found is None else self._go_on(*found)
        except BaseException:
            # Nothing was trained yet: an attempt that failed here leaves nothing worth keeping.
            shutil.rmtree(self._context.files.directory, ignore_errors=True)
            raise

    def _begin(self) -> Prepared:
        """Export the dataset and start from the parent, or from nothing."""
        asked = self._context.config.training
        lineage = find_lineage(self._context.registry, asked, self._context.generation)
        if asked.is_linear and asked.start_from == "previous" and lineage.dataset is not None:
            before = generation_name(lineage.dataset.generation)
            self._context.observer.message(
                "training.max_iter is 0: a linear fit is made anew on all data, and does not start "
                f"from {before}"
            )
        agreed = self._context.registry.agreed_dataset(self._context.generation)
        with self._context.clock.stage("fetch" if agreed else "export"):
            dataset = agreed or self._find_or_build_dataset(lineage)
            record = self._record_of(dataset)
        if (warning := without_new_data(record, lineage.dataset)) is not None:
            self._context.observer.message(warning)
        size = self._choose_size(record, lineage)
        training = with_size(asked, size)
        with self._context.clock.stage("fetch"):
            parent = fetch_parent(
                training,
                self._context.files,
                record.elements,
                self._context.registry,
                lineage.potential,
                self._context.observer,
            )
        given = self._give(record)
        content = make_input(training, self._context.files, record, given, parent)
        self._context.raise_if_lost()
        with self._context.clock.stage("publish_dataset"):
            agreed = self._agree_on(dataset, lineage)
        state = TrainingState(
            attempts=(self._part,),
            started=self._part.started,
            config=self._context.config.model_dump(mode="json"),
            dataset=agreed,
            parent=parent,
            elements=record.elements,
            basis=size,
            job=job_of_this_start(),
        )
        return Prepared(record, given, state, {self._context.files.input_yaml: Leg(content)})

    def _go_on(self, checkpoint: Checkpoint, record: DatasetRecord) -> Prepared:
        """Take up what an earlier attempt left: its dataset, its parent, its potential."""
        before = checkpoint.training
        training = with_size(self._context.config.training, before.basis)
        given = self._give(record)
        content = make_input(training, self._context.files, record, given, before.parent)
        legs = legs_from(
            checkpoint.position,
            content,
            potential_section(training, record.elements),
            self._context.files.checkpoint_potential.name,
        )
        if checkpoint.position.finished:
            legs = ()
        state = before.model_copy(
            update={
                "attempts": (*before.attempts, self._part),
                "config": self._context.config.model_dump(mode="json"),
            }
        )
        inputs = {self._context.files.leg_input(n): leg for n, leg in enumerate(legs, start=1)}
        return Prepared(record, given, state, inputs)

    def _give(self, record: DatasetRecord) -> FitData:
        given = make_fit_data(
            self._context.config, record, self._context.registry, self._context.files
        )
        if given.validation:
            fitted = record.counts.train - len(given.validation)
            self._context.observer.message(
                f"fitting to {fitted} of {record.counts.train} training structures; the other "
                f"{len(given.validation)} choose the best iteration"
            )
        for note in given.notes:
            self._context.observer.message(f"note: {note}")
        return given

    @property
    def _make_frames(self) -> Fetch:
        return make_frames(self._context.config.dataset.frame_shard_size)

    def _choose_size(self, record: DatasetRecord, lineage: Lineage) -> BasisSize:
        """Decide how large the basis is, and say so."""
        parent = functions_of(lineage.potential)
        size = choose_size(self._context.config.training, data_size(record), parent)
        if size.chosen != "configured":
            self._context.observer.message(str(size))
        if size.warning is not None:
            self._context.observer.message(f"warning: {size.warning}")
        return size

    def _find_or_build_dataset(self, lineage: Lineage) -> Dataset:
        return find_or_build_dataset(
            self._context.config,
            self._context.generation,
            self._context.registry,
            lineage.dataset,
            self._context.files.dataset.directory,
            self._context.observer,
            fetch=self._make_frames,
        )

    def _record_of(self, dataset: Dataset | DatasetReference) -> DatasetRecord:
        """Return its record; its frames are in the work directory then."""
        if isinstance(dataset, Dataset):
            return dataset.record
        directory = self._context.files.dataset.directory
        directory.mkdir()
        record = self._context.registry.dataset_record(dataset)
        return self._make_frames(self._context.registry, record, directory)

    def _agree_on(self, dataset: Dataset | DatasetReference, lineage: Lineage) -> DatasetReference:
        """Return how a dataset is named, which is in the store then."""
        if isinstance(dataset, Dataset):
            sha256 = dataset.publish(self._context.registry, self._context.files.dataset.directory)
            dataset = refer_to(dataset.record, sha256, lineage.dataset)
        self._context.registry.agree_on_dataset(self._context.generation, dataset)
        return dataset
