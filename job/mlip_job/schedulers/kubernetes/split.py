"""A run that is split into several Jobs: what each of them asks for; pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlip_job.config.kubernetes import KubernetesConfig
    from mlip_job.schedulers.base import JobRequest, Stage


def is_split(request: JobRequest) -> bool:
    """Tell whether a request is one of several of its submission."""
    return len(request.stages) > 1


def requests_of(request: JobRequest) -> tuple[JobRequest, ...]:
    """Return the requests of a submission, in order."""
    return tuple(replace(request, stage=stage) for stage in request.stages)


def neighbours(request: JobRequest) -> tuple[Stage | None, Stage | None]:
    """Return the stage before and the stage after that of a request."""
    place = request.stages.index(request.stage)
    before = request.stages[place - 1] if place else None
    return before, request.stages[place + 1] if place + 1 < len(request.stages) else None


def settings_of(request: JobRequest) -> KubernetesConfig:
    """Return what the Job of a request asks for: without a GPU, where it has no use for one."""
    settings = request.config.submit.kubernetes
    if request.needs_gpu:
        return settings
    of_gpu: dict[str, Any] = {"gpus": 0, "runtime_class": None, "node_selector": {}, "affinity": {}}
    return settings.model_copy(update=of_gpu | settings.without_gpu.model_dump(exclude_none=True))


def run_options(request: JobRequest) -> tuple[str, ...]:
    """Return the options of ``run``: where it ends; those that are given, for the first Job."""
    return (*request.stage.options, *(request.run_options if request.is_first else ()))


def note_of(request: JobRequest) -> str | None:
    """Say who starts the Jobs that follow, where nobody in the cluster does."""
    kubernetes = request.config.submit.kubernetes
    if request.stage not in request.stages[1:2] or kubernetes.resume_service_account is not None:
        return None
    return (
        "it is suspended until the Job before it has succeeded and the same submission is made "
        "again, or waits for that with --wait; with submit.kubernetes.resume_service_account, "
        "Jobs start each other"
    )
