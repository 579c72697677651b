"""A store in a directory, safe for concurrent processes on one (also shared) file system."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
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
from mlip_job.store.base import ObjectInfo, check_conditions, save
from mlip_job.store.keys import check_key, check_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

_BLOCK = 1 << 20
_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_LOCK_SECONDS = 60.0  # each holder needs milliseconds
_LOCK_POLL_SECONDS = 0.005
# What a network file system answers while its server is away; a full or read-only disk stays so.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOLCK}


class DirectoryStore:
    """Objects are files below a root directory.

    An object is written to a temporary file in its directory, synced, and then linked (create
    only) or renamed (replace) into place, so that a reader or a crash sees all of it or nothing.
    Replacements are serialised by a lock file in the root, which makes compare-and-swap exact.

    Parameters
    ----------
    root
        The directory; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The root directory."""
        return str(self._root)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See `ObjectStore.get_versioned`; the version is the sha256 of the content."""
        with self._errors("read", key), self._open(key) as file:
            data = file.read()
        return data, hashlib.sha256(data).hexdigest()

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`; the version is left empty, reading it would read the object."""
        try:
            with self._errors("read", key):
                status = self._path(key).stat()
        except ObjectNotFoundError:
            return None
        return ObjectInfo(key, status.st_size, "", status.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        folder = self._root / check_prefix(prefix).rpartition("/")[0]
        found = []
        with self._errors("list", prefix):
            for directory, names, files in os.walk(folder, onerror=_raise_unless_absent):
                names[:] = [name for name in names if not name.startswith(_TEMPORARY)]
                for name in files:
                    path = Path(directory, name)
                    key = path.relative_to(self._root).as_posix()
                    if key.startswith(prefix) and not name.startswith((_TEMPORARY, _LOCK)):
                        try:
                            status = path.stat()
                        except FileNotFoundError:
                            continue  # removed meanwhile, as old checkpoints are
                        found.append(ObjectInfo(key, status.st_size, "", status.st_mtime))
        yield from sorted(found, key=lambda info: info.key)

    def list_prefixes(self, prefix: str) -> Iterator[str]:
        """See `ObjectStore.list_prefixes`."""
        folder, _, start = check_prefix(prefix).rpartition("/")
        try:
            with self._errors("list", prefix):
                names = [e.name for e in os.scandir(self._root / folder) if e.is_dir()]
        except ObjectNotFoundError:
            return
        yield from sorted(name for name in names if name.startswith(start))

    def list_named(self, prefix: str, name: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list_named`."""
        for folder in self.list_prefixes(prefix):
            info = self.head(f"{prefix}{folder}/{name}")
            if info is not None:
                yield info

    def put(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put`."""
        with self._written(key, lambda file: file.write(data)) as temporary, self._lock():
            temporary.replace(self._path(key))

    def put_if_absent(self, key: str, data: bytes) -> None:
        """See `ObjectStore.put_if_absent`."""
        with self._written(key, lambda file: file.write(data)) as temporary:
            self._link(temporary, key, hashlib.sha256(data).hexdigest())

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        """See `ObjectStore.put_if_match`."""
        with self._written(key, lambda file: file.write(data)) as temporary, self._lock():
            try:
                current = self.get_versioned(key)[1]
            except ObjectNotFoundError:
                current = None
            if current == hashlib.sha256(data).hexdigest():
                return
            if current != version:
                raise ObjectChangedError(f"{key} was changed by someone else")
            temporary.replace(self._path(key))

    def upload(self, path: Path, key: str, *, if_absent: bool = False) -> str:
        """See `ObjectStore.upload`."""
        digest = hashlib.sha256()

        def copy(target: BinaryIO) -> None:
            with path.open("rb") as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)

        with self._written(key, copy) as temporary:
            if if_absent:
                self._link(temporary, key, digest.hexdigest())
            else:
                with self._lock():
                    temporary.replace(self._path(key))
        return digest.hexdigest()

    def download(self, key: str, path: Path) -> str:
        """See `ObjectStore.download`."""
        return save(self._blocks(key), path)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        try:
            with self._errors("delete", key):
                self._path(key).unlink()
        except ObjectNotFoundError:
            return

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
        """See `ObjectStore.remove_leftover`."""
        path = self._root / name
        if not path.name.startswith(_TEMPORARY):
            raise StoreError(f"{name} is no leftover")
        with self._errors("delete", name):
            path.unlink(missing_ok=True)

    def check(self) -> None:
        """See `ObjectStore.check`."""
        check_conditions(self)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _blocks(self, key: str) -> Iterator[bytes]:
        with self._errors("read", key), self._open(key) as file:
            while block := file.read(_BLOCK):
                yield block

    def _open(self, key: str) -> BufferedReader:
        return self._path(key).open("rb")

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

    def _link(self, temporary: Path, key: str, sha256: str) -> None:
        """Give a file its name, which fails where the name is taken; rename would replace."""
        try:
            os.link(temporary, self._path(key))
        except FileExistsError:
            if self._sha256(key) != sha256:
                raise ObjectExistsError(f"{key} exists in {self.url}") from None

    def _sha256(self, key: str) -> str:
        with self._errors("read", key), self._open(key) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of replacements; a frozen holder does not block others for ever."""
        path = self._root / _LOCK
        with path.open("ab") as lock:
            patience = time.monotonic() + _LOCK_SECONDS
            while not _locked(lock):
                if time.monotonic() > patience:
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
