"""From what Slurm and the job itself say to a `JobStatus`."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from mlip_job.schedulers.base import JobState, JobStatus, meaning_of
from mlip_job.schedulers.records import error_in
from mlip_job.schedulers.slurm.states import (
    SECTION,
    how_it_ended,
    is_final,
    state_of,
    what_to_do,
    why,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.schedulers.records import Ended
    from mlip_job.schedulers.slurm.commands import Task

# Lines that Slurm adds after the run has ended.
_NOISE = re.compile(r"srun: |slurmstepd|mlip-job: ")

# Of several tasks, the first of these that one of them is in is the state of all.
_RANK = (
    JobState.RUNNING,
    JobState.PENDING,
    JobState.UNKNOWN,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.SUCCEEDED,
)


def status_of(
    task: Task, ended: Ended | None, log: str | None, section: str = SECTION
) -> JobStatus:
    """Return the status of one task.

    Parameters
    ----------
    task
        What Slurm says.
    ended
        What the script noted at its end.
    log
        The end of what it printed; None where there is no log.
    section
        Part of the configuration that its settings are in.
    """
    state = state_of(task.state)
    if state is JobState.PENDING and task.reason is not None:
        hint = what_to_do(task.reason, section)
        return JobStatus(state, task.state, why(task.reason, section), hint)
    if state is JobState.CANCELLED and task.reason == "DependencyNeverSatisfied":
        return JobStatus(state, task.state, why(task.reason))
    if state is JobState.FAILED:
        return _failed(task, ended, log, section)
    return JobStatus(state, task.state, exit_code=0 if state is JobState.SUCCEEDED else None)


def status_by_record(ended: Ended, log: str | None) -> JobStatus:
    """Return the status of a job that Slurm has forgotten, by what its script noted."""
    if ended.exit_code == 0:
        return JobStatus(JobState.SUCCEEDED, "", exit_code=0)
    return _by_exit_code(ended.exit_code, bool(ended.resubmit), "", log)


def combined(statuses: Sequence[JobStatus]) -> JobStatus:
    """Return the status of an array of tasks."""
    first = min(statuses, key=lambda status: _RANK.index(status.state))
    if len(statuses) == 1:
        return first
    counts = Counter(status.state for status in statuses)
    tally = ", ".join(f"{counts[state]} {state}" for state in _RANK if counts[state])
    reason = f"members: {tally}" + (f"; {first.reason}" if first.reason else "")
    return JobStatus(
        first.state,
        first.native,
        reason,
        first.hint,
        first.exit_code,
        resubmit=any(status.resubmit for status in statuses),
    )


def _failed(task: Task, ended: Ended | None, log: str | None, section: str) -> JobStatus:
    if (ending := how_it_ended(task.state, section)) is not None:
        reason, again = ending
        return JobStatus(JobState.FAILED, task.state, reason, resubmit=again)
    if task.reason is not None and is_final(task.reason):
        return JobStatus(JobState.FAILED, task.state, why(task.reason, section))
    code = ended.exit_code if ended is not None else task.exit_code
    if log is None and ended is None:
        return JobStatus(
            JobState.FAILED,
            task.state,
            "it left no log: work_dir can't be written on the node",
            "set work_dir to a directory that login node and compute nodes share",
            code,
        )
    if code is None:
        return JobStatus(JobState.FAILED, task.state, _last_line(log or ""), exit_code=code)
    return _by_exit_code(code, bool(ended and ended.resubmit), task.state, log)


def _by_exit_code(code: int, resubmit: bool, native: str, log: str | None) -> JobStatus:
    meaning = meaning_of(code)
    message, hint = error_in(log or "") or (None, None)
    if message is None and code not in (69, 75):
        said = _last_line(log or "")
        message = f"{meaning.reason} (exit code {code})" + (f": {said}" if said else "")
    return JobStatus(
        JobState.FAILED, native, message or meaning.reason, hint, code, resubmit=resubmit
    )


def _last_line(log: str) -> str | None:
    """Return the last line that the run printed, not Slurm."""
    said = [line.strip() for line in log.splitlines() if line.strip() and not _NOISE.match(line)]
    return said[-1] if said else None
