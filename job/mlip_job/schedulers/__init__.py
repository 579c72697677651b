"""Submit jobs: to Kubernetes, to Slurm, or to this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import Scheduler

SCHEDULERS = ("kubernetes", "slurm", "local")


def open_scheduler(config: JobConfig, name: str | None = None) -> Scheduler:
    """Return the scheduler of a name, else of ``submit.scheduler``; only its module is imported.

    Raise a ConfigError if there is none of this name.
    """
    match name or config.submit.scheduler:
        case "kubernetes":
            from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler  # noqa: PLC0415

            return KubernetesScheduler(config.submit.kubernetes)
        case "slurm":
            from mlip_job.schedulers.slurm.scheduler import SlurmScheduler  # noqa: PLC0415

            return SlurmScheduler(config)
        case "local":
            from mlip_job.schedulers.local import LocalScheduler  # noqa: PLC0415

            return LocalScheduler(config)
        case unknown:
            raise ConfigError(f"unknown scheduler {unknown!r}; choose {', '.join(SCHEDULERS)}")
