"""Open the store of a StorageConfig, with optional retries."""

from __future__ import annotations

from inspect import isgenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlip_job.errors import ConfigError
from mlip_job.retry import retrying
from mlip_job.store.base import check_conditions, no_meter
from mlip_job.store.directory import DirectoryStore

if TYPE_CHECKING:
    from mlip_job.config.job import StorageConfig
    from mlip_job.store.base import Meter, ObjectStore


def open_store(
    config: StorageConfig, *, patience: float = 0, meter: Meter = no_meter
) -> ObjectStore:
    """Return the store at ``storage.url``: ``s3://bucket/prefix``, or a directory.

    A call that fails with a transient error is retried for `patience` seconds. `meter` receives the
    progress of uploads to S3 and downloads from there. Another kind of URL is a `ConfigError`.
    """
    store = _open(config, meter)
    return cast("ObjectStore", RetryingStore(store, patience)) if patience > 0 else store


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


class RetryingStore:
    """Another store, each of whose calls is retried while it fails with a transient error.

    Every call of a store is safe to repeat: see `ObjectStore` for conditional writes. A listing
    is complete before its first item is returned.
    """

    def __init__(self, store: ObjectStore, timeout: float) -> None:
        self._store = store
        self._timeout = timeout

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the store, wrapped where it is a method."""
        member = getattr(self._store, name)
        if not callable(member):
            return member

        def once(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            result = member(*arguments, **options)
            return iter([*result]) if isgenerator(result) else result

        return lambda *arguments, **options: retrying(
            lambda: once(arguments, options), self._timeout
        )

    def check(self) -> None:
        """See `ObjectStore.check`; retry each of its calls, not the whole."""
        check_conditions(cast("ObjectStore", self))
