"""Translate Slurm's states, exit codes and rejections to the terms of all schedulers.

The names are those of ``squeue(1)`` and ``sacct(1)``. A state that is not listed is unknown, which
is not failure. A reason is Slurm's own word: https://slurm.schedmd.com/job_reason_codes.html
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.schedulers.base import JobState, JobStatus
from mlip_job.schedulers.records import failed_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.schedulers.records import Ended

SECTION = "submit.slurm"
"""The part of the configuration with the settings of a job that uses a GPU."""

_STATES: Mapping[JobState, str] = {
    JobState.PENDING: "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT "
    "RESV_DEL_HOLD",
    JobState.RUNNING: "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED",
    JobState.SUCCEEDED: "COMPLETED",
    JobState.FAILED: "FAILED TIMEOUT NODE_FAIL BOOT_FAIL OUT_OF_MEMORY DEADLINE PREEMPTED",
    JobState.CANCELLED: "CANCELLED",
    JobState.UNKNOWN: "REVOKED",
}
_BY_NAME = {native: state for state, natives in _STATES.items() for native in natives.split()}

# How a job ended that Slurm ended, and whether the same submission may succeed.
_ENDINGS: Mapping[str, tuple[str, bool]] = {
    "BOOT_FAIL": ("the node did not start", True),
    "DEADLINE": ("its deadline passed", False),
    "NODE_FAIL": ("the node failed", True),
    "OUT_OF_MEMORY": ("it used more memory than {section}.mem", False),
    "PREEMPTED": ("it was preempted, and this site does not requeue", True),
    "TIMEOUT": ("the time limit came before its checkpoint was saved", True),
}

# Reasons for which a job stays pending forever, with the setting to change.
_FINAL: Mapping[str, str] = {
    "BadConstraints": "extra (--constraint)",
    "InvalidAccount": "account",
    "InvalidQOS": "qos",
    "MaxMemPerLimit": "mem",
    "PartitionConfig": "partition",
    "PartitionNodeLimit": "partition",
    "PartitionTimeLimit": "time",
    "QOSNotAllowed": "qos",
}
# Limits on the size of one job, which a QOS or an account has: QOSMaxCpuPerJobLimit, QOSMinGRES.
_TOO_LARGE = re.compile(r"(QOS|Assoc)(Min\w+|Max\w+Per(Job|Node)\w*)")
_HELD = re.compile(r"JobHeld|JobHoldMaxRequeue|requeued held")
_SUBMITTED_JOBS = re.compile(r"(QOS|Assoc)(Grp|Max)SubmitJob\w*")

_LIMITS = "sacctmgr show associations user=$USER and sacctmgr show qos list the limits"
_NODES = "sinfo -o '%P %c %m %G %f' lists CPUs, memory (MB), generic resources and features"
# What sbatch prints, the settings to check, and a command that lists the right values.
_REFUSALS: Sequence[tuple[str, str, str]] = (
    ("accounting/QOS policy", "cpus, gres, mem, time and the number of your jobs", _LIMITS),
    ("invalid partition", "partition", "sinfo lists the partitions"),
    ("invalid account", "account", "sacctmgr show associations user=$USER lists yours"),
    ("invalid qos", "qos", "sacctmgr show associations user=$USER format=qos lists yours"),
    ("reservation", "extra: --reservation", "scontrol show reservation lists them"),
    ("time limit|--time", "time", "sinfo -o '%P %l' lists the longest times"),
    ("generic resource|gres", "gres", _NODES),
    ("invalid feature", "extra: --constraint", _NODES),
    ("memory", "mem", _NODES),
    ("cpu count", "cpus", _NODES),
    ("node configuration|node count|node name", "gres, mem, cpus and extra", _NODES),
    ("mail", "extra: --mail-type", "e.g. END,FAIL"),
    ("unrecognized option|invalid option|requires an argument", "extra", "see man sbatch"),
)
# Lines that Slurm adds after the run has ended.
_NOISE = r"srun: |slurmstepd|mlip-job: "
# The state of an array is the first of these that a task is in.
_RANK = (
    JobState.RUNNING,
    JobState.PENDING,
    JobState.UNKNOWN,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.SUCCEEDED,
)


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, as one of Slurm's commands reports it.

    `id` is ``4711``, ``4711_2``, or ``4711_[3-4]`` for tasks that are pending together. `exit_code`
    is None if the command does not tell, or a signal ended the script.
    """

    id: str
    state: str
    reason: str | None = None
    exit_code: int | None = None
    name: str = ""


