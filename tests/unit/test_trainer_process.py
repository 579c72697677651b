"""A running trainer: lines of its log, progress, phases, stalls, end of the log."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.training import process
from mlip_job.training.pacemaker.log import LogParser
from mlip_job.training.process import (
    LONGEST_LINE_BYTES,
    GrowingFile,
    IterationClock,
    Watchdog,
    copy_without_host,
    hide_host,
    last_lines,
    read_lines,
    session_cpu_seconds,
)
from mlip_job.training.trainer import PhaseClock
from tests.trainings import make_point


def _written_and_read(path: Path, blocks: Iterable[bytes]) -> list[str]:
    file, lines = GrowingFile(path), list[str]()
    for block in blocks:
        with path.open("ab") as written:
            written.write(block)
        lines += file.lines()
    return lines


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_lines_are_complete_however_they_are_read(blocks: list[bytes]) -> None:
    """A line read in pieces is one line; an incomplete one waits."""
    with tempfile.TemporaryDirectory() as directory:
        lines = _written_and_read(Path(directory, "log"), blocks)
    whole = b"".join(blocks)
    assert lines == [line.decode("utf-8", errors="replace") for line in whole.split(b"\n")[:-1]]


@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_a_long_line_is_truncated(tmp_path: Path, pieces: int) -> None:
    """The rest is dropped, up to its end; the next line is complete again."""
    data = (
        b"begin" + b"x" * (2 * LONGEST_LINE_BYTES) + b"2026-11-23 22:42:37,630 I - no line\nnext\n"
    )
    size = len(data) // pieces + 1
    blocks = (data[start : start + size] for start in range(0, len(data), size))
    long, after = _written_and_read(tmp_path / "log", blocks)
    assert long == "begin" + "x" * (LONGEST_LINE_BYTES - 5)
    assert after == "next"


def test_an_overwritten_file_is_read_from_its_begin(tmp_path: Path) -> None:
    """Every start of pacemaker overwrites its tables, maybe within a line."""
    path = tmp_path / "log"
    file = GrowingFile(path)
    assert list(file.lines()) == []
    path.write_text("one\ntwo and a half")
    assert list(file.lines()) == ["one"]
    path.write_text("three\n")
    assert list(file.lines()) == ["three"]


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_last_line_of_a_file_needs_no_end(tmp_path: Path, end: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n\n\xff\0two" + end.encode())
    assert [line for line in read_lines(path) if line] == ["one", "\ufffd\0two"]


def test_a_line_of_100_mb_takes_no_memory(tmp_path: Path) -> None:
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


def test_host_is_removed_from_the_log(tmp_path: Path) -> None:
    """In both of pacemaker's formats; a copy leaves the log as it is, which may still grow."""
    log, copy = tmp_path / "train.log", tmp_path / "copy"
    text = (
        b"2026-11-23 22:42:37,630 I - Hostname: secret-node\n"
        b"2026-11-23 22:42:37,630 - root - INFO - Hostname: secret-node\n"
        b"2026-11-23 22:42:37,630 I - Iteration   #1 \xff\nlast line without e"
    )
    log.write_bytes(text)
    copy_without_host(log, copy)
    assert log.read_bytes() == text
    hidden = text.replace(b"secret-node", b"(not published)")
    assert copy.read_bytes() == hidden
    hide_host(log)
    assert log.read_bytes() == hidden
    assert {*tmp_path.iterdir()} == {log, copy}


def test_garbage_is_copied_unchanged(tmp_path: Path) -> None:
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
    """Indented, a screenful, each cut to a readable length."""
    log = tmp_path / "train.log"
    log.write_text("".join(f"line {n}\n" for n in range(5000)) + "x" * 5000)
    lines = last_lines(log).split("\n")
    assert lines == [*(f"  line {n}" for n in range(4986, 5000)), "  " + "x" * 300]


def test_control_sequences_are_not_shown(tmp_path: Path) -> None:
    """Binary data in a log does not clear the reader's screen."""
    log = tmp_path / "train.log"
    log.write_bytes(b"good \xc3\xa9\n\x1b[2J\x00\x07bad\xff\r\n\ttab\n")
    assert last_lines(log) == "  good \u00e9\n  \ufffd[2J\ufffd\ufffdbad\ufffd\n      tab"


def test_clock_starts_after_the_graph_of_the_test_set() -> None:
    """The minutes between rows 0 and 1 are not the time of an iteration."""
    clock = IterationClock()
    clock.add([make_point(0)], 0.0)
    clock.add([make_point(1)], 300.0)
    assert clock.seconds_per_iteration is None
    clock.add([make_point(2), make_point(3)], 304.0)
    assert clock.seconds_per_iteration == pytest.approx(2.0)


