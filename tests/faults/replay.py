"""Faults that shorten a job: a replayed pacemaker, and short waits between retries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults import replay_program as program

# The recorded fit: a ladder of three steps of eight iterations.
REPLAYED = {"functions_per_element": 15, "max_iter": 8, "linear_start": False, "ladder_step": 5}
REPLAYED_ITERATIONS = 24


def replayed_pacemaker(
    directory: Path, first: str = ":", *, iteration_s: float = 0.01
) -> Callable[[], None]:
    """Return a fault that replaces pacemaker by the replay; `first` is a line of shell."""
    folder = directory / f"programs-{iteration_s}"
    folder.mkdir(exist_ok=True)
    for name in ("pacemaker", "pace_yaml2yace"):
        script = folder / name
        before = first if name == "pacemaker" else ":"
        command = f'exec {sys.executable} {program.__file__} {iteration_s} "$@"'
        script.write_text(f"#!/bin/sh\n{before}\n{command}\n")
        script.chmod(0o755)

    def install() -> None:
        from mlip_job.generation import publish
        from mlip_job.training import process as child
        from mlip_job.training import programs
        from tests.evaluations import make_uniform_evaluation

        child._POLL_SECONDS = 0.02
        programs.find_program = lambda name: folder / name
        # The replayed fit was made to other data.
        publish.evaluate_generation = lambda *_: make_uniform_evaluation()

    return install


def retry_soon() -> None:
    from botocore.retries.standard import ExponentialBackoff

    from mlip_job import retry
    from mlip_job.store import s3

    retry.FIRST_WAIT_SECONDS = 0.02
    s3._READ_TIMEOUT_SECONDS = 1
    ExponentialBackoff.delay_amount = lambda *_: 0.02


def both(*faults: Callable[[], None]) -> Callable[[], None]:
    def install() -> None:
        for fault in faults:
            fault()

    return install
