"""Processes of a job's own: they end with it, and leave the scheduler's signals to it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from mlip_job.runtime.environment import thread_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ProcessPoolExecutor
    from multiprocessing.connection import Connection
    from types import TracebackType

    from mlip_job.errors import MlipJobError

Work = TypeVar("Work")


Result = TypeVar("Result")


_SECONDS_FOR_A_SIGNAL = 0.5


_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


_LIBC = ctypes.CDLL(None)  # loaded here: it can't be between fork and exec


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that happens.

    May be called between fork and exec, where only what can't block may be done.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def die_with(parent: int) -> None:
    """Do so in a process that was spawned, also where its parent has ended meanwhile.

    Parameters
    ----------
    parent
        Its process id, which it passed on.
    """
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes that never see them: ending the job is for the job's own process.

    SIGTERM is none of them, by which a pool, or the kernel when their parent dies, ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGUSR1))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def starting_workers(count: int) -> Iterator[None]:
    """Start the processes of a pool, which share this one's threads and leave signals to it.

    Each reads its number of threads when it loads its numerical libraries.
    """
    threads = thread_counts()
    shared = {n: str(max(1, int(t) // count)) for n, t in threads.items() if t.isdecimal()}
    before = {name: os.environ.get(name) for name in shared}
    os.environ.update(shared)
    try:
        with stop_signals_blocked():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def in_order(
    pool: ProcessPoolExecutor,
    function: Callable[[Work], Result],
    work: Iterable[Work],
    processes: int,
) -> Iterator[Result]:
    """Map a function over work, which is read two items for each process ahead of the results."""
    waiting: deque[Future[Result]] = deque()
    for item in work:
        if len(waiting) > 2 * processes:
            yield waiting.popleft().result()
        with starting_workers(processes):
            waiting.append(pool.submit(function, item))
    while waiting:
        yield waiting.popleft().result()


class Beside(Generic[Result]):
    """A function that runs in a process of its own, at most as long as a with block lasts.

    Parameters
    ----------
    function, arguments
        What is called there; both are pickled.
    died
        Raised where that process dies.
    told
        Called, while the result is waited for, with what the function tells: it gets a callable
        to do so as its first argument then.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        *arguments: Any,
        died: MlipJobError,
        told: Callable[[Any], None] | None = None,
    ) -> None:
        # A fork would copy locks that other threads hold: the heartbeat's, an S3 client's.
        context = multiprocessing.get_context("spawn")
        self._task = function, arguments, told is not None
        self._died = died
        self._told = told
        self._ours, self._theirs = context.Pipe()
        # No daemon: that could not start processes itself.
        self._process = context.Process(target=_work, args=(self._theirs, os.getpid()))

    def __enter__(self) -> Self:
        try:
            with stop_signals_blocked():
                self._process.start()
            self._theirs.close()
            # Not as arguments of the process: if it died early, start() would wait for ever.
            with suppress(ConnectionError):
                self._ours.send(self._task)
        except BaseException:  # a stop signal, too, may raise here
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._ours.close()

    def result(self) -> Result:
        """Wait for the function's result.

        Raises
        ------
        Exception
            What it raised, or `died`.
        """
        try:
            outcome, value = self._ours.recv()
            while outcome == "told" and self._told is not None:
                self._told(value)
                outcome, value = self._ours.recv()
        except (EOFError, ConnectionError):
            # Perhaps a signal was sent to all processes of the job; then our own handler raises.
            time.sleep(_SECONDS_FOR_A_SIGNAL)
            raise self._died from None
        if outcome == "raised":
            raise value
        result: Result = value
        return result


def _work(connection: Connection, parent: int) -> None:
    die_with(parent)
    function, arguments, tells = connection.recv()
    if tells:
        arguments = (lambda value: connection.send(("told", value)), *arguments)
    try:
        outcome = "returned", function(*arguments)
    except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
        outcome = "raised", error
    connection.send(outcome)
