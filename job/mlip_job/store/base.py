"""The interface of an object store, safe names of objects, and the check of conditional writes."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, BinaryIO, Protocol

from pydantic import AfterValidator, StringConstraints

from mlip_job.errors import IntegrityError, ObjectChangedError, ObjectExistsError, StoreError
from mlip_job.paths import cant_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydantic import ValidationError

    Meter = Callable[[str, int, int], None]
    """Receives the key, the bytes transferred and the total; equal at the end."""

PROBES = ".mlip-job-probe"
"""Folder of objects that are written only to learn about the store, and removed at once."""

CALLS_AT_ONCE = 16
"""Calls that may be made at the same time; S3's client keeps as many connections."""

_CONDITIONS_HINT = (
    "use a store that honours conditional writes (AWS S3, a recent MinIO, Ceph, a directory)"
)
_LONGEST_KEY = 900  # bytes; S3 takes 1024 with the prefix of the URL
_LONGEST_PART = 255  # bytes; of a file's name on Linux
_LONGEST_SHOWN = 80


def no_meter(_key: str, _done: int, _total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class ObjectInfo:
    """Metadata of an object: ``size`` in bytes, ``modified`` in s since the epoch by its store."""

    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """A flat map from keys to bytes; keys are paths with ``/`` between their parts.

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
        """Return an object's bytes and their version, a token that `put_if_match` takes."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of an object; None if it does not exist."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with `prefix`, in the order of their keys."""

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """Yield the distinct parts up to the next ``/`` below `prefix`, sorted, without it."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""

    def put_if_absent(self, key: str, data: bytes) -> None:
        """Create an object; raise `ObjectExistsError` where there is one already."""

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        """Replace that version of an object; raise `ObjectChangedError` for any other."""

    def upload(self, path: Path, key: str) -> str:
        """Stream a file into an object and return its sha256, computed on the way."""

    def download(self, key: str, path: Path) -> str:
        """Stream an object into a file, whole or not at all, and return its sha256.

        Raises `DiskError` or `ConfigError` if the file can't be written, the former where the disk
        is full.
        """

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""

    def leftovers(self, older_than_s: float) -> Iterator[str]:
        """Yield names of partial writes of killed writers: no objects, but they use space."""

    def remove_leftover(self, name: str) -> None:
        """Remove one partial write."""

    def check(self) -> None:
        """Raise a `StoreError` with the remedy unless conditional writes work here."""


def check_conditions(store: ObjectStore) -> None:
    """Write a probe object, overwrite it in allowed and forbidden ways, and remove it."""
    folder = f"{PROBES}/{secrets.token_hex(8)}"
    key, absent = f"{folder}/object", f"{folder}/absent"

    def require_refusal(condition: str, kind: type[StoreError], write: Callable[[], None]) -> None:
        with suppress(kind):
            write()
            raise StoreError(
                f"{store.url} ignores the condition {condition} on writes: two jobs could "
                "overwrite each other's generation",
                hint=_CONDITIONS_HINT,
            )

    store.put_if_absent(key, b"first")
    try:
        require_refusal(
            "If-None-Match (create only)",
            ObjectExistsError,
            lambda: store.put_if_absent(key, b"second"),
        )
        require_refusal(
            "If-Match (compare and swap)",
            ObjectChangedError,
            lambda: store.put_if_match(key, b"third", '"0123456789abcdef0123456789abcdef"'),
        )
        _, version = store.get_versioned(key)
        _require_swap(store, key, version)
        require_refusal(
            "If-Match on an object that does not exist",
            ObjectChangedError,
            lambda: store.put_if_match(absent, b"fifth", version),
        )
    finally:
        store.delete(key)
        store.delete(absent)


def _require_swap(store: ObjectStore, key: str, version: str) -> None:
    try:
        store.put_if_match(key, b"fourth", version)
    except ObjectChangedError:
        weak = version.startswith("W/")
        raise StoreError(
            f"{store.url} refuses If-Match (compare and swap) with the current version of an "
            "object: heartbeats and the latest generation could not be written",
            hint="its ETags are weak: switch off compression in the proxy before the store"
            if weak
            else _CONDITIONS_HINT,
        ) from None


class HashedFile:
    """A file that is written from start to end, and hashed on the way."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, block: bytes) -> int:
        """Append a block; raise the user's error if the disk can't take it."""
        self._digest.update(block)
        try:
            return self._file.write(block)
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def sha256(self) -> str:
        """Return the hash of what was written."""
        return self._digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[HashedFile]:
    """Yield a file to write to; it appears under `path` only if the block succeeds."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield HashedFile(path, file)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _unwritable(path: Path, error: OSError) -> Exception:
    return cant_write(path.parent, error, hint="choose another directory")


def check_key(key: str) -> str:
    """Return `key` if it is relative and safe; raise `StoreError` otherwise."""
    if not is_relative(key):
        raise StoreError(f"{shown(key)} is no key of an object")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix`, the start of keys; raise `StoreError` if a part of it leads elsewhere."""
    if prefix.startswith("/") or any(part in (".", "..") for part in prefix.split("/")):
        raise StoreError(f"{shown(prefix)} is no prefix of keys")
    return prefix


def is_relative(name: str) -> bool:
    """Return whether a name is printable, of bounded length, and stays below its folder."""
    if not name.isprintable() or "\\" in name or len(name.encode()) > _LONGEST_KEY:
        return False
    return not any(
        part in ("", ".", "..") or part.startswith(".tmp-") or len(part.encode()) > _LONGEST_PART
        for part in name.split("/")
    )


def shown(name: object) -> str:
    """Return a name that may be anything in printable form: escaped, and cut short."""
    text = ascii(name)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def unreadable(what: str, error: ValidationError, *, hint: str | None = None) -> IntegrityError:
    """Return the error for a stored object whose content is invalid; it names the first problem.

    `what` names the object by its key.
    """
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    place = [*first["loc"]]
    if place[-1:] == ["[key]"]:
        del place[-2:]  # the message names the key
    where = ".".join(str(part) if _is_plain(part) else shown(part) for part in place)
    more = f" (and {len(others)} more)" if others else ""
    said = first["msg"].removeprefix("Value error, ")
    return IntegrityError(f"{what}: {f'{where}: ' if where else ''}{said}{more}", hint=hint)


def _is_plain(part: int | str) -> bool:
    return isinstance(part, int) or (
        part.isidentifier() and part.isascii() and len(part) < _LONGEST_SHOWN
    )


def _path(name: str) -> str:
    if not is_relative(name):
        raise ValueError(f"{shown(name)} is no relative path without .., \\ or control characters")
    return name


def _part(name: str) -> str:
    if "/" in name or not is_relative(name):
        raise ValueError(f"{shown(name)} is no name without /, \\ or control characters")
    return name


# Names in records are data from outside: an object of a store may say anything. Models that are
# parsed from one give them these types, so that a bad name is an error before any use.

StoredPath = Annotated[str, AfterValidator(_path)]
"""A relative path that stays below where it is put."""

StoredName = Annotated[str, AfterValidator(_part)]
"""One part of such a path: a file, an attempt, a dataset."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""In hex digits, as this package writes it; files of a cache are named by it."""
