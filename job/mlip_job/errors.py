"""The errors of this package and their exit codes.

::

    MlipJobError                    1   a bug of ours, if it is ever seen bare
    ├── ConfigError                64   configuration or usage
    ├── DataError                  65   the data can't be trained on
    │   └── IntegrityError         65   a stored object is not what its record says
    ├── UnavailableError           69   store, database or disk can't be used now: worth a retry
    │   ├── DatabaseError
    │   ├── DiskError
    │   └── StoreError
    │       ├── ObjectNotFoundError
    │       ├── ObjectExistsError
    │       └── ObjectChangedError
    ├── TrainingError              70   the trainer failed, or its result is no potential
    ├── GpuRequiredError           71   a GPU was required and none was seen
    ├── ConflictError              73   the generation exists, or is being trained elsewhere
    └── InterruptedRunError        75   stopped by a signal: start it again

A caller who wants all of them::

    try:
        run_generation(config, generation=4)
    except MlipJobError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)

The numbers are those of BSD's ``sysexits.h`` where one fits, so that a scheduler can distinguish
"try again" (69, 75) from "a person must look" (64, 65, 70, 71, 73).
"""

from __future__ import annotations

from typing import ClassVar


class MlipJobError(Exception):
    """Base of every error shown to the user as one readable message.

    The message says what is wrong, and where (row id, file, key); the hint what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(MlipJobError):
    """The configuration or the command line is wrong."""

    exit_code = 64


class DataError(MlipJobError):
    """The data can't be trained on."""

    exit_code = 65


class IntegrityError(DataError):
    """A stored object differs from its record: wrong hash, wrong size or missing."""


class UnavailableError(MlipJobError):
    """A store, a database or a disk can't be used; the same call may work later.

    It is transient if the call may work within seconds, so that it is worth repeating at once.
    """

    exit_code = 69

    def __init__(self, message: str, *, hint: str | None = None, transient: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.transient = transient


class DatabaseError(UnavailableError):
    """The database can't be opened or read."""


class DiskError(UnavailableError):
    """A disk of this machine can't be written: it is full, turned read-only or fails."""


class StoreError(UnavailableError):
    """The object store can't be reached, read or written."""


class ObjectNotFoundError(StoreError):
    """No object has this key."""


class ObjectExistsError(StoreError):
    """A create-only write found an object under its key."""


class ObjectChangedError(StoreError):
    """A compare-and-swap write found a version other than the expected one."""


class TrainingError(MlipJobError):
    """Pacemaker failed, or produced no usable potential."""

    exit_code = 70


class GpuRequiredError(MlipJobError):
    """A GPU was required and TensorFlow sees none."""

    exit_code = 71


class ConflictError(MlipJobError):
    """The generation exists with other content, or is being trained elsewhere."""

    exit_code = 73


class InterruptedRunError(MlipJobError):
    """A signal stopped the run; starting it again is safe."""

    exit_code = 75
