"""What a fit begins with: the dataset and a parent, or what an earlier attempt left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.environment import job_of_this_start
from mlip_job.pipeline.datasets import Dataset, fetch_frames, find_or_build_dataset, frames
from mlip_job.pipeline.decided import attempts_before, decided_dataset
from mlip_job.pipeline.lineage import find_lineage
from mlip_job.pipeline.resume import fetch_checkpoint, start_over
from mlip_job.pipeline.stages import fetch_parent, make_input, refer_to
from mlip_job.registry import TrainingState
from mlip_job.training.basis import potential_section
from mlip_job.training.legs import Leg, legs_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.naming import WorkFiles
    from mlip_job.pipeline.clock import StageClock
    from mlip_job.pipeline.lineage import Lineage
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import AttemptPart, Checkpoint, DatasetReference, Registry


@dataclass(frozen=True)
class Prepared:
    """What a fit begins with.

    Attributes
    ----------
    record
        The dataset, whose frames lie in the work directory.
    training
        What the attempt does; its own part is the last of ``attempts``.
    legs
        What is left to fit, by input file; nothing where only publishing is left.
    """

    record: DatasetRecord
    training: TrainingState
    legs: dict[Path, Leg]


class Preparation:
    """What an attempt does before its fit.

    Parameters
    ----------
    config, generation, registry, observer, clock
        Of the attempt.
    files
        Its work directory, which is made.
    part
        The attempt itself, as the next ones get to know it.
    raise_if_lost
        Raises where another attempt has taken over.
    """

    def __init__(
        self,
        config: JobConfig,
        generation: int,
        registry: Registry,
        files: WorkFiles,
        part: AttemptPart,
        observer: Observer,
        clock: StageClock,
        raise_if_lost: Callable[[], None],
    ) -> None:
        self._config = config
        self._generation = generation
        self._registry = registry
        self._files = files
        self._part = part
        self._observer = observer
        self._clock = clock
        self._raise_if_lost = raise_if_lost

    def run(self, *, fresh: bool) -> Prepared:
        """Bring all that a fit begins with into the work directory; the claim has to be held.

        Parameters
        ----------
        fresh
            Remove what attempts of other jobs left, and start over.
        """
        if fresh:
            start_over(self._registry, self._generation)
        self._files.directory.mkdir(parents=True)
        try:
            with self._clock.stage("fetch"):
                checkpoint = fetch_checkpoint(
                    self._config, self._generation, self._registry, self._files, self._observer
                )
            if checkpoint is None:
                return self._begin()
            return self._go_on(checkpoint)
        except BaseException:
            # Nothing was trained yet: an attempt that failed here leaves nothing worth keeping.
            shutil.rmtree(self._files.directory, ignore_errors=True)
            raise

    def _begin(self) -> Prepared:
        """Export the dataset and start from the parent, or from nothing."""
        training = self._config.training
        lineage = find_lineage(self._registry, training, self._generation)
        agreed = self._registry.agreed_dataset(self._generation) or self._decided()
        with self._clock.stage("fetch" if agreed else "export"):
            dataset = agreed or self._find_or_build_dataset(lineage)
            record = self._record_of(dataset)
        with self._clock.stage("fetch"):
            parent = fetch_parent(
                training,
                self._files,
                record.elements,
                self._registry,
                lineage.potential,
                self._observer,
            )
        content = make_input(training, self._files, record, parent)
        self._raise_if_lost()
        with self._clock.stage("publish_dataset"):
            agreed = self._agree_on(dataset, lineage)
        attempts = (*attempts_before(self._generation, self._registry, agreed), self._part)
        state = TrainingState(
            attempts=attempts,
            started=attempts[0].started,
            config=self._config.model_dump(mode="json"),
            dataset=agreed,
            parent=parent,
            elements=record.elements,
            job=job_of_this_start(),
        )
        return Prepared(record, state, {self._files.input_yaml: Leg(content)})

    def _go_on(self, checkpoint: Checkpoint) -> Prepared:
        """Take up what an earlier attempt left: its dataset, its parent, its potential."""
        before = checkpoint.training
        record = self._registry.dataset_record(before.dataset)
        content = make_input(self._config.training, self._files, record, before.parent)
        legs = legs_from(
            checkpoint.position,
            content,
            potential_section(self._config.training, record.elements),
            self._files.checkpoint_potential.name,
        )
        if checkpoint.position.finished:
            legs = ()
        state = before.model_copy(
            update={
                "attempts": (*before.attempts, self._part),
                "config": self._config.model_dump(mode="json"),
            }
        )
        inputs = {self._files.leg_input(n): leg for n, leg in enumerate(legs, start=1)}
        return Prepared(record, state, inputs)

    def _find_or_build_dataset(self, lineage: Lineage) -> Dataset:
        return find_or_build_dataset(
            self._config,
            self._generation,
            self._registry,
            lineage.dataset,
            self._files.dataset.directory,
            self._observer,
            wanted=frames,
        )

    def _record_of(self, dataset: Dataset | DatasetReference) -> DatasetRecord:
        """Return its record; its frames are in the work directory then."""
        if isinstance(dataset, Dataset):
            return dataset.record
        record = self._registry.dataset_record(dataset)
        fetch_frames(record, self._registry, self._files)
        return record

    def _agree_on(self, dataset: Dataset | DatasetReference, lineage: Lineage) -> DatasetReference:
        """Return how a dataset is named, which is in the store then."""
        if isinstance(dataset, Dataset):
            sha256 = dataset.publish(self._registry, self._files.dataset.directory)
            dataset = refer_to(dataset.record, sha256, lineage.dataset)
        self._registry.agree_on_dataset(self._generation, dataset)
        return dataset

    def _decided(self) -> DatasetReference | None:
        dataset = decided_dataset(self._config, self._generation, self._registry)
        if dataset is not None:
            self._observer.message(
                f"training on dataset {dataset.id}, decided before: {dataset.train} train and "
                f"{dataset.test} test rows; --fresh takes the database as it is now"
            )
        return dataset
