"""``train.log``: all that pacemaker printed, without the names that must not be published."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_READ_BYTES = 1 << 20
_TAIL_BYTES = 16384
_TAIL_LINES = 15
_LONGEST_LINE = 300
_HOSTNAME = re.compile(rb"^([-0-9 :,a-zA-Z]{0,60} - Hostname: ).*")


def copy_without_host(log: Path, target: Path) -> None:
    """Copy a log, the host's name left out."""
    with log.open("rb") as source, target.open("wb") as cleaned:
        while piece := source.readline(_READ_BYTES):
            cleaned.write(_HOSTNAME.sub(rb"\1(not published)", piece))


def hide_host(log: Path) -> None:
    """Take the host's name out of a log that nobody writes any more."""
    cleaned = log.with_suffix(".cleaned")
    copy_without_host(log, cleaned)
    cleaned.replace(log)


def last_lines(log: Path) -> str:
    """Return the end of a log, indented, for an error message."""
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = source.read().decode("utf-8", errors="replace").expandtabs(4)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return "\n".join(f"  {_printable(line[:_LONGEST_LINE])}" for line in lines[-_TAIL_LINES:])


def _printable(line: str) -> str:
    """Replace what a terminal would obey."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)
