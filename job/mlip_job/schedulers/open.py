"""From a name to a scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import Scheduler

SCHEDULERS = ("kubernetes", "slurm", "local")


def open_scheduler(config: JobConfig, name: str | None = None) -> Scheduler:
    """Return a scheduler for a family.

    Parameters
    ----------
    config
        Of the family; ``submit`` has the scheduler's settings.
    name
        Which one, if not ``submit.scheduler``.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    name = name or config.submit.scheduler
    # Imported only when it is asked for: a client library takes its time.
    if name == "kubernetes":
        from mlip_job.schedulers.kubernetes.scheduler import (  # noqa: PLC0415
            KubernetesScheduler,
        )

        return KubernetesScheduler(config.submit.kubernetes)
    if name == "slurm":
        from mlip_job.schedulers.slurm import SlurmScheduler  # noqa: PLC0415

        return SlurmScheduler(config)
    if name == "local":
        from mlip_job.schedulers.local import LocalScheduler  # noqa: PLC0415

        return LocalScheduler(config)
    raise ConfigError(f"there is no scheduler {name!r}; there are {', '.join(SCHEDULERS)}")
