"""Child processes, which end with this one, and the stop signals, which this one alone handles."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mlip_job.errors import InterruptedRunError
from mlip_job.runtime.environment import thread_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from multiprocessing.connection import Connection
    from types import FrameType

    from mlip_job.errors import MlipJobError

Work = TypeVar("Work")
Result = TypeVar("Result")

# Slurm sends TERM (or what --signal names), Kubernetes TERM, a terminal INT.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SECONDS_TO_END = 5.0
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
_LIBC = ctypes.CDLL(None)  # loaded here: it can't be between fork and exec


class StopRequest:
    """Context manager in which the first stop signal raises `InterruptedRunError`.

    ``received`` is that signal, or None. Later signals are ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {n: signal.signal(n, self._handle) for n in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal only sets `received`, which the block has to check often."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def error(self) -> InterruptedRunError | None:
        """Return the error to end with, if a signal has come."""
        if self.received is None:
            return None
        return InterruptedRunError(
            f"stopped by {self.received.name}; nothing was published",
            hint="run the same command again",
        )

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = signal.Signals(number)
        if not self._deferred and (error := self.error()) is not None:
            raise error


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
    on_message: Callable[[Any], None] | None = None,
) -> Result:
    """Call a function in a new process, which is killed if this call is interrupted.

    Its memory is free afterwards. Function and arguments are pickled. With `on_message`, the
    function gets a callable as its first argument, and `on_message` receives what is sent with it.

    Raises
    ------
    Exception
        What the function raised; or `died` if the process dies, with the signal or exit status
        added to its message. The hint of `died` is for a process that was killed, most likely for
        its memory.
    """
    context = _Context()
    ours, theirs = context.Pipe()
    # Not a daemon, which could not start processes itself.
    process = context.Process(target=_work, args=(theirs, os.getpid()))
    try:
        with stop_signals_blocked():
            process.start()
        theirs.close()
        # Not as arguments of the process: if it died early, start() would wait forever.
        with suppress(ConnectionError):
            ours.send((function, arguments, on_message is not None))
        outcome, value = ours.recv()
        while outcome == "message" and on_message is not None:
            on_message(value)
            outcome, value = ours.recv()
    except (EOFError, ConnectionError):
        process.join(_SECONDS_TO_END)
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


def worker_pool(
    count: int, initialise: Callable[..., None], *arguments: Any
) -> ProcessPoolExecutor:
    """Return a pool of processes, each of which calls `initialise` first."""
    return ProcessPoolExecutor(
        count,
        mp_context=_Context(),
        initializer=_start_worker,
        initargs=(os.getpid(), initialise, arguments),
    )


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


@contextmanager
def starting_workers(count: int) -> Iterator[None]:
    """Start the processes of a pool, which share this one's threads and leave signals to it.

    Each reads its number of threads when it loads its numerical libraries.
    """
    before = os.environ.copy()
    threads = {name: int(text) for name, text in thread_counts().items() if text.isdecimal()}
    os.environ.update({name: str(max(1, n // count)) for name, n in threads.items()})
    try:
        with stop_signals_blocked():
            yield
    finally:
        for name in threads:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes that never see them, as ending the job is for the job's own process.

    Slurm signals all processes of a job. A worker that is killed while it sends a result leaves
    half a message, and its pool waits forever for the other half.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process(SpawnProcess):
    """A process with the stop signals blocked; a broken pool ends its processes by `terminate`."""

    def terminate(self) -> None:
        self.kill()


class _Context(SpawnContext):
    """A fork would copy locks that other threads hold: the heartbeat's, an S3 client's."""

    Process = _Process


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return ", most likely out of memory"
    if code is not None and code < 0:
        return f" of {signal.Signals(-code).name}"
    return f" with exit status {code}"


def _work(connection: Connection, parent: int) -> None:
    _die_with(parent)
    function, arguments, sends = connection.recv()
    if sends:
        arguments = (lambda value: connection.send(("message", value)), *arguments)
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
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Do so in a spawned process, whose parent may have ended already."""
    _die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
