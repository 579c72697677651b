"""A function in a process of its own: what it returns, raises, and dies of."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from typing import Any

import pytest

from mlip_job.errors import TrainingError
from mlip_job.runtime.processes import Beside, starting_workers

MUCH = bytes(8_000_000)
"""More than a pipe or a socket holds."""

DIED = TrainingError("it died", hint="try again")


def test_it_returns_what_the_function_returns() -> None:
    """From a process that is another, and is over with the block."""
    with Beside(os.getpid, died=DIED) as beside:
        process = beside.result()
    assert process != os.getpid()
    assert not _runs(process)


def test_much_is_passed_on() -> None:
    """Both ways."""
    with Beside(bytes.upper, MUCH + b"a", died=DIED) as beside:
        assert beside.result() == MUCH + b"A"


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    """With all that it says."""
    with (
        Beside(os.stat, "/absent", died=DIED) as beside,
        pytest.raises(FileNotFoundError) as caught,
    ):
        beside.result()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/absent")
    with Beside(_refuse, died=DIED) as beside, pytest.raises(TrainingError, match="no") as refused:
        beside.result()
    assert refused.value.hint == "ask again"


def _threads() -> list[str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return [os.environ[name] for name in names]


def test_it_may_have_processes_too() -> None:
    """As a linear fit to many structures has."""
    with Beside(_in_a_pool, died=DIED) as beside:
        assert beside.result() not in (os.getpid(), beside._process.pid)


def test_workers_share_the_threads_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes with four threads each would take turns; this process keeps its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        with starting_workers(2):
            started = pool.submit(_threads)
        assert dict(os.environ) == before
        assert started.result() == ["2", "2", "1"]


def test_a_process_that_dies_is_an_error() -> None:
    """The one that the caller has for it."""
    with (
        Beside(signal.raise_signal, signal.SIGKILL, died=DIED) as beside,
        pytest.raises(TrainingError) as caught,
    ):
        beside.result()
    assert caught.value is DIED


def test_a_process_that_dies_before_it_begins_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it to take what it is given."""
    start = SpawnProcess.start

    def start_and_kill(process: SpawnProcess) -> None:
        start(process)
        process.kill()
        process.join()

    monkeypatch.setattr(SpawnProcess, "start", start_and_kill)
    with (
        Beside(len, MUCH, died=DIED) as beside,
        pytest.raises(TrainingError) as caught,
    ):
        beside.result()
    assert caught.value is DIED


def test_it_ends_with_the_block() -> None:
    """However the block ends."""
    started = time.monotonic()
    with suppress(TrainingError), Beside(time.sleep, 600, died=DIED) as beside:
        process = beside._process.pid
        _refuse()
    assert time.monotonic() - started < 300
    assert process is not None
    assert not _runs(process)


def test_it_ends_where_the_block_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may come while the process is given its work."""
    beside = Beside(time.sleep, 600, died=DIED)
    monkeypatch.setattr(beside._ours, "send", lambda _: _refuse())
    with pytest.raises(TrainingError, match="no"):
        beside.__enter__()
    assert beside._process.exitcode == -signal.SIGKILL


def test_it_takes_no_notice_of_what_the_scheduler_sends() -> None:
    """Ending the job is for the job itself."""
    with Beside(_blocked_signals, died=DIED) as beside:
        assert beside.result() >= {signal.SIGINT, signal.SIGUSR1}


def _in_a_pool() -> int:
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(os.getpid).result()


def _refuse() -> None:
    raise TrainingError("no", hint="ask again")


def _blocked_signals() -> set[Any]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
