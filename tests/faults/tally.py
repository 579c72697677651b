"""What the fault suite did, for the end of its output: a plugin of pytest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import pytest


@dataclass
class Tally:
    """Counts over all tests of a session.

    Attributes
    ----------
    kill_points
        How often a job was killed or stopped.
    iterations_lost, iterations_done
        Training that had to be done again, and all that was done.
    publishes, duplicates
        Generations that were published, and how many of them more than once.
    races
        Jobs that were started at once for one generation.
    s3_faults
        Requests to an S3 server that were failed on purpose.
    """

    kill_points: int = 0
    iterations_lost: int = 0
    iterations_done: int = 0
    publishes: int = 0
    duplicates: int = 0
    races: int = 0
    s3_faults: int = 0

    def count_end(self, texts: list[str], iterations: int) -> None:
        """Count one generation that was brought to its end, by what its jobs said."""
        said = sum(text.count("published gen_01 in ") for text in texts)
        self.publishes += 1
        self.duplicates += max(0, said - 1)
        self.iterations_done += iterations

    def add(self, other: Tally) -> None:
        """Add what another process counted."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        """Return the summary line."""
        return (
            f"{self.kill_points} kill points, {self.iterations_lost} of {self.iterations_done} "
            f"iterations lost, {self.races} jobs raced, {self.s3_faults} S3 requests failed, "
            f"{self.publishes} publishes, duplicates = {self.duplicates}"
        )


TALLY = pytest.StashKey[Tally]()
_FROM_WORKER = "fault_tally"


@pytest.hookimpl
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of a process of pytest-xdist to the one that prints them."""
    tally = session.config.stash.get(TALLY, None)
    if tally is not None and hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_FROM_WORKER] = asdict(tally)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Add the counts of a process of pytest-xdist."""
    counts = getattr(node, "workeroutput", {}).get(_FROM_WORKER)
    if counts is not None:
        node.config.stash.setdefault(TALLY, Tally()).add(Tally(**counts))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what the fault suite did."""
    tally = config.stash.get(TALLY, None)
    if tally is not None:
        terminalreporter.section("fault suite")
        terminalreporter.write_line(str(tally))
