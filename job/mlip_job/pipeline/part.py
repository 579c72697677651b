"""A part of a run, in a job of its own: the dataset, or all up to the end of the fit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.disk import reported
from mlip_job.naming import generation_name
from mlip_job.pipeline.attempt import Attempt
from mlip_job.pipeline.clock import StageClock
from mlip_job.pipeline.ensemble import Member, config_of, registry_of
from mlip_job.pipeline.preflight import check_before_dataset, check_before_fit
from mlip_job.registry import Registry
from mlip_job.registry.members import require_one_kind

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import DatasetReference
    from mlip_job.store.base import ObjectStore
    from mlip_job.training.signals import StopRequest


class Until(StrEnum):
    """Where a run ends before its generation is published; the next run goes on from there."""

    DATASET = "dataset"
    FIT = "fit"


@dataclass(frozen=True)
class Reached:
    """What a part of a run ended with.

    Attributes
    ----------
    generation, until
        Which part of what.
    dataset
        What the generation is trained on.
    """

    generation: int
    until: Until
    dataset: DatasetReference

    def __str__(self) -> str:
        """Say it in one line."""
        name = generation_name(self.generation)
        if self.until is Until.FIT:
            return f"{name} is fitted; evaluation and publishing are left"
        sizes = f"{self.dataset.train} train and {self.dataset.test} test rows"
        return f"{name} is to be trained on dataset {self.dataset.id}: {sizes}"


def run_part(
    config: JobConfig,
    generation: int,
    until: Until,
    *,
    store: ObjectStore,
    observer: Observer,
    stop: StopRequest,
    fresh: bool = False,
    member: Member | None = None,
    clock: StageClock | None = None,
) -> Reached | None:
    """Run a generation up to its dataset, or to the end of its fit; see `run_generation`.

    What was reached before is left as it is.

    Returns
    -------
    Reached or None
        None where the generation, or the member, is published already.

    Raises
    ------
    MlipJobError
        Of the kind that says what went wrong; see `mlip_job.errors`.
    """
    clock = clock or StageClock()
    registry = Registry(store, config.family)
    if until is Until.FIT and registry.find(generation) is None:
        size = member.of if member is not None else None
        require_one_kind(registry, generation, size, fresh=fresh)
    if member is not None:
        registry = registry_of(registry, config, member)
        config = config_of(config, member.number)
    if registry.find(generation) is not None or registry.find_own(generation) is not None:
        return None
    with clock.stage("checks"):
        if until is Until.DATASET:
            check_before_dataset(config, generation, registry)
        else:
            check_before_fit(config, generation, registry, fresh=fresh)
    attempt = Attempt(config, generation, registry, observer, stop, clock)
    with attempt.claim():
        if registry.find_own(generation) is not None:
            return None
        with reported(Path(config.work_dir)):
            do = attempt.decide_dataset if until is Until.DATASET else attempt.fit
            training = do(fresh=fresh)
    reached = Reached(generation, until, training.dataset)
    observer.message(str(reached))
    return reached
