"""Slurm's states and reasons, in the terms of all schedulers and in words.

The names are those of ``squeue(1)`` and ``sacct(1)``. One that is not listed here is unknown, which
is not failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.schedulers.base import JobState
from mlip_job.schedulers.slurm.limits import limit_named

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTION = "submit.slurm"
"""Where the settings are that the tables below name."""

_STATES: Mapping[JobState, str] = {
    JobState.PENDING: "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT "
    "RESV_DEL_HOLD",
    JobState.RUNNING: "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED",
    JobState.SUCCEEDED: "COMPLETED",
    JobState.FAILED: "FAILED TIMEOUT NODE_FAIL BOOT_FAIL OUT_OF_MEMORY DEADLINE PREEMPTED",
    JobState.CANCELLED: "CANCELLED",
    JobState.UNKNOWN: "REVOKED",
}
STATES: Mapping[str, JobState] = {
    native: state for state, natives in _STATES.items() for native in natives.split()
}

ENDINGS: Mapping[str, tuple[str, bool]] = {
    "BOOT_FAIL": ("the node did not start", True),
    "DEADLINE": ("its deadline passed before it could end", False),
    "NODE_FAIL": ("the node failed", True),
    "OUT_OF_MEMORY": ("it used more memory than it had asked for (submit.slurm.mem)", False),
    "PREEMPTED": ("another job took its place, and this site does not requeue", True),
    "TIMEOUT": ("the time limit came before its checkpoint was saved", True),
}
"""How a job ended that did not end by itself, and whether to submit it again helps."""

REASONS: Mapping[str, str] = {
    "BadConstraints": "no node can ever have what it asks for",
    "BeginTime": "it starts again after the delay that follows a requeue",
    "Dependency": "the job before it has not succeeded yet",
    "DependencyNeverSatisfied": "the job that it had to wait for failed",
    "InvalidAccount": "the account may not be used (submit.slurm.account)",
    "InvalidQOS": "the QOS may not be used (submit.slurm.qos)",
    "JobArrayTaskLimit": "as many members run as may at a time",
    "JobHeldAdmin": "an administrator holds it back",
    "JobHeldUser": "it is held back; scontrol release lets it go",
    "JobHoldMaxRequeue": "it was requeued too often for this site; scontrol release lets it go",
    "Licenses": "it waits for a licence",
    "MaxMemPerLimit": "it asks for more memory than the site allows (submit.slurm.mem)",
    "NodeDown": "a node that it needs is down",
    "PartitionConfig": "no node of the partition can ever have what it asks for",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs",
    "PartitionNodeLimit": "it asks for more than the partition allows",
    "PartitionTimeLimit": "it asks for more time than the partition allows (submit.slurm.time)",
    "Priority": "other jobs come first",
    "QOSNotAllowed": "the partition does not take this QOS (submit.slurm.qos)",
    "QOSUsageThreshold": "the account has used more than the QOS takes (submit.slurm.qos)",
    "ReqNodeNotAvail": "nodes that it needs are not available, as for maintenance",
    "Reservation": "it waits for its reservation",
    "Resources": "no node is free yet",
    "launch failed requeued held": "its node could not start it; scontrol release tries again",
}
"""Why a job waits, where that is not a limit of an account or QOS; see `limit_named` for those."""

_NEVER = frozenset(
    {
        "BadConstraints",
        "DependencyNeverSatisfied",
        "InvalidAccount",
        "InvalidQOS",
        "MaxMemPerLimit",
        "PartitionConfig",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSNotAllowed",
    }
)
_CHANGE_IT = "cancel it, change that and submit it again"


def state_of(native: str) -> JobState:
    """Return what a state of Slurm's means; UNKNOWN for one that is not listed."""
    return STATES.get(native.rstrip("+"), JobState.UNKNOWN)


def is_live(native: str) -> bool:
    """Tell whether a job in this state waits or runs."""
    return state_of(native) in (JobState.PENDING, JobState.RUNNING)


def why(reason: str, section: str = SECTION) -> str:
    """Return a reason in words, with Slurm's own.

    Parameters
    ----------
    reason
        Slurm's.
    section
        Part of the configuration that the job's settings are in.
    """
    word = _word(reason)
    limit = limit_named(word)
    words = limit.reason if limit is not None else REASONS.get(word)
    return f"{_naming(words, section)} ({reason})" if words is not None else reason


def what_to_do(reason: str, section: str = SECTION) -> str | None:
    """Return what to do about a job that waits for a reason, where something has to be done."""
    if (limit := limit_named(_word(reason))) is not None:
        return _naming(limit.hint, section)
    return _CHANGE_IT if is_final(reason) else None


def is_final(reason: str) -> bool:
    """Tell whether no waiting removes a reason."""
    limit = limit_named(_word(reason))
    return limit.never if limit is not None else _word(reason) in _NEVER


def how_it_ended(native: str, section: str = SECTION) -> tuple[str, bool] | None:
    """Return how a job in this state ended, and whether to submit it again helps; or None.

    None stands for a job that ended by itself.
    """
    if native not in ENDINGS:
        return None
    words, again = ENDINGS[native]
    return _naming(words, section), again


def _word(reason: str) -> str:
    return reason.partition(",")[0].strip("()")


def _naming(words: str, section: str) -> str:
    """Name the settings in the section that the job has them from."""
    return words.replace(f"({SECTION}.", f"({section}.")
