"""A log is cut into lines whatever is in it, in bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.training.process import LONGEST_LINE_BYTES, LineReader, read_lines

if TYPE_CHECKING:
    from pathlib import Path


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_lines_come_whole_however_they_arrive(blocks: list[bytes]) -> None:
    """A line that is read in pieces is one line; what has no end yet waits."""
    reader = LineReader()
    lines = [line for block in blocks for line in reader.lines(block)]
    whole = b"".join(blocks)
    expected = [line.decode("utf-8", errors="replace") for line in whole.split(b"\n")[:-1]]
    assert lines == expected


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_of_a_long_line_the_beginning_is_kept(pieces: int) -> None:
    """The rest is dropped, up to its end; the next line is itself again."""
    data = (
        b"begin" + b"x" * (2 * LONGEST_LINE_BYTES) + b"2026-11-23 22:42:37,630 I - no line\nnext\n"
    )
    size = len(data) // pieces + 1
    reader = LineReader()
    long, after = (
        line
        for start in range(0, len(data), size)
        for line in reader.lines(data[start : start + size])
    )
    assert long == "begin" + "x" * (LONGEST_LINE_BYTES - 5)
    assert after == "next"


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_last_line_of_a_file_needs_no_end(tmp_path: Path, end: str) -> None:
    """A process that was killed may have left it open."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n\n\xff\0two" + end.encode())
    assert [line for line in read_lines(path) if line] == ["one", "\ufffd\0two"]


def test_a_line_of_100_mb_takes_no_memory(tmp_path: Path) -> None:
    """Some library printed a binary."""
    path = tmp_path / "log"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(bytes(range(11, 256)) * 4280)
        file.write(b"\nnext\n")
    assert path.stat().st_size > 100e6
    tracemalloc.start()
    try:
        lines = [line for line in read_lines(path) if line]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lines[1:] == ["next"]
    assert peak < 8e6
