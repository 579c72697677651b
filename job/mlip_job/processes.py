"""Processes of a job's own: they end with it, and leave the scheduler's signals to it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from mlip_job.environment import thread_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType

    from mlip_job.errors import MlipJobError

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


class Beside(Generic[Result]):
    """A function that runs in a process of its own, at most as long as a with block lasts.

    Parameters
    ----------
    function, arguments
        What is called there; both are pickled.
    died
        Raised where that process dies.
    """

    def __init__(
        self, function: Callable[..., Result], *arguments: Any, died: MlipJobError
    ) -> None:
        # A fork would copy locks that other threads hold: the heartbeat's, an S3 client's.
        context = multiprocessing.get_context("spawn")
        self._task = function, arguments
        self._died = died
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
            succeeded, outcome = self._ours.recv()
        except (EOFError, ConnectionError):
            # Perhaps a signal was sent to all processes of the job; then our own handler raises.
            time.sleep(_SECONDS_FOR_A_SIGNAL)
            raise self._died from None
        if not succeeded:
            raise outcome
        result: Result = outcome
        return result


def _work(connection: Connection, parent: int) -> None:
    die_with(parent)
    function, arguments = connection.recv()
    try:
        outcome = True, function(*arguments)
    except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
        outcome = False, error
    connection.send(outcome)