def test_clock_restarts_in_every_ladder_step() -> None:
    clock = IterationClock()
    clock.add([make_point(0), make_point(1)], 0.0)
    clock.add([make_point(9)], 8.0)
    clock.add([make_point(0, step=1)], 100.0)
    assert clock.seconds_per_iteration is None
    assert clock.last == make_point(0, step=1)


DATA = Path(__file__).parent.parent / "data" / "pacemaker"


def _followed(case: str) -> LogParser:
    parser = LogParser()
    for line in read_lines(DATA / case / "train.log"):
        parser.feed(line)
    return parser


def test_a_process_starts_before_its_first_line_and_ends_after_its_last() -> None:
    state = _followed("c_ladder").state
    (_, first), last = state.phases[0], state.last_time
    assert last is not None
    alone = state.phase_seconds()
    whole = state.phase_seconds(first - timedelta(seconds=5), last + timedelta(seconds=2))
    assert whole["starting"] == pytest.approx(alone["starting"] + 5)
    assert whole["predicting"] == pytest.approx(alone["predicting"] + 2)
    assert sum(whole.values()) == pytest.approx((last - first).total_seconds() + 7)


def test_a_log_without_a_stamp_has_no_phases() -> None:
    now = datetime.now()  # noqa: DTZ005
    state = LogParser().state
    assert state.phase_seconds() == {}
    assert state.phase_seconds(now - timedelta(seconds=3), now) == {"starting": 3.0}


def _line(ago_s: float, message: str) -> str:
    stamp = datetime.now() - timedelta(seconds=ago_s)  # noqa: DTZ005
    return f"{stamp:%Y-%m-%d %H:%M:%S},{stamp.microsecond // 1000:03d} I - {message}"


def test_starts_add_up_also_while_one_is_running() -> None:
    """A fit that resumes within a ladder step has two of them in one attempt."""
    clock = PhaseClock()
    assert (clock.first_start, clock.seconds()) == (None, {})
    for start in (1, 2):
        log = LogParser()
        clock.start(lambda *times, log=log: log.state.phase_seconds(*times))
        if start == 1:
            first = clock.first_start
        log.feed(_line(60.0, "Start pacemaker"))
        log.feed(_line(50.0, "Running fit backend"))
        running = clock.seconds()["building_graph"]
        assert running == pytest.approx(50.0 * start, abs=5.0)
        clock.end()
    ended = clock.seconds()
    assert ended["building_graph"] == pytest.approx(100.0, abs=5.0)
    assert clock.first_start == first is not None
    assert clock.seconds() == ended


TIMEOUT = 600.0

BURN = """
import os, time
if os.fork() == 0:
    while time.process_time() < 0.3: pass
    os._exit(0)
os.wait()
print(flush=True)
input()
"""


class _Cpu:
    """CPU time of a simulated session."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = 0.0
        monkeypatch.setattr(process, "session_cpu_seconds", lambda _session: self.used)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> _Cpu:
    return _Cpu(monkeypatch)


@pytest.mark.parametrize(
    ("load", "stalled"),
    [(0.0, True), (0.002, True), (0.05, False)],
    ids=["sleeping", "polling threads", "building a graph in silence"],
)
def test_no_progress_for_too_long_is_a_stall(cpu: _Cpu, load: float, stalled: bool) -> None:
    """Not a second earlier; a process that computes is no stall."""
    dog = Watchdog(1, TIMEOUT, 0.0)
    found = 0
    for now in range(1, 5000):
        cpu.used += load
        if dog.is_stalled("row 3", now):
            found = now
            break
    assert (TIMEOUT < found <= TIMEOUT + 2) if stalled else not found


def test_each_row_and_line_restarts_the_clock(cpu: _Cpu) -> None:
    """Waiting for a slow GPU uses no CPU, but makes progress."""
    dog = Watchdog(1, TIMEOUT, 0.0)
    assert not any(dog.is_stalled(now // 500, now) for now in range(5000))
    assert any(dog.is_stalled("last", now) for now in range(5000, 5700))


def test_time_in_suspension_does_not_count(cpu: _Cpu) -> None:
    """Slurm suspends a job and all its processes; after hours it continues normally."""
    dog = Watchdog(1, TIMEOUT, 0.0)
    assert not dog.is_stalled("row 3", 1.0)
    assert not any(dog.is_stalled("row 3", 20_000.0 + second) for second in range(500))
    assert any(dog.is_stalled("row 3", 20_500.0 + second) for second in range(200))


def test_cpu_time_is_that_of_the_whole_session() -> None:
    """Including finished children; other sessions are not counted."""
    process = subprocess.Popen(
        [sys.executable, "-c", BURN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        before = session_cpu_seconds(process.pid)
        started = time.process_time()
        while time.process_time() - started < 0.2:
            pass
        after = session_cpu_seconds(process.pid)
        process.kill()
    assert before >= 0.25  # of 0.3: times in proc(5) are whole ticks, rounded down
    assert after - before < 0.15
    assert session_cpu_seconds(process.pid) == 0
