"""Names of generations, keys of the store, files of a run, and access to local files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, DiskError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from mlip_job.errors import MlipJobError

FAMILY_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
"""A family's name is part of store keys and of Kubernetes object names (RFC 1123 labels)."""

MEMBERS = "members/"
"""Folder of an ensemble's members in their generation's."""

_GENERATION = re.compile(r"gen_(\d{2,})")
_LONGEST_KUBERNETES_NAME = 58  # RFC 1123: 63; an ensemble's member has "-" and its number after it

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SPACE_HINT = "free some space there, then run the same command again"
_NO_SPACE_BYTES = 64 << 10  # a program that fails to write leaves a few blocks over


def generation_name(generation: int) -> str:
    """Return ``gen_04`` for 4, ``gen_100`` for 100; raise `ConfigError` below 1."""
    if generation < 1:
        raise ConfigError(
            f"generation {generation} is not possible", hint="generations count from 1"
        )
    return f"gen_{generation:02d}"


def parse_generation_name(name: str) -> int | None:
    """Return the number in ``gen_04``, or None where `name` is no generation's name."""
    match = _GENERATION.fullmatch(name)
    number = int(match.group(1)) if match is not None else 0
    return number if number >= 1 and generation_name(number) == name else None


def member_folder(member: int) -> str:
    """Return the folder of a member of an ensemble in its generation's, ``members/member_02``."""
    return f"{MEMBERS}member_{member:02d}"


def kubernetes_job_name(family: str, generation: int, digest: str) -> str:
    """Return the name of a Kubernetes Job and its ConfigMap, ``mlip-cu-ni-gen-04-1a2b3c4d``.

    A name that would be too long loses the end of the family's name; the digest, which is also of
    the family's name, keeps such names apart.
    """
    end = f"-{generation_name(generation).replace('_', '-')}-{digest[:8]}"
    start = f"mlip-{family}"[: _LONGEST_KUBERNETES_NAME - len(end)]
    return start.rstrip("-") + end


@dataclass(frozen=True)
class FamilyKeys:
    """Every key of one family in the store; docs/store.md has the layout.

    With a ``member`` of an ensemble, the keys of a generation are that member's own. Methods that
    take the name of a file return a prefix where it is empty.
    """

    family: str
    member: int | None = None

    MANIFEST = "manifest.json"

    @property
    def latest(self) -> str:
        """Key of the movable pointer to the newest accepted generation."""
        return f"{self.family}/latest.json"

    @property
    def generations(self) -> str:
        """Prefix of every generation."""
        return f"{self.family}/generations/"

    @property
    def datasets(self) -> str:
        """Prefix of every dataset."""
        return f"{self.family}/datasets/"

    @property
    def queries(self) -> str:
        """Prefix of the records that map a query to its dataset."""
        return f"{self.family}/queries/"

    @property
    def potentials(self) -> str:
        """Prefix of the copies of all generations' potentials."""
        return f"{self.family}/potentials/"

    def dataset(self, dataset_id: str, file: str = "") -> str:
        """Key of one file of a dataset."""
        return f"{self.datasets}{dataset_id}/{file}"

    def query(self, key: str) -> str:
        """Key of the record of one query."""
        return f"{self.queries}{key}.json"

    def potential(self, generation: int, suffix: str) -> str:
        """Key of the potential in one format, e.g. ``cu-ni/potentials/gen_04.yace``."""
        return f"{self.potentials}{generation_name(generation)}.{suffix}"

    def folder(self, generation: int) -> str:
        """Folder of a generation, or of the member's part of it."""
        name = generation_name(generation)
        return name if self.member is None else f"{name}/{member_folder(self.member)}"

    def generation(self, generation: int, file: str = "") -> str:
        """Key of one file of a generation."""
        return f"{self.generations}{self.folder(generation)}/{file}"

    def manifest(self, generation: int) -> str:
        """Key whose existence makes the generation exist."""
        return self.generation(generation, self.MANIFEST)

    def claim(self, generation: int) -> str:
        """Key of the claim: which attempt is training the generation now."""
        return self.generation(generation, "claim.json")

    def attempt(self, generation: int, attempt: str, file: str = "") -> str:
        """Key of one file of an attempt."""
        return self.generation(generation, f"attempts/{attempt}/{file}")

    def checkpoint(self, generation: int, attempt: str, number: int, file: str = "") -> str:
        """Key of one file of a checkpoint."""
        return self.attempt(generation, attempt, f"checkpoints/{number:06d}/{file}")


