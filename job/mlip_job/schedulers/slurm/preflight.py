"""What can be known to be wrong with a job before it is submitted."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.schedulers.slurm.env_file import check_env_file

if TYPE_CHECKING:
    from mlip_job.config import JobConfig

_SECRETS = ("MLIP_JOB_DATABASE_PASSWORD", "PGPASSWORD", "MYSQL_PWD", "AWS_SECRET_ACCESS_KEY")

_log = logging.getLogger(__name__)


def check_files(config: JobConfig) -> None:
    """Check the files that a job will need, as far as they are seen from here.

    Raises
    ------
    ConfigError
        Naming the setting.
    """
    slurm = config.submit.slurm
    if "://" not in config.database.url and not Path(config.database.url).is_file():
        raise ConfigError(f"database.url: there is no {config.database.url}")
    if slurm.image is not None:
        if "://" not in slurm.image and not Path(slurm.image).exists():
            raise ConfigError(
                f"submit.slurm.image: there is no {slurm.image}",
                hint="build or copy it there, or leave image out to run without a container",
            )
        _make_store(config)
    if slurm.env_file is not None:
        check_env_file(slurm.env_file)
    elif found := [name for name in _SECRETS if name in os.environ]:
        _log.warning(
            "note: a job does not get %s from here; submit.slurm.env_file passes secrets on",
            ", ".join(found),
        )


def _make_store(config: JobConfig) -> None:
    """Make the directory that the container is to show: it does not start without."""
    if "://" not in config.storage.url:
        try:
            Path(config.storage.url).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"storage.url: can't make {config.storage.url}: {error.strerror}"
            ) from None
