"""Child processes, and the signals of the scheduler."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnProcess
from typing import Any

import pytest

from mlip_job.errors import InterruptedRunError, TrainingError
from mlip_job.runtime.processes import (
    STOP_SIGNALS,
    StopRequest,
    in_order,
    run_in_process,
    starting_workers,
    worker_pool,
)

MUCH = bytes(8_000_000)
"""More than the capacity of a pipe or a socket."""


DIED = TrainingError("it died", hint="try again")


def test_it_returns_what_the_function_returns() -> None:
    """From another process, which has ended then; large data are passed both ways."""
    process = run_in_process(os.getpid, died=DIED)
    assert process != os.getpid()
    assert not _runs(process)
    assert run_in_process(bytes.upper, MUCH + b"a", died=DIED) == MUCH + b"A"


def test_an_error_of_the_function_is_raised_here() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run_in_process(os.stat, "/absent", died=DIED)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/absent")
    with pytest.raises(TrainingError, match="no") as refused:
        run_in_process(_refuse, died=DIED)
    assert refused.value.hint == "ask again"


def _threads() -> list[str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return [os.environ[name] for name in names]


def test_it_may_have_processes_too() -> None:
    """For example those of a linear fit to many structures."""
    child, worker = run_in_process(_in_a_pool, died=DIED)
    assert len({os.getpid(), child, worker}) == 3


def test_workers_share_the_threads_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four processes with four threads each would compete; this process keeps its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        with starting_workers(2):
            started = pool.submit(_threads)
        assert dict(os.environ) == before
        assert started.result() == ["2", "2", "1"]


@pytest.mark.parametrize(
    ("function", "argument", "message", "hint"),
    [
        (signal.raise_signal, signal.SIGKILL, "it died, most likely out of memory", "try again"),
        (signal.raise_signal, signal.SIGSEGV, "it died of SIGSEGV", None),
        (os._exit, 3, "it died with exit status 3", None),
    ],
)
def test_a_process_that_dies_is_an_error(
    function: Callable[[int], None], argument: int, message: str, hint: str | None
) -> None:
    """The caller gets the cause of death; only a kill is attributed to memory."""
    with pytest.raises(TrainingError) as caught:
        run_in_process(function, argument, died=TrainingError("it died", hint="try again"))
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_process_that_dies_before_it_begins_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    start = SpawnProcess.start

    def start_and_kill(process: SpawnProcess) -> None:
        start(process)
        process.kill()
        process.join()

    monkeypatch.setattr(SpawnProcess, "start", start_and_kill)
    with pytest.raises(TrainingError) as caught:
        run_in_process(len, MUCH, died=DIED)
    assert caught.value is DIED


def test_it_is_killed_where_the_call_is_interrupted() -> None:
    """A signal handler may raise at any time, here during the first message."""
    started = time.monotonic()
    processes: list[int] = []

    def refuse(process: int) -> None:
        processes.append(process)
        _refuse()

    with pytest.raises(TrainingError, match="no"):
        run_in_process(_tell_and_sleep, died=DIED, on_message=refuse)
    assert time.monotonic() - started < 300
    assert not _runs(processes[0])


def test_it_ignores_the_signals_of_the_scheduler() -> None:
    assert run_in_process(_blocked_signals, died=DIED) >= set(STOP_SIGNALS)


def test_a_signal_to_all_processes_ends_no_worker() -> None:
    """One that died while sending its result would block the pool forever."""
    with worker_pool(2, _do_nothing) as pool:
        for number in STOP_SIGNALS:
            assert list(in_order(pool, _signal_and_return_much, [number] * 3, 2)) == [MUCH] * 3


def test_a_dead_worker_breaks_the_pool() -> None:
    started = time.monotonic()
    with worker_pool(2, _do_nothing) as pool, pytest.raises(BrokenProcessPool):
        list(in_order(pool, _die_or_sleep, [3, 0, 0], 2))
    assert time.monotonic() - started < 300


def _do_nothing() -> None:
    pass


def _signal_and_return_much(number: int) -> bytes:
    os.kill(os.getpid(), number)
    return MUCH


def _die_or_sleep(status: int) -> None:
    if status:
        os._exit(status)
    time.sleep(600)


def _tell_and_sleep(tell: Callable[[int], None]) -> None:
    tell(os.getpid())
    time.sleep(600)


def _in_a_pool() -> tuple[int, int]:
    with ProcessPoolExecutor(1) as pool:
        return os.getpid(), pool.submit(os.getpid).result()


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


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_raises_the_error(number: signal.Signals) -> None:
    """Exit code 75, so that a scheduler requeues it."""
    with (
        pytest.raises(InterruptedRunError, match=f"stopped by {number.name}") as caught,
        StopRequest(),
    ):
        _send(number)
    assert caught.value.exit_code == 75


def test_the_second_signal_does_not_disturb_the_clean_up() -> None:
    """Slurm sends USR1 first and TERM later, while the checkpoint is stored."""
    cleaned = False

    def run() -> None:
        nonlocal cleaned
        try:
            _send(signal.SIGUSR1)
        finally:
            _send(signal.SIGTERM)
            _send(signal.SIGINT)
            cleaned = True

    with pytest.raises(InterruptedRunError, match="SIGUSR1"), StopRequest():
        run()
    assert cleaned


def test_a_deferred_signal_is_raised_on_request() -> None:
    """During pacemaker, the loop that follows it checks for signals."""
    with StopRequest() as stop:
        assert stop.error() is None
        with stop.deferred():
            _send(signal.SIGTERM)
            error = stop.error()
        assert isinstance(error, InterruptedRunError)
        assert "SIGTERM" in error.message
        assert stop.received == signal.SIGTERM


def test_deferring_ends_with_its_block() -> None:
    """Also after an error inside; the next signal raises again."""
    with StopRequest() as stop:
        with pytest.raises(ValueError, match="x"), stop.deferred():
            raise ValueError("x")
        with pytest.raises(InterruptedRunError):
            _send(signal.SIGTERM)


def test_handlers_are_restored() -> None:
    heard: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    others = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGUSR1) is not others[signal.SIGUSR1]
        assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == others
        _send(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, previous)
