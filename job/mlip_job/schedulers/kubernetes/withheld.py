"""What becomes of a Job of a split run that was not started yet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlip_job.naming import parse_generation_name
from mlip_job.schedulers.base import JobState, JobStatus, Stage
from mlip_job.schedulers.kubernetes.layout import GENERATION_LABEL
from mlip_job.schedulers.kubernetes.submission import follows, stage_of
from mlip_job.schedulers.stage_words import WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.schedulers.kubernetes.pod import Manifest

_BEFORE: Mapping[Stage, Stage] = {
    Stage.FIT: Stage.DATASET,
    Stage.PUBLISH: Stage.FIT,
    Stage.WHOLE: Stage.DATASET,
}
"""What has to be done before a Job of a split run that is not the first."""


def of_withheld(job: Manifest, before: JobStatus) -> JobStatus:
    """Return the status of a Job that was not started, by that of the one which it follows."""
    stage = stage_of(job)
    part, name = f"it {WORDS[stage].does}", f"Job {follows(job)}"
    task = WORDS[_BEFORE[stage]].does
    generation = parse_generation_name(job["metadata"]["labels"][GENERATION_LABEL])
    again = f"the same mlip-job submit -g {generation} as before starts it"
    if before.state is JobState.SUCCEEDED:
        reason = f"{part}, and could: {name}, which {task}, is done; nobody has started this one"
        return JobStatus(JobState.PENDING, "Suspended", reason, again, resubmit=True)
    if before.state in (JobState.FAILED, JobState.CANCELLED):
        return replace(before, state=JobState.FAILED)
    if before.state is JobState.GONE:
        reason = f"{part}, and waits for {name}, which {task} and is gone"
        return JobStatus(JobState.UNKNOWN, "Suspended", reason, again)
    reason = f"{part}, and waits for {name}, which {task}"
    return JobStatus(JobState.PENDING, "Suspended", reason, before.hint, resubmit=before.resubmit)
