"""From a name to a scheduler."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import Scheduler

# Imported only when it is asked for: a client library takes its time.
SCHEDULERS: Mapping[str, str] = {
    "kubernetes": "KubernetesScheduler",
    "slurm": "SlurmScheduler",
    "local": "LocalScheduler",
}


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
        If there is none of this name, or it needs a package that is not installed.
    """
    name = name or config.submit.scheduler
    if name not in SCHEDULERS:
        raise ConfigError(f"there is no scheduler {name!r}; there are {', '.join(SCHEDULERS)}")
    try:
        module = importlib.import_module(f"mlip_job.schedulers.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the scheduler {name} needs {error.name}", hint=f"pip install 'mlip-job[{name}]'"
        ) from None
    return cast("Scheduler", getattr(module, SCHEDULERS[name])(config))
