"""A store in a directory, safe for concurrent processes on one (also shared) file system."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mlip_job.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)
from mlip_job.store.base import (
    ObjectInfo,
    check_conditions,
    check_key,
    check_prefix,
    whole_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 1 << 20
_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_LOCK_SECONDS = 60.0  # each holder needs milliseconds
_LOCK_POLL_SECONDS = 0.005
# Errors of a network file system while its server is away; a full or read-only disk stays so.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOLCK}


class DirectoryStore:
    """Objects are files below a root directory, which the first write makes.

    An object is written to a temporary file in its directory, synced, and then linked (create
    only) or renamed (replace) into place, so that a reader or a crash sees all of it or nothing.
    Replacements are serialised by a lock file in the root, which makes compare-and-swap exact; a
    version is the sha256 of the content. For the methods, see `ObjectStore`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The root directory."""
        return str(self._root)

    def get(self, key: str) -> bytes:
        with self._errors("read", key):
            return self._path(key).read_bytes()

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, hashlib.sha256(data).hexdigest()

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._errors("read", key):
                status = self._path(key).stat()
        except ObjectNotFoundError:
            return None
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self._root / check_prefix(prefix).rpartition("/")[0]
        keys = []
        with self._errors("list", prefix):
            for directory, _, names in os.walk(folder, onerror=_raise_unless_absent):
                keys += [
                    Path(directory, name).relative_to(self._root).as_posix()
                    for name in names
                    if not name.startswith((_TEMPORARY, _LOCK))
                ]
        for key in sorted(key for key in keys if key.startswith(prefix)):
            if (info := self.head(key)) is not None:  # not removed meanwhile, as checkpoints are
                yield info

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        folder, _, start = check_prefix(prefix).rpartition("/")
        try:
            with self._errors("list", prefix):
                names = [e.name for e in os.scandir(self._root / folder) if e.is_dir()]
        except ObjectNotFoundError:
            return
        yield from sorted(name for name in names if name.startswith(start))

    def put(self, key: str, data: bytes) -> None:
        with self._written(key, lambda file: file.write(data)) as temporary:
            self._replace(temporary, key)

    def put_if_absent(self, key: str, data: bytes) -> None:
        with self._written(key, lambda file: file.write(data)) as temporary:
            try:
                os.link(temporary, self._path(key))  # fails where rename would replace
            except FileExistsError:
                if self.get(key) != data:
                    raise ObjectExistsError(f"{key} exists in {self.url}") from None

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        with self._written(key, lambda file: file.write(data)) as temporary, self._lock():
            try:
                current, current_version = self.get_versioned(key)
            except ObjectNotFoundError:
                current, current_version = None, None
            if current == data:
                return
            if current_version != version:
                raise ObjectChangedError(f"{key} was changed by someone else")
            temporary.replace(self._path(key))

    def upload(self, path: Path, key: str) -> str:
        digest = hashlib.sha256()

        def copy(target: BinaryIO) -> None:
            with path.open("rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)

        with self._written(key, copy) as temporary:
            self._replace(temporary, key)
        return digest.hexdigest()

    def download(self, key: str, path: Path) -> str:
        with (
            whole_file(path) as target,
            self._errors("read", key),
            self._path(key).open("rb") as source,
        ):
            shutil.copyfileobj(source, target, _BLOCK)
        return target.sha256()

    def delete(self, key: str) -> None:
        with suppress(ObjectNotFoundError), self._errors("delete", key):
            self._path(key).unlink()

    def leftovers(self, older_than_s: float) -> Iterator[str]:
        """See `ObjectStore.leftovers`: temporary files."""
        with self._errors("list", ""):
            found = sorted(self._root.rglob(f"{_TEMPORARY}*"))
            if not found:
                return
            with tempfile.TemporaryFile(dir=self._root, prefix=_TEMPORARY) as probe:
                now = os.fstat(probe.fileno()).st_mtime  # by the clock of a file server
            for path in found:
                with suppress(FileNotFoundError):  # a writer that lives has just renamed it
                    if now - path.stat().st_mtime >= older_than_s:
                        yield path.relative_to(self._root).as_posix()

    def remove_leftover(self, name: str) -> None:
        path = self._root / name
        if not path.name.startswith(_TEMPORARY):
            raise StoreError(f"{name} is no leftover")
        with self._errors("delete", name):
            path.unlink(missing_ok=True)

    def check(self) -> None:
        check_conditions(self)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextmanager
    def _written(self, key: str, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """Yield a synced temporary file in the object's directory; sync that directory after."""
        path = self._path(key)
        temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
        try:
            with self._errors("write", key):
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
                _sync_directory(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _replace(self, temporary: Path, key: str) -> None:
        with self._lock():
            temporary.replace(self._path(key))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of replacements; a frozen holder does not block others forever."""
        path = self._root / _LOCK
        with path.open("ab") as lock:
            deadline = time.monotonic() + _LOCK_SECONDS
            while not _locked(lock):
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{path} has been held by another process for {_LOCK_SECONDS:.0f} s",
                        hint=f"it may be suspended; where it runs, fuser {path} names it",
                        transient=True,
                    )
                time.sleep(_LOCK_POLL_SECONDS)
            yield

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if absent and action != "write":
                raise ObjectNotFoundError(f"{key} is not in {self.url}") from None
            raise StoreError(
                f"can't {action} {key} in {self.url}: {error.strerror or error}",
                hint="check permissions and free space of storage.url",
                transient=error.errno in _TRANSIENT,
            ) from None


def _locked(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
