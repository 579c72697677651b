"""Counts of the fault suite for the end of its output: a pytest plugin."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import pytest


@dataclass
class Tally:
    """Counts over all tests of a session."""

    kill_points: int = 0
    iterations_lost: int = 0  # iterations repeated
    iterations_done: int = 0
    publishes: int = 0
    duplicates: int = 0  # generations published more than once
    races: int = 0  # concurrent jobs for one generation
    s3_faults: int = 0

    def count_end(self, texts: list[str], iterations: int) -> None:
        said = sum(text.count("published gen_01 in ") for text in texts)
        self.publishes += 1
        self.duplicates += max(0, said - 1)
        self.iterations_done += iterations

    def add(self, other: Tally) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        return (
            f"{self.kill_points} kill points, {self.iterations_lost} of {self.iterations_done} "
            f"iterations lost, {self.races} jobs raced, {self.s3_faults} S3 requests failed, "
            f"{self.publishes} publishes, duplicates = {self.duplicates}"
        )


TALLY = pytest.StashKey[Tally]()
_FROM_WORKER = "fault_tally"


@pytest.hookimpl
def pytest_sessionfinish(session: pytest.Session) -> None:
    tally = session.config.stash.get(TALLY, None)
    if tally is not None and hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_FROM_WORKER] = asdict(tally)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    counts = getattr(node, "workeroutput", {}).get(_FROM_WORKER)
    if counts is not None:
        node.config.stash.setdefault(TALLY, Tally()).add(Tally(**counts))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tally = config.stash.get(TALLY, None)
    if tally is not None:
        terminalreporter.section("fault suite")
        terminalreporter.write_line(str(tally))
