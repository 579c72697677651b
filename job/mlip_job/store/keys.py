"""Names that come from a store, a database or a scheduler, and become keys or paths.

They are data from outside: an object of a store may say anything. Every model that is parsed from
one gives such fields the types of this module, so that a bad name is an error before any use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, StringConstraints

from mlip_job.errors import IntegrityError, StoreError

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST = 900  # bytes; S3 takes 1024 with the prefix of the URL
_LONGEST_PART = 255  # bytes; of a file's name on Linux
_LONGEST_SHOWN = 80


def check_key(key: str) -> str:
    """Return `key`, a path with ``/`` between non-empty parts, none of them ``.`` or ``..``.

    Raises
    ------
    StoreError
        If it is not one.
    """
    if not is_relative(key):
        raise StoreError(f"{shown(key)} is no key of an object")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix`, what keys begin with, where no part of it leads elsewhere.

    Raises
    ------
    StoreError
        If one does.
    """
    if prefix.startswith("/") or any(part in (".", "..") for part in prefix.split("/")):
        raise StoreError(f"{shown(prefix)} is no prefix of keys")
    return prefix


def is_relative(name: str) -> bool:
    """Return whether a name is printable, of bounded length, and stays below its folder."""
    if not name.isprintable() or "\\" in name or len(name.encode()) > _LONGEST:
        return False
    return not any(
        part in ("", ".", "..") or part.startswith(".tmp-") or len(part.encode()) > _LONGEST_PART
        for part in name.split("/")
    )


def shown(name: object) -> str:
    """Return a name that may be anything as it can be printed: escaped, and cut short."""
    text = ascii(name)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def unreadable(what: str, error: ValidationError, *, hint: str | None = None) -> IntegrityError:
    """Return the error for an object of the store whose content is not what it should be.

    Parameters
    ----------
    what
        The object, by its key.
    error
        What is wrong with it; the first problem is named.
    hint
        What to do.
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


StoredPath = Annotated[str, AfterValidator(_path)]
"""A relative path that stays below where it is put."""

StoredName = Annotated[str, AfterValidator(_part)]
"""One part of such a path: a file, an attempt, a dataset."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""In hex digits, as this package writes it; files of a cache are named by it."""
