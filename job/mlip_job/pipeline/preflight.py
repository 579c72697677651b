"""What is looked at before a run does anything: an error is better found before the export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.pipeline.lineage import find_lineage
from mlip_job.runtime.environment import job_of_earlier_starts
from mlip_job.training.pacemaker.programs import find_program, require_gpu_device

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.registry import Registry


def check_before_fit(
    config: JobConfig, generation: int, registry: Registry, *, fresh: bool
) -> None:
    """Fail where a generation could not be trained and published.

    A fit that has ended is only to be published, which needs no GPU.
    """
    registry.agreed_dataset(generation)  # a conflict is better found before the claim
    find_lineage(registry, config.training, generation)
    registry.store.check()
    find_program("pacemaker")
    find_program("pace_yaml2yace")
    if config.evaluation.active_set_kind is not None:
        find_program("pace_activeset")
    required = config.training.require_gpu and not config.training.is_linear
    if required and not _is_fitted(registry, generation, fresh=fresh):
        require_gpu_device()


def _is_fitted(registry: Registry, generation: int, *, fresh: bool) -> bool:
    """Tell whether a fit has ended that is not started over."""
    own = job_of_earlier_starts()
    return any(
        checkpoint.position.finished and (not fresh or checkpoint.training.was_begun_by(own))
        for checkpoint in registry.checkpoints(generation).found()
    )
