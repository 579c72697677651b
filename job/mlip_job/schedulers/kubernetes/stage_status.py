"""What the Job of a split run is doing, in words that tell which part it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlip_job.naming import parse_generation_name
from mlip_job.schedulers.base import JobState, JobStatus, Stage
from mlip_job.schedulers.kubernetes.layout import GENERATION_LABEL
from mlip_job.schedulers.kubernetes.status import FORGOTTEN
from mlip_job.schedulers.kubernetes.submission import follows, stage_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.schedulers.kubernetes.pod import Manifest


@dataclass(frozen=True)
class _Words:
    """How to speak of a stage: of its Job, and of its failure."""

    does: str
    failed: str


_WORDS: Mapping[Stage, _Words] = {
    Stage.DATASET: _Words("makes the dataset", "the dataset was not made"),
    Stage.FIT: _Words("fits", "the fit failed"),
    Stage.PUBLISH: _Words("evaluates and publishes", "the fit is done, but was not published"),
    Stage.WHOLE: _Words("fits and publishes", "the dataset is made, but the run failed"),
}
_BEFORE: Mapping[Stage, Stage] = {
    Stage.FIT: Stage.DATASET,
    Stage.PUBLISH: Stage.FIT,
    Stage.WHOLE: Stage.DATASET,
}
"""What has to be done before a Job of a split run that is not the first."""


def of_stage(job: Manifest, status: JobStatus) -> JobStatus:
    """Return the status of a Job of a split run, with its part in the reason."""
    words = _WORDS[stage_of(job)]
    if status.state is JobState.SUCCEEDED:
        return status
    if status.state is JobState.FAILED:
        return replace(status, reason=f"{words.failed}: {status.reason}")
    reason = f"it {words.does}" + (f"; {status.reason}" if status.reason else "")
    return replace(status, reason=reason)


def of_withheld(job: Manifest, before: JobStatus) -> JobStatus:
    """Return the status of a Job that was not started, by that of the one which it follows."""
    stage = stage_of(job)
    part, name = f"it {_WORDS[stage].does}", f"Job {follows(job)}"
    task = _WORDS[_BEFORE[stage]].does
    generation = parse_generation_name(job["metadata"]["labels"][GENERATION_LABEL])
    again = f"the same mlip-job submit -g {generation} as before starts it"
    if before.state is JobState.SUCCEEDED:
        reason = f"{part}, and could: {name}, which {task}, is done; nobody has started this one"
        return JobStatus(JobState.PENDING, "Suspended", reason, again, resubmit=True)
    if before.state in (JobState.FAILED, JobState.CANCELLED):
        return replace(before, state=JobState.FAILED)
    if before.state is JobState.UNKNOWN and before.native == FORGOTTEN.native:
        reason = f"{part}, and waits for {name}, which {task} and is gone"
        return JobStatus(JobState.UNKNOWN, "Suspended", reason, again)
    reason = f"{part}, and waits for {name}, which {task}"
    return JobStatus(JobState.PENDING, "Suspended", reason, before.hint, resubmit=before.resubmit)
