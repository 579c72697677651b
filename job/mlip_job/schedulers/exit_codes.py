"""What the exit code of ``mlip-job run`` means to whoever submitted it."""

from __future__ import annotations

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


def meaning_of(exit_code: int) -> ExitMeaning:
    """Return what an exit code other than 0 means."""
    return EXIT_CODES.get(exit_code, _OTHER)
