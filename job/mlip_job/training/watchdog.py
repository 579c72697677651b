"""Notice a pacemaker that hangs: no iteration, no output, no use of the CPU."""

from __future__ import annotations

import os
from pathlib import Path

_IDLE_FRACTION = 0.01  # of one core; what a sleeping process uses at most
_CHECKS_PER_TIMEOUT = 60
_LONGEST_LOOK_SECONDS = 10.0  # between two looks; this process was suspended if it was longer


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
        self._looked = self._checked = now
        self._idle = 0.0
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
        # Whoever was suspended for hours, and pacemaker with it, has not hung for hours.
        self._idle += min(now - self._looked, _LONGEST_LOOK_SECONDS)
        self._looked = now
        if seen != self._seen or self._uses_cpu(now):
            self._seen, self._idle = seen, 0.0
        return self._idle > self._timeout

    def _uses_cpu(self, now: float) -> bool:
        """Look now and then, since it costs a walk through all processes."""
        elapsed = now - self._checked
        if elapsed < self._timeout / _CHECKS_PER_TIMEOUT:
            return False
        before, self._cpu, self._checked = self._cpu, session_cpu_seconds(self._session), now
        return self._cpu - before > _IDLE_FRACTION * elapsed


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