class File:
    """Attribute of a class with a ``directory``: the path of the file of this name in it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, files: DatasetFiles | WorkFiles, _owner: type) -> Path:
        return files.directory / self._name


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one dataset in a local directory; the same names are used in the store."""

    directory: Path

    RECORD = "dataset.json"
    INDEX = "index.csv.gz"

    record = File(RECORD)  # hashes, counts, split, rejections
    index = File(INDEX)  # row id, fingerprint, group and side of every structure

    def xyz(self, side: str) -> Path:
        """Return the extended XYZ file of one side, ``train`` or ``test``."""
        return self.directory / f"{side}.xyz"

    def frame(self, side: str, shard: int = 0) -> Path:
        """Return pacemaker's data frame of one side; the first shard has no number."""
        number = f"-{shard:04d}" if shard else ""
        return self.directory / f"{side}{number}.pckl.gzip"


@dataclass(frozen=True)
class WorkFiles:
    """The files of one attempt in its local work directory; each trainer adds its own."""

    directory: Path

    DATASET = "dataset"

    train_log = File("train.log")  # output of the trainer, in order
    predecessor_index = File("predecessor-index.csv.gz")  # index of the predecessor's dataset
    report = File("report.json")
    report_page = File("report.html")

    @property
    def dataset(self) -> DatasetFiles:
        """The dataset that the attempt trains on."""
        return DatasetFiles(self.directory / self.DATASET)

    @classmethod
    def in_dataset(cls, names: Iterable[str]) -> tuple[str, ...]:
        """Return paths relative to the attempt: what is published names no directory of a host."""
        return tuple(f"{cls.DATASET}/{name}" for name in names)

    def predecessor(self, artefact: str) -> Path:
        """Return the published potential to compare with, ``predecessor.yace``."""
        return self.directory / artefact.replace("potential", "predecessor")


def make_private_directory(path: Path) -> None:
    """Make a directory, and its absent parents, for this user only; change no existing one."""
    absent = [directory for directory in path.parents if not directory.exists()]
    for directory in (*reversed(absent), path):
        directory.mkdir(mode=0o700, exist_ok=True)


def private(path: str, flags: int) -> int:
    """Open a file so that only this user can read it: the `opener` of Python's `open`."""
    return os.open(path, flags, 0o600)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cant_write(path: Path, error: OSError, *, hint: str) -> MlipJobError:
    """Return the error for a user-chosen path that can't be written.

    `hint` says what to do if another place would be better; a full disk has its own hint.
    """
    text = f"can't write to {path}: {error.strerror or error}"
    if says_full(error):
        return DiskError(text, hint=_SPACE_HINT)
    return ConfigError(text, hint=hint)


@contextmanager
def reported(directory: Path) -> Iterator[None]:
    """Raise a `DiskError` for any `OSError`; it names `directory` where that names no file."""
    try:
        yield
    except OSError as error:
        place = error.filename or directory
        raise DiskError(
            f"can't write in {place}: {error.strerror or error}",
            hint=_SPACE_HINT if says_full(error) else "check that disk, or set work_dir to another",
        ) from None


def says_full(error: OSError) -> bool:
    """Return whether an error means that the disk is full."""
    return error.errno in _DISK_FULL


def is_full(directory: Path, text: str) -> bool:
    """Return whether a program with output `text` failed because `directory` is full."""
    said = any(os.strerror(number) in text for number in _DISK_FULL)
    return said or shutil.disk_usage(directory).free < _NO_SPACE_BYTES


def full(directory: Path) -> DiskError:
    """Return the error for such a program."""
    return DiskError(f"the disk of {directory} is full", hint=_SPACE_HINT)
