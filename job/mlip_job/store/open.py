"""From a StorageConfig to a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.store.base import no_meter
from mlip_job.store.directory import DirectoryStore
from mlip_job.store.patient import PatientStore

if TYPE_CHECKING:
    from mlip_job.config.job import StorageConfig
    from mlip_job.store.base import Meter, ObjectStore


def open_store(
    config: StorageConfig, *, patience: float = 0, meter: Meter = no_meter
) -> ObjectStore:
    """Return the store at ``storage.url``: ``s3://bucket/prefix``, or a directory.

    Parameters
    ----------
    config
        Where it is.
    patience
        Seconds for which a call that fails for now is repeated. A person at a terminal has none.
    meter
        Is told how far uploads to S3 and downloads from there are.

    Raises
    ------
    ConfigError
        If the URL is of another kind.
    """
    store = _open(config, meter)
    return PatientStore(store, patience) if patience > 0 else store


def _open(config: StorageConfig, meter: Meter) -> ObjectStore:
    scheme, separator, rest = config.url.partition("://")
    if not separator:
        return DirectoryStore(Path(config.url))
    if scheme == "file" and rest.startswith("/"):
        return DirectoryStore(Path(rest))
    if scheme == "s3" and rest.partition("/")[0]:
        from mlip_job.store.s3 import S3Store  # noqa: PLC0415 - boto3 takes half a second

        return S3Store(config, meter)
    raise ConfigError(
        f"storage.url {config.url!r} is no store", hint="give a directory or s3://bucket/prefix"
    )
