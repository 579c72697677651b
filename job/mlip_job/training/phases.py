"""How long pacemaker's phases take, by the stamps of its log."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from mlip_job.training.log_state import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.training.log import LogParser
    from mlip_job.training.log_state import LogState


def phase_seconds(
    state: LogState, begun: datetime | None = None, until: datetime | None = None
) -> dict[str, float]:
    """Return the seconds in each phase, those of a ladder's steps added up.

    Parameters
    ----------
    state
        What the log says.
    begun
        When the process was started, where that is known: its first line comes after its imports.
    until
        When it had ended, or now; else the last stamp is the end.
    """
    phases = list(state.phases)
    if begun is not None:
        phases = [(Phase.STARTING, begun), *phases]
    end = until if until is not None else state.last_time
    ends = [*(time for _, time in phases[1:]), *([end] if phases and end is not None else [])]
    return added(
        *(
            {phase.value: (stop - start).total_seconds()}
            for (phase, start), stop in zip(phases, ends, strict=False)
        )
    )


def added(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return the sums by name, in the order in which the names come first."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.items():
            sums[name] = round(sums.get(name, 0.0) + seconds, 3)
    return sums


class _Start(NamedTuple):
    ended: dict[str, float]
    log: LogParser | None
    begun: datetime


class PhaseClock:
    """Adds up the phases of all starts of pacemaker; may be asked by another thread.

    Attributes
    ----------
    first_start
        When pacemaker was started first, by `time.monotonic`; None before.
    """

    def __init__(self) -> None:
        self.first_start: float | None = None
        self._now = _Start({}, None, _local_time())

    def start(self, log: LogParser) -> None:
        """Note that pacemaker is started; `log` follows what it prints."""
        if self.first_start is None:
            self.first_start = time.monotonic()
        self._now = _Start(self.seconds(), log, _local_time())

    def end(self) -> None:
        """Note that it has ended."""
        self._now = _Start(self.seconds(), None, _local_time())

    def seconds(self) -> dict[str, float]:
        """Return the seconds in each phase so far."""
        ended, log, begun = self._now
        if log is None:
            return ended
        return added(ended, phase_seconds(log.state, begun, _local_time()))


def _local_time() -> datetime:
    return datetime.now()  # noqa: DTZ005 - as pacemaker stamps its log
