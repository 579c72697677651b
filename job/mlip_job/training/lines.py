"""Lines of a log, whatever is in it: pacemaker's libraries may print binary data without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST_LINE_BYTES = 1 << 14
"""What is kept of a line; no message of pacemaker's is longer."""

_READ_BYTES = 1 << 20


class LineReader:
    """Cuts a growing file into lines, of each the first `LONGEST_LINE_BYTES`."""

    def __init__(self) -> None:
        self._line = bytearray()

    def lines(self, block: bytes) -> Iterator[str]:
        """Yield the lines that end in the next block of the file."""
        *ends, rest = block.split(b"\n")
        for end in ends:
            self._add(end)
            yield self._line.decode("utf-8", errors="replace")
            self._line.clear()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._line += piece[: LONGEST_LINE_BYTES - len(self._line)]


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, the last one also where it has no end."""
    reader = LineReader()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            yield from reader.lines(block)
    yield from reader.lines(b"\n")
