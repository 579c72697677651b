"""Reject files other than SQLite databases, with a command to convert them."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from mlip_job.errors import ConfigError, DatabaseError, MlipJobError

if TYPE_CHECKING:
    from pathlib import Path

_SQLITE = b"SQLite format 3\0"
_LMDB = b"\xde\xc0\xef\xbe"
"""Magic number of LMDB, behind the header of its first page (lmdb, mdb.c)."""
_JSON = re.compile(rb'\s*\{\s*"(\d+|ids|nextid)"\s*:')
_GZIP = b"\x1f\x8b"
_PEEK = 4096

_KEYS_OF_LABELS = re.compile(r"(?:^|[ :])(\w*_(?:energy|forces?)|(?:energy|forces?)_\w+)[=:]")


def require_sqlite_file(path: Path) -> None:
    """Raise unless a readable file may be an SQLite database.

    Rows of ASE's other back ends, and of files of structures, have no stable ids, can't be selected
    by SQL, or are loaded all at once.

    Raises
    ------
    ConfigError
        If the file has another format; the hint has the command.
    DatabaseError
        If it is empty.
    """
    with path.open("rb") as file:
        head = file.read(_PEEK)
    if head.startswith(_SQLITE):
        return
    if not head:
        raise DatabaseError(
            f"database {path} is an empty file",
            hint="check database.url; ase.db.connect(…).write(atoms) writes rows",
        )
    found = _foreign_format(path, head)
    if found is not None:
        raise found


def _foreign_format(path: Path, head: bytes) -> MlipJobError | None:
    if _LMDB in head[:32] or path.suffix == ".aselmdb":
        return _another_back_end(path, "LMDB (.aselmdb)", ".aselmdb")
    if _JSON.match(head):
        return _another_back_end(path, "JSON", ".json")
    try:
        kind = filetype(str(path), read=True)
    except (UnknownFileTypeError, OSError, ValueError):
        return _compressed(path, head)
    if kind in ("db", "json") or kind not in ioformats or not ioformats[kind].can_read:
        return _compressed(path, head)
    return _structures(path, kind, head)


def _compressed(path: Path, head: bytes) -> ConfigError | None:
    if not head.startswith(_GZIP):
        return None
    return ConfigError(
        f"database.url: {path} is compressed (gzip)",
        hint="unpack it, and set database.url to the result: "
        f"gunzip -c {_quoted(path)} > {_quoted(_target(path.with_suffix('')))}",
    )


def _another_back_end(path: Path, name: str, suffix: str) -> ConfigError:
    source = path if path.suffix == suffix else path.with_suffix(suffix)
    moved = "" if source == path else f"mv {_quoted(path)} {_quoted(source)} && "
    needed = " (with the Python package ase-db-backends)" if suffix == ".aselmdb" else ""
    return ConfigError(
        f"database.url: {path} is an ASE database in {name}, which is not read",
        hint=f"convert it to SQLite{needed}, and set database.url to the result: "
        f"{moved}ase db {_quoted(source)} --insert-into {_quoted(_target(path))}",
    )


def _structures(path: Path, kind: str, head: bytes) -> ConfigError:
    """Return the error for a file of structures; ASE's converter keeps labels, but no keys."""
    names = _other_labels(head) if kind == "extxyz" else []
    if names:
        return ConfigError(
            f"database.url: {path} is a file of structures ({kind}), not a database; its labels "
            f"{', '.join(names)} are no energy and forces to ASE",
            hint="write an SQLite database with the script in docs/dataset.md, "
            '"Labels under other names"',
        )
    return ConfigError(
        f"database.url: {path} is a file of structures ({kind}), not a database",
        hint="convert it to SQLite, and set database.url to the result, database.select to '' "
        f"(the rows have no keys): ase convert -i {kind} {_quoted(path)} {_quoted(_target(path))}",
    )


def _other_labels(head: bytes) -> list[str]:
    """Return names in an extended XYZ comment that may stand for missing labels."""
    comment = "".join(head.decode("utf-8", "replace").splitlines()[1:2])
    found = set(_KEYS_OF_LABELS.findall(comment))
    if re.search(r"(?:^| )(free_)?energy=", comment):
        found = {name for name in found if "force" in name}
    if re.search(r"[:=]forces:", comment):
        found = {name for name in found if "energy" in name}
    return sorted(found - {"free_energy"})


def _target(path: Path) -> Path:
    own = path.with_suffix(".db")
    return own if own != path and not own.exists() else path.with_name(f"{path.stem}-sqlite.db")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