def state_of(native: str) -> JobState:
    """Return the meaning of a state of Slurm; UNKNOWN for one that is not listed."""
    return _BY_NAME.get(native.rstrip("+"), JobState.UNKNOWN)


def status_of(
    task: Task, ended: Ended | None, log: str | None, section: str = SECTION
) -> JobStatus:
    """Return the status of one task.

    `ended` is the exit code that the script recorded at its end, `log` the end of the task's log,
    if there is one. `section` is the part of the configuration with the job's settings.
    """
    state, native, reason = state_of(task.state), task.state, task.reason
    hint = _hint(reason, section) if reason else None
    dependency_failed = reason == "DependencyNeverSatisfied" and state is JobState.CANCELLED
    if state is JobState.PENDING or dependency_failed:
        hint = "the job of --after failed" if dependency_failed else hint
        return JobStatus(state, native, reason, hint)
    if state is not JobState.FAILED:
        return JobStatus(state, native, exit_code=0 if state is JobState.SUCCEEDED else None)
    if native in _ENDINGS:
        reason, again = _ENDINGS[native]
        return JobStatus(state, native, reason.format(section=section), resubmit=again)
    if hint is not None:
        return JobStatus(state, native, reason, hint)
    code = ended.exit_code if ended is not None else task.exit_code
    if log is None and ended is None:
        reason = "it left no log: work_dir can't be written on the node"
        hint = "set work_dir to a directory that login node and compute nodes share"
        return JobStatus(state, native, reason, hint, code)
    again = bool(ended and ended.resubmit)
    return failed_run(code, log or "", native, resubmit=again, noise=_NOISE)


def status_by_record(ended: Ended, log: str | None) -> JobStatus:
    """Return the status of a job that Slurm has forgotten, by the record of its script."""
    if ended.exit_code == 0:
        return JobStatus(JobState.SUCCEEDED, "", exit_code=0)
    code, again = ended.exit_code, bool(ended.resubmit)
    return failed_run(code, log or "", "", resubmit=again, noise=_NOISE)


def combined(statuses: Sequence[JobStatus]) -> JobStatus:
    """Return the status of an array of tasks."""
    first = min(statuses, key=lambda status: _RANK.index(status.state))
    if len(statuses) == 1:
        return first
    counts = Counter(status.state for status in statuses)
    members = ", ".join(f"{counts[state]} {state}" for state in _RANK if counts[state])
    reason = f"members: {members}" + (f"; {first.reason}" if first.reason else "")
    return replace(first, reason=reason, resubmit=any(status.resubmit for status in statuses))


def refusal(output: str, section: str) -> ConfigError | UnavailableError:
    """Return the error for a job that sbatch rejected, with the settings to check.

    A limit on the number of jobs is temporary, and so an `UnavailableError`.
    """
    text = re.sub(r"sbatch: (error: )?(Batch job submission failed: )?", "", output)
    message = f"Slurm refuses the job: {text}"
    if _SUBMITTED_JOBS.search(text):
        hint = f"submit again when some of your jobs have ended; {_LIMITS}"
        return UnavailableError(message, hint=hint)
    if "dependency" in text.lower():
        return ConfigError(message, hint="check --after; squeue --me lists your jobs")
    for pattern, settings, command in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE):
            return ConfigError(message, hint=f"check {section}.{settings}; {command}")
    return ConfigError(message)


def _hint(reason: str, section: str) -> str | None:
    """Return a hint for a permanent reason."""
    word = reason.partition(",")[0].strip("()")
    if _HELD.search(word):
        return "scontrol release starts it"
    if word in _FINAL or _TOO_LARGE.fullmatch(word):
        setting = f".{_FINAL[word]}" if word in _FINAL else ""
        return f"it never starts: cancel it, change {section}{setting} and submit it again"
    return None
