"""The stage before pacemaker where ``training.linear_start`` is set: a linear fit to begin with."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from typing import TYPE_CHECKING

from mlip_job.errors import MlipJobError, TrainingError
from mlip_job.processes import die_with_parent, stop_signals_blocked
from mlip_job.training.programs import find_program

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from mlip_job.training.linear_task import LinearStart, LinearTask

_SECONDS_FOR_A_SIGNAL = 0.5


def run_linear_fit(task: LinearTask) -> LinearStart:
    """Make the potential that a task describes, in a process that ends with this call.

    Its memory is free when pacemaker starts, and a stop signal, which raises here, ends it at once.

    Raises
    ------
    ConfigError
        If python-ace is not installed.
    TrainingError
        If the fit fails; a fit from nothing is no substitute that anybody asked for.
    """
    find_program("pacemaker")  # python-ace comes with it
    # A fork would copy locks that other threads hold: the heartbeat's, an S3 client's.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, sender))
    with stop_signals_blocked():
        process.start()
    sender.close()
    try:
        outcome: LinearStart | MlipJobError = receiver.recv()
    except EOFError:
        # Perhaps a signal was sent to all processes of the job; then our own handler raises.
        time.sleep(_SECONDS_FOR_A_SIGNAL)
        raise TrainingError(
            "the process of the linear start died, most likely out of memory",
            hint="give the job more memory, or set training.linear_start: false",
        ) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(outcome, MlipJobError):
        raise outcome
    return outcome


def _work(task: LinearTask, sender: Connection) -> None:
    die_with_parent()
    # Standard output is for what the job itself says.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        from mlip_job.training.linear_fit import fit_linear  # noqa: PLC0415 - numpy and pyace

        sender.send(fit_linear(task))
    except Exception as error:  # noqa: BLE001 - whatever pyace or numpy raise
        sender.send(_in_words(error))


def _in_words(error: Exception) -> MlipJobError:
    cause = f"{type(error).__name__}: {error}".rstrip(": ")
    return TrainingError(
        f"the linear start failed: {cause}", hint="set training.linear_start: false to do without"
    )
