"""Why a fit failed, in words."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from mlip_job.training.log import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.training.log_state import LogState

DIVERGED = (
    "it diverged: the loss is not finite; look for structures with extreme forces "
    "(dataset.max_force), reduce the basis or raise training.l2_coeffs, then run with --fresh"
)
"""What to say of a loss that is no number, with the next step to try."""

_SHELL_SIGNAL_BASE = 128  # a shell reports death by signal n as 128 + n

# What python-ace 0.4 says, and what it means.
_MEANINGS: Mapping[str, str] = {
    "energy_corrected contains NaNs": "an energy in the dataset is NaN",
    "column contains NaN": "forces in the dataset hold NaN",
    "Neither 'energy_corrected' column": "the dataset has no energy_corrected column and the input "
    "gives no data.reference_energy",
    "has no attribute 'query_data'": "the input has no backend section",
    "No such file or directory": "a file is missing",
    "ParserError": "the input is not valid YAML",
    "ScannerError": "the input is not valid YAML",
    "UnpicklingError": "a dataset is no gzip-pickled data frame",
    "No space left on device": "the disk is full",
    "Disk quota exceeded": "the disk's quota is used up",
    "'ConcatV2' Op with length 0": "an element has no function of three bodies while others do: "
    "raise training.functions_per_element",
    "IndexError": "the basis may have no functions for some combination of elements",
}


def describe_exit(exit_code: int) -> str | None:
    """Return what an exit code says by itself: which signal ended the process, if one did."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL_SIGNAL_BASE
    try:
        name = signal.Signals(number).name
    except ValueError:
        return None
    if name == "SIGKILL":
        return (
            "killed by SIGKILL: out of memory, or by the scheduler; give the job more memory or "
            "reduce training.batch_size"
        )
    return f"ended by {name}"


def _describe_memory(state: LogState) -> str:
    """Name what is left to reduce; pacemaker reduces batches by itself where TensorFlow says so."""
    smallest = min((size for sizes in state.batch_sizes for size in sizes if size), default=None)
    if smallest == 1:
        return (
            "out of memory even with one structure at a time: reduce the basis "
            "(training.functions_per_element), or leave out the largest structures"
        )
    tried = f" down to a batch of {smallest}" if smallest else ""
    return (
        f"out of memory{tried}: reduce training.batch_size or the basis, or give the job more "
        "memory"
    )


def describe_failure(state: LogState, exit_code: int | None) -> str | None:
    """Return the cause of a failure as far as log and exit code tell, None where they show none.

    Parameters
    ----------
    state
        What the log says.
    exit_code
        Of pacemaker; None where it is not known.
    """
    # TensorFlow logs memory that it asks for and can do without: the exception decides.
    out_of_memory = is_out_of_memory(state.exception) if state.exception else state.out_of_memory
    if out_of_memory and not state.potential_saved:
        return _describe_memory(state)
    if exit_code not in (None, 0) and (by_signal := describe_exit(exit_code or 0)):
        return by_signal
    if state.exception is not None:
        meaning = next((m for sign, m in _MEANINGS.items() if sign in state.exception), None)
        return f"{meaning} ({state.exception})" if meaning else state.exception
    return None
