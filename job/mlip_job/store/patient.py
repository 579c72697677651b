"""A store that repeats what fails for now."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mlip_job.retries import retrying
from mlip_job.store.probe import check_conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlip_job.store.base import ObjectInfo, ObjectStore

Result = TypeVar("Result")


class PatientStore:
    """Another store, each of whose calls is repeated while it fails for reasons that may pass.

    Every call of a store is safe to repeat: see `ObjectStore` for conditional writes.

    Parameters
    ----------
    store
        The store itself.
    timeout
        Seconds after which a call is not tried again.
    """

    def __init__(self, store: ObjectStore, timeout: float) -> None:
        self._store = store
        self._timeout = timeout

    @property
    def url(self) -> str:
        """See `ObjectStore.url`."""
        return self._store.url

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return self._repeat(lambda: self._store.get(key))

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_versioned`."""
        return self._repeat(lambda: self._store.get_versioned(key))

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        return self._repeat(lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        yield from self._repeat(lambda: [*self._store.list(prefix)])

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """See `ObjectStore.list_prefixes`."""
        yield from self._repeat(lambda: [*self._store.list_prefixes(prefix)])

    def list_named(self, prefix: str, name: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list_named`."""
        yield from self._repeat(lambda: [*self._store.list_named(prefix, name)])

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        self._repeat(lambda: self._store.put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put_if_absent`."""
        self._repeat(lambda: self._store.put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        """See `ObjectStore.put_if_match`."""
        self._repeat(lambda: self._store.put_if_match(key, data, version))

    def upload(self, path: Path, key: str, *, if_absent: bool = False) -> str:
        """See `ObjectStore.upload`."""
        return self._repeat(lambda: self._store.upload(path, key, if_absent=if_absent))

    def download(self, key: str, path: Path) -> str:
        """See `ObjectStore.download`."""
        return self._repeat(lambda: self._store.download(key, path))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        self._repeat(lambda: self._store.delete(key))

    def leftovers(self, older_than_s: float) -> Iterator[str]:
        """See `ObjectStore.leftovers`."""
        yield from self._repeat(lambda: [*self._store.leftovers(older_than_s)])

    def remove_leftover(self, name: str) -> None:
        """See `ObjectStore.remove_leftover`."""
        self._repeat(lambda: self._store.remove_leftover(name))

    def check(self) -> None:
        """See `ObjectStore.check`."""
        check_conditions(self)

    def _repeat(self, call: Callable[[], Result]) -> Result:
        return retrying(call, self._timeout)
