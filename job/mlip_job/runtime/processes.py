"""Child processes: they end with this one, which alone handles the scheduler's signals."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from mlip_job.runtime.environment import thread_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from multiprocessing.connection import Connection

    from mlip_job.errors import MlipJobError

Work = TypeVar("Work")
Result = TypeVar("Result")
_SECONDS_FOR_A_SIGNAL = 0.5
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
_LIBC = ctypes.CDLL(None)  # loaded here: it can't be between fork and exec


def start_program(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a new session, without input.

    If this process is killed the kernel ends the program, so that no GPU stays busy.
    """
    return subprocess.Popen(  # noqa: S603 - callers pass fixed programs
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call into libc, no lock taken
        **options,
    )


def run_in_process(
    function: Callable[..., Result],
    *arguments: Any,
    died: MlipJobError,
    told: Callable[[Any], None] | None = None,
) -> Result:
    """Call a function in a new process, which is killed if this call is interrupted.

    Its memory is free afterwards. Function and arguments are pickled.

    Parameters
    ----------
    died
        Raised if the process dies; the signal or exit status is added to its message, and its hint
        is for a process that was killed, most likely for its memory.
    told
        Called with the messages of the function, which gets a callable to send them as its first
        argument.

    Raises
    ------
    Exception
        The exception that the function raised, or `died`.
    """
    # A fork would copy locks that other threads hold: the heartbeat's, an S3 client's.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Not a daemon, which could not start processes itself.
    process = context.Process(target=_work, args=(theirs, os.getpid()))
    try:
        with stop_signals_blocked():
            process.start()
        theirs.close()
        # Not as arguments of the process: if it died early, start() would wait forever.
        with suppress(ConnectionError):
            ours.send((function, arguments, told is not None))
        outcome, value = ours.recv()
        while outcome == "told" and told is not None:
            told(value)
            outcome, value = ours.recv()
    except (EOFError, ConnectionError):
        # Perhaps a signal was sent to all processes of the job; then our own handler raises.
        time.sleep(_SECONDS_FOR_A_SIGNAL)
        process.join(_SECONDS_FOR_A_SIGNAL)
        died.message += _cause_of_death(process.exitcode)
        if process.exitcode != -signal.SIGKILL:
            died.hint = None
        raise died from None
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()
    if outcome == "raised":
        raise value
    result: Result = value
    return result


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return ", most likely out of memory"
    if code is not None and code < 0:
        return f" of {signal.Signals(-code).name}"
    return f" with exit status {code}"


def worker_pool(
    count: int, initialise: Callable[..., None], *arguments: Any
) -> ProcessPoolExecutor:
    """Return a pool of processes, each of which calls `initialise` first."""
    return ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), initialise, arguments),
    )


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


def _work(connection: Connection, parent: int) -> None:
    _die_with(parent)
    function, arguments, tells = connection.recv()
    if tells:
        arguments = (lambda value: connection.send(("told", value)), *arguments)
    try:
        outcome = "returned", function(*arguments)
    except Exception as error:  # noqa: BLE001 - re-raised in the caller
        outcome = "raised", error
    connection.send(outcome)


def _start_worker(parent: int, initialise: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _die_with(parent)
    initialise(*arguments)


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent ends; callable between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _die_with(parent: int) -> None:
    """Do so in a spawned process, whose parent may have ended already."""
    _die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
