"""The stage before pacemaker where ``training.linear_start`` is set: a linear fit to begin with."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mlip_job.errors import MlipJobError, TrainingError
from mlip_job.processes import Beside
from mlip_job.training.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.training.linear_task import LinearProgress, LinearStart, LinearTask


def run_linear_fit(task: LinearTask, observe: Callable[[LinearProgress], None]) -> LinearStart:
    """Make the potential that a task describes, in a process that ends with this call.

    Its memory is free when pacemaker starts, and a stop signal, which raises here, ends it at once.

    Parameters
    ----------
    task
        What to fit, and to what.
    observe
        Called as it proceeds.

    Raises
    ------
    ConfigError
        If python-ace is not installed.
    TrainingError
        If the fit fails; a fit from nothing is no substitute that anybody asked for.
    """
    find_program("pacemaker")  # python-ace comes with it
    died = TrainingError(
        "the process of the linear start died, most likely out of memory",
        hint="give the job more memory, or set training.linear_start: false",
    )
    with Beside(_fit, task, died=died, told=observe) as fit:
        return fit.result()


def _fit(tell: Callable[[LinearProgress], None], task: LinearTask) -> LinearStart:
    # Standard output is for what the job itself says.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        from mlip_job.training.linear_fit import fit_linear  # noqa: PLC0415 - numpy and pyace

        return fit_linear(tell, task)
    except MlipJobError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever pyace or numpy raise
        raise _in_words(error) from None


def _in_words(error: Exception) -> MlipJobError:
    cause = f"{type(error).__name__}: {error}".rstrip(": ")
    return TrainingError(
        f"the linear start failed: {cause}", hint="set training.linear_start: false to do without"
    )
