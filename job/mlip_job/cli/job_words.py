"""A job in words: what it is called, which part of a run it does, what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.schedulers.base import JobState, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.schedulers.base import JobHandle, JobStatus

_NAMES: Mapping[Stage, str] = {
    Stage.DATASET: "the dataset",
    Stage.FIT: "the fit",
    Stage.PUBLISH: "evaluation and publishing",
}
_DOES: Mapping[tuple[Stage, JobState], str] = {
    (Stage.DATASET, JobState.PENDING): "the dataset is to be made, and the fit waits for it",
    (Stage.DATASET, JobState.RUNNING): "the dataset is being made, and the fit waits for it",
    (Stage.DATASET, JobState.FAILED): "making the dataset failed",
    (Stage.FIT, JobState.FAILED): "the fit failed",
    (Stage.PUBLISH, JobState.FAILED): "evaluating or publishing it failed",
}


def document_of(job: JobHandle) -> dict[str, str]:
    """Return a job for ``--json``."""
    return {
        "stage": job.stage.value,
        "scheduler": job.scheduler,
        "id": job.id,
        "name": job.name,
    }


def name_of(job: JobHandle) -> str:
    """Return what a job is called in messages."""
    word = {"local": "process", "kubernetes": "Job"}.get(job.scheduler, f"{job.scheduler} job")
    return f"{word} {job.id}"


def part_of(job: JobHandle) -> str:
    """Return which part of a run a job does, `` (the dataset)``; nothing for the whole."""
    return f" ({_NAMES[job.stage]})" if job.stage in _NAMES else ""


def reason_of(job: JobHandle | None, status: JobStatus | None) -> str | None:
    """Return what becomes of a job, and why; None where there is nothing to say."""
    if job is None or status is None:
        return None
    does, reason = _DOES.get((job.stage, status.state)), status.reason
    if does is None or reason is None:
        return does or reason
    return f"{does}{': ' if status.state is JobState.FAILED else '; '}{reason}"
