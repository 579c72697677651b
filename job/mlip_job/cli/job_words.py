"""What a job is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlip_job.schedulers.base import JobHandle


def document_of(job: JobHandle) -> dict[str, str]:
    """Return a job for ``--json``."""
    return {
        "scheduler": job.scheduler,
        "id": job.id,
        "name": job.name,
    }


def name_of(job: JobHandle) -> str:
    """Return what a job is called in messages."""
    word = {"local": "process", "kubernetes": "Job"}.get(job.scheduler, f"{job.scheduler} job")
    return f"{word} {job.id}"
