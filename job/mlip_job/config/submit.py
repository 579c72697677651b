"""How a run is submitted; nothing here changes the potential."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlip_job.config.base import Part, Positive
from mlip_job.config.kubernetes import KubernetesConfig
from mlip_job.config.slurm import SlurmConfig


class SubmitConfig(Part):
    """Where ``mlip-job submit`` sends a run."""

    scheduler: Literal["kubernetes", "slurm", "local"] = Field(
        "local", description="kubernetes, slurm or local (a process of this machine)."
    )
    poll_interval: Positive = Field(
        15.0, description="s. How often `submit --wait` and `logs -f` look how a job is doing."
    )
    max_resubmits: int = Field(
        20,
        ge=0,
        description="How often `submit --wait` submits a job again that ended by no fault of its "
        "own and that the scheduler does not start again.",
    )
    slurm: SlurmConfig = SlurmConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
