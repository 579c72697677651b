"""A pacemaker counts as hung when nothing at all has happened for too long."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mlip_job.training import process
from mlip_job.training.process import Watchdog, session_cpu_seconds

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
    """CPU time of a made-up session."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = 0.0
        monkeypatch.setattr(process, "session_cpu_seconds", lambda _session: self.used)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> _Cpu:
    """Replace the look at the processes."""
    return _Cpu(monkeypatch)


def _stalled_after(dog: Watchdog, cpu: _Cpu, seconds: int, *, load: float, seen: object) -> int:
    """Look once a second; return when it was found stalled first, 0 for never."""
    for now in range(1, seconds + 1):
        cpu.used += load
        if dog.is_stalled(seen, now):
            return now
    return 0


def test_nothing_for_too_long_is_a_stall(cpu: _Cpu) -> None:
    """Not a moment sooner."""
    found = _stalled_after(Watchdog(1, TIMEOUT, 0.0), cpu, 2000, load=0.0, seen="row 3")
    assert TIMEOUT < found <= TIMEOUT + 2


def test_a_sleeping_process_is_no_sign_of_life(cpu: _Cpu) -> None:
    """Threads that wake up to look around use a little CPU time."""
    assert _stalled_after(Watchdog(1, TIMEOUT, 0.0), cpu, 2000, load=0.002, seen="row 3")


def test_building_a_graph_in_silence_is_no_stall(cpu: _Cpu) -> None:
    """It takes minutes without a line, on one core or on a part of one."""
    assert not _stalled_after(Watchdog(1, TIMEOUT, 0.0), cpu, 5000, load=0.05, seen="row 3")


def test_each_row_and_line_starts_the_clock_anew(cpu: _Cpu) -> None:
    """Whoever waits for a slow GPU uses no CPU, but gets on."""
    dog = Watchdog(1, TIMEOUT, 0.0)
    assert not any(dog.is_stalled(now // 500, now) for now in range(5000))
    assert any(dog.is_stalled("last", now) for now in range(5000, 5700))


def test_time_in_suspension_does_not_count(cpu: _Cpu) -> None:
    """Slurm suspends a job and all its processes: after hours it goes on as if nothing had been."""
    dog = Watchdog(1, TIMEOUT, 0.0)
    assert not dog.is_stalled("row 3", 1.0)
    assert not any(dog.is_stalled("row 3", 20_000.0 + second) for second in range(500))
    assert any(dog.is_stalled("row 3", 20_500.0 + second) for second in range(200))


def test_cpu_time_is_that_of_the_whole_session() -> None:
    """Also of children that have ended; others' is not counted."""
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
