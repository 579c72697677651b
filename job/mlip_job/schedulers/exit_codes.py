"""What the exit code of ``mlip-job run`` means to whoever submitted it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import (
    ConfigError,
    ConflictError,
    DataError,
    GpuRequiredError,
    InterruptedRunError,
    MlipJobError,
    TrainingError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class ExitMeaning:
    """What became of a run.

    Attributes
    ----------
    reason
        In words.
    again
        Whether the same run may succeed if it is started again, without a person's help.
    error
        The kind of error that the run ended with.
    """

    reason: str
    again: bool
    error: type[MlipJobError]


EXIT_CODES: Mapping[int, ExitMeaning] = {
    64: ExitMeaning("the configuration or the command line is wrong", False, ConfigError),
    65: ExitMeaning("the data can't be trained on, or an object is damaged", False, DataError),
    69: ExitMeaning("the store or the database was unavailable", True, UnavailableError),
    70: ExitMeaning("the training failed", False, TrainingError),
    71: ExitMeaning("a GPU is required and TensorFlow saw none", False, GpuRequiredError),
    73: ExitMeaning("the generation exists or is trained elsewhere", False, ConflictError),
    75: ExitMeaning("it was stopped, its checkpoint is saved", True, InterruptedRunError),
    126: ExitMeaning("the program to run can't be executed on the node", False, ConfigError),
    127: ExitMeaning("the program to run was not found on the node", False, ConfigError),
    137: ExitMeaning("it was killed, as for using too much memory", False, TrainingError),
}
"""126, 127 and 137 are the shell's: no program, and ended by SIGKILL."""

_OTHER = ExitMeaning("it failed without saying why", False, MlipJobError)
_INTERRUPTING = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
"""What a person or a scheduler stops a run with."""


def meaning_of(exit_code: int) -> ExitMeaning:
    """Return what an exit code other than 0 means."""
    return EXIT_CODES.get(exit_code) or _by_signal(exit_code - 128) or _OTHER


def _by_signal(number: int) -> ExitMeaning | None:
    """Return what a shell's code for a process means that a signal ended."""
    try:
        found = signal.Signals(number)
    except ValueError:
        return None
    if found in _INTERRUPTING:
        return ExitMeaning(f"it was interrupted by {found.name}", True, InterruptedRunError)
    return ExitMeaning(f"it was ended by {found.name}", False, TrainingError)
