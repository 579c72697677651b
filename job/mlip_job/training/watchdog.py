"""Notice a pacemaker that hangs: no iteration, no output, no use of the CPU."""

from __future__ import annotations

import os
from pathlib import Path

_IDLE_FRACTION = 0.01  # of one core; what a sleeping process uses at most
_CHECKS_PER_TIMEOUT = 60


class Watchdog:
    """Looks at one session of processes.

    Parameters
    ----------
    session
        Its id.
    timeout
        Seconds without any sign of life that are too many.
    now
        The time, s.
    """

    def __init__(self, session: int, timeout: float, now: float) -> None:
        self._session = session
        self._timeout = timeout
        self._alive = self._checked = now
        self._cpu = 0.0
        self._seen: object = None

    def is_stalled(self, seen: object, now: float) -> bool:
        """Tell whether nothing has happened for too long.

        Parameters
        ----------
        seen
            Whatever changes when something happens: rows, bytes of output.
        now
            The time, s.
        """
        if seen != self._seen:
            self._seen, self._alive = seen, now
        if now - self._checked >= self._timeout / _CHECKS_PER_TIMEOUT:
            cpu = session_cpu_seconds(self._session)
            if cpu - self._cpu > _IDLE_FRACTION * (now - self._checked):
                self._alive = now
            self._cpu, self._checked = cpu, now
        return now - self._alive > self._timeout


def session_cpu_seconds(session: int) -> float:
    """Return the CPU time that the living processes of a session have used (proc(5), stat)."""
    ticks = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            text = (directory / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))  # its own and its ended children's
    return ticks / os.sysconf("SC_CLK_TCK")
