"""The contract that every object store fulfils."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Meter = Callable[[str, int, int], None]
    """Is told key, bytes done and bytes in all while an object moves; equal at the end."""


def no_meter(_key: str, _done: int, _total: int) -> None:
    """Let nobody know."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says of an object without reading it.

    Attributes
    ----------
    key
        Path below the store's root, with ``/`` between its parts.
    size
        Bytes.
    version
        Opaque token that changes whenever the content does; pass it to `put_if_match`.
        Listings leave it empty where reading it would cost a request per object.
    modified
        Seconds since the epoch, by the store's clock.
    """

    key: str
    size: int
    version: str
    modified: float


class ObjectStore(Protocol):
    """A flat map from keys to bytes.

    All methods raise `StoreError` when the store can't be reached or refuses the call; it is
    marked as transient where the same call may work soon. A write is visible whole or not at all,
    and durable when the method returns.

    Every call may be repeated. Where the answer to a conditional write was lost, the store refuses
    the repetition, since it holds the first copy; so a refused write whose content is there already
    has succeeded. Callers write something of their own (an attempt's random id, a count) into
    whatever they write on a condition: there "the same content" means "ours".
    """

    @property
    def url(self) -> str:
        """Where the store is, without secrets."""

    def get(self, key: str) -> bytes:
        """Return an object's bytes; raise `ObjectNotFoundError` where there is none."""

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and the version they belong to."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None where there is none."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with `prefix`, in the order of their keys."""

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """Yield the distinct parts up to the next ``/`` below `prefix`, sorted, without it."""

    def list_named(self, prefix: str, name: str) -> Iterator[ObjectInfo]:
        """Yield the object of this name in each folder right below `prefix`, in any order.

        A directory looks at each folder; S3 lists all that is below `prefix`, a thousand objects
        per request.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""

    def put_if_absent(self, key: str, data: bytes) -> None:
        """Create an object; raise `ObjectExistsError` where there is one already."""

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        """Replace that version of an object; raise `ObjectChangedError` for any other."""

    def upload(self, path: Path, key: str, *, if_absent: bool = False) -> str:
        """Stream a file into an object and return its sha256, computed on the way.

        Raises
        ------
        ObjectExistsError
            If `if_absent` and the key is taken.
        """

    def download(self, key: str, path: Path) -> str:
        """Stream an object into a file, whole or not at all, and return its sha256.

        Raises
        ------
        DiskError, ConfigError
            If the file can't be written, the former where the disk is full.
        """

    def delete(self, key: str) -> None:
        """Remove an object; none there is no error."""

    def leftovers(self, older_than_s: float) -> Iterator[str]:
        """Yield names of what killed writers left: no objects, but they take up room."""

    def remove_leftover(self, name: str) -> None:
        """Remove one of them."""

    def check(self) -> None:
        """Raise a `StoreError` with the remedy unless conditional writes work here.

        Writes and removes a probe object of a random name under ``.mlip-job-probe/``.
        """
