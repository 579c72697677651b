"""The contract of every object store, and what all of them share."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlip_job.disk import cant_write
from mlip_job.errors import ObjectChangedError, ObjectExistsError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Meter = Callable[[str, int, int], None]
    """Receives the key, the bytes transferred and the total; equal at the end."""

_PROBE_FOLDER = ".mlip-job-probe"
_CONDITIONS_HINT = (
    "use a store that honours conditional writes (AWS S3, a recent MinIO, Ceph, a directory)"
)


def no_meter(_key: str, _done: int, _total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class ObjectInfo:
    """Metadata of an object.

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
    has succeeded. Callers include something unique (an attempt's random id, a count) in each
    conditional write, so that "the same content" means "ours".
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
        """Remove an object; a missing one is no error."""

    def leftovers(self, older_than_s: float) -> Iterator[str]:
        """Yield names of partial writes of killed writers: no objects, but they use space."""

    def remove_leftover(self, name: str) -> None:
        """Remove one partial write."""

    def check(self) -> None:
        """Raise a `StoreError` with the remedy unless conditional writes work here.

        Writes and removes a probe object of a random name under ``.mlip-job-probe/``.
        """


def save(blocks: Iterator[bytes], path: Path) -> str:
    """Write blocks into a file, whole or not at all, and return their sha256.

    Raises
    ------
    DiskError
        If the disk is full.
    ConfigError
        If the file can't be written otherwise.
    """
    digest = hashlib.sha256()
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as target:
            for block in blocks:
                digest.update(block)
                target.write(block)
        temporary.replace(path)
    except OSError as error:
        raise cant_write(path.parent, error, hint="choose another directory") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return digest.hexdigest()


def check_conditions(store: ObjectStore) -> None:
    """Write a probe object, overwrite it in allowed and forbidden ways, and remove it.

    Raises
    ------
    StoreError
        If the store can't be written to, ignores a condition, or refuses one that is met.
    """
    folder = f"{_PROBE_FOLDER}/{secrets.token_hex(8)}"
    key, absent = f"{folder}/object", f"{folder}/absent"
    store.put_if_absent(key, b"first")
    try:
        _require_refusal(
            store,
            "If-None-Match (create only)",
            ObjectExistsError,
            lambda: store.put_if_absent(key, b"second"),
        )
        _require_refusal(
            store,
            "If-Match (compare and swap)",
            ObjectChangedError,
            lambda: store.put_if_match(key, b"third", '"0123456789abcdef0123456789abcdef"'),
        )
        _, version = store.get_versioned(key)
        _require_acceptance(store, version, lambda: store.put_if_match(key, b"fourth", version))
        _require_refusal(
            store,
            "If-Match on an object that does not exist",
            ObjectChangedError,
            lambda: store.put_if_match(absent, b"fifth", version),
        )
    finally:
        store.delete(key)
        store.delete(absent)


def _require_acceptance(store: ObjectStore, version: str, write: Callable[[], None]) -> None:
    try:
        write()
    except ObjectChangedError:
        weak = version.startswith("W/")
        raise StoreError(
            f"{store.url} refuses If-Match (compare and swap) with the current version of an "
            "object: heartbeats and the latest generation could not be written",
            hint="its ETags are weak: switch off compression in the proxy before the store"
            if weak
            else _CONDITIONS_HINT,
        ) from None


def _require_refusal(
    store: ObjectStore, condition: str, refusal: type[StoreError], write: Callable[[], None]
) -> None:
    try:
        write()
    except refusal:
        return
    raise StoreError(
        f"{store.url} ignores the condition {condition} on writes: two jobs could overwrite each "
        "other's generation",
        hint=_CONDITIONS_HINT,
    )
