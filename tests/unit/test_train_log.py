"""What is published and shown of a log."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

from mlip_job.training.process import copy_without_host, hide_host, last_lines

if TYPE_CHECKING:
    from pathlib import Path


def test_host_is_taken_out_of_the_log(tmp_path: Path) -> None:
    """In both of pacemaker's formats, and nothing else is."""
    log = tmp_path / "train.log"
    log.write_bytes(
        b"2026-11-23 22:42:37,630 I - Hostname: secret-node\n"
        b"2026-11-23 22:42:37,630 - root - INFO - Hostname: secret-node\n"
        b"2026-11-23 22:42:37,630 I - Iteration   #1 \xff\n"
    )
    hide_host(log)
    assert log.read_bytes() == (
        b"2026-11-23 22:42:37,630 I - Hostname: (not published)\n"
        b"2026-11-23 22:42:37,630 - root - INFO - Hostname: (not published)\n"
        b"2026-11-23 22:42:37,630 I - Iteration   #1 \xff\n"
    )
    assert list(tmp_path.iterdir()) == [log]


def test_a_copy_leaves_the_log_as_it_is(tmp_path: Path) -> None:
    """Pacemaker may still write to it."""
    log, copy = tmp_path / "train.log", tmp_path / "copy"
    text = b"2026-11-23 22:42:37,630 I - Hostname: secret-node\nlast line without e"
    log.write_bytes(text)
    copy_without_host(log, copy)
    assert log.read_bytes() == text
    assert b"secret-node" not in copy.read_bytes()
    assert copy.read_bytes().endswith(b"\nlast line without e")


def test_garbage_is_copied_as_it_is(tmp_path: Path) -> None:
    """Whatever a library printed, in bounded memory."""
    log, copy = tmp_path / "train.log", tmp_path / "copy"
    log.write_bytes(bytes(range(11, 256)) * 40_000 + bytes(range(256)) * 400 + b"\n" * 9000)
    tracemalloc.start()
    try:
        copy_without_host(log, copy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert copy.read_bytes() == log.read_bytes()
    assert peak < 6e6


def test_an_error_shows_the_last_lines(tmp_path: Path) -> None:
    """Indented, a screen of them, each cut to a readable length."""
    log = tmp_path / "train.log"
    log.write_text("".join(f"line {n}\n" for n in range(5000)) + "x" * 5000)
    lines = last_lines(log).split("\n")
    assert lines == [*(f"  line {n}" for n in range(4986, 5000)), "  " + "x" * 300]


def test_what_a_terminal_would_obey_is_not_shown(tmp_path: Path) -> None:
    """Binary data in a log does not clear the screen of whoever reads the error."""
    log = tmp_path / "train.log"
    log.write_bytes(b"good \xc3\xa9\n\x1b[2J\x00\x07bad\xff\r\n\ttab\n")
    assert last_lines(log) == "  good \u00e9\n  \ufffd[2J\ufffd\ufffdbad\ufffd\n      tab"


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_log_has_no_last_lines(tmp_path: Path, content: bytes) -> None:
    """Pacemaker may be killed before it says a word."""
    log = tmp_path / "train.log"
    log.write_bytes(content)
    assert last_lines(log).strip() == ""
