"""What jobs in tests find changed so that they end soon: pacemaker, and how long they wait."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.faults import standin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# A fit that the stand-in replays: a ladder of three steps of eight iterations.
REPLAYED = {"functions_per_element": 15, "max_iter": 8, "linear_start": False, "ladder_step": 5}
REPLAYED_ITERATIONS = 24


def stand_in_for_pacemaker(
    directory: Path, first: str = ":", *, iteration_s: float = 0.01
) -> Callable[[], None]:
    """Make programs of pacemaker's names that run the stand-in; return what has a job use them.

    Parameters
    ----------
    directory
        Where to make them.
    first
        A line of shell that pacemaker's runs before.
    iteration_s
        How long an iteration takes.
    """
    folder = directory / f"programs-{iteration_s}"
    folder.mkdir(exist_ok=True)
    for name in ("pacemaker", "pace_yaml2yace"):
        program = folder / name
        before = first if name == "pacemaker" else ":"
        command = f'exec {sys.executable} {standin.__file__} {iteration_s} "$@"'
        program.write_text(f"#!/bin/sh\n{before}\n{command}\n")
        program.chmod(0o755)

    def at_speed() -> None:
        from mlip_job.generation import publish
        from mlip_job.training import process as child
        from mlip_job.training import programs
        from mlip_job.training.pacemaker import process
        from tests.plain_evaluations import make_evaluation

        child._POLL_SECONDS = 0.02
        find = process.find_program = lambda name: folder / name  # type: ignore[assignment]
        programs.find_program = find
        # What is replayed was fitted to other data.
        publish.evaluate_generation = lambda *_: make_evaluation()

    return at_speed


def wait_little() -> None:
    """Have a job repeat what failed without long pauses, and give a hanging server up soon."""
    from botocore.retries.standard import ExponentialBackoff

    from mlip_job import retry
    from mlip_job.store import s3

    retry._FIRST_WAIT_SECONDS = 0.02
    s3._READ_TIMEOUT_SECONDS = 1
    ExponentialBackoff.delay_amount = lambda *_: 0.02


def both(*faults: Callable[[], None]) -> Callable[[], None]:
    """Return a fault that is all of these."""

    def install() -> None:
        for fault in faults:
            fault()

    return install
