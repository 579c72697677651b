"""Processes of a job's own: they end with it, and leave the scheduler's signals to it."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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
