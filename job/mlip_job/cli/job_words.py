"""A job in words: what it is called, which part of a run it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.schedulers.base import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.schedulers.base import JobHandle

_NAMES: Mapping[Stage, str] = {
    Stage.DATASET: "the dataset",
    Stage.FIT: "the fit",
    Stage.PUBLISH: "evaluation and publishing",
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
