"""A run that holds a generation's claim and is no job that the scheduler knows of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.errors import ConflictError, UnavailableError
from mlip_job.naming import generation_name
from mlip_job.runtime.environment import ProcessIdentity

if TYPE_CHECKING:
    from mlip_job.registry import Registry
    from mlip_job.registry.training_now import TrainingNow
    from mlip_job.runtime.environment import SchedulerJob
    from mlip_job.schedulers.base import JobHandle, JobStatus, Scheduler


def is_outside(
    training: TrainingNow, job: JobHandle | None, status: JobStatus | None, *, member: bool = False
) -> bool:
    """Tell whether a run is alive that is not the scheduler's newest job of its generation.

    Parameters
    ----------
    training
        What the store says of it.
    job, status
        That job, if there is one.
    member
        Whether it trains a member of an ensemble. Slurm gives each task of an array a number of
        its own, so that it can't be told from another array's.
    """
    if not training.live:
        return False
    if job is None or status is None:
        return True
    if not training.certain:
        return False
    if training.scheduler is None or training.scheduler.kind != job.scheduler:
        return True
    return status.state.ended and not (member or _is_same(training.scheduler, job))


def find_outside(registry: Registry, generation: int, scheduler: Scheduler) -> TrainingNow | None:
    """Return a live run of a generation that is no job that the scheduler knows of, or None.

    Raises
    ------
    UnavailableError
        If the store or the scheduler can't be read.
    """
    from mlip_job.registry import members_of
    from mlip_job.registry.training_now import look_at_training

    places = {0: registry, **members_of(registry, generation)}
    found = {number: look_at_training(place, generation) for number, place in places.items()}
    live = {n: run for n, run in found.items() if run is not None and run.live}
    if not live:
        return None
    job = scheduler.find(registry.family, generation)
    status = scheduler.status(job) if job is not None else None
    return next((r for n, r in live.items() if is_outside(r, job, status, member=n > 0)), None)


def require_no_run_outside(registry: Registry, generation: int, scheduler: Scheduler) -> None:
    """Refuse a submission that would find a live run, and fail.

    Raises
    ------
    ConflictError
        If there is one.
    """
    run = find_outside(registry, generation, scheduler)
    if run is None or not run.certain:
        return
    raise ConflictError(
        f"{generation_name(generation)} is being trained: {description(run)}",
        hint=f"wait for it, or {way_to_end(run)}",
    )


def note_on_outside(registry: Registry, generation: int, scheduler: Scheduler) -> str | None:
    """Return what to say where a run is alive that the scheduler can't cancel."""
    try:
        run = find_outside(registry, generation, scheduler)
    except UnavailableError:
        return None
    if run is None:
        return None
    name = generation_name(generation)
    return f"{name} is being trained by no job of {scheduler.name}: {description(run)}; " + (
        f"{way_to_end(run)} ends it, with a checkpoint"
        if run.scheduler is None
        else way_to_end(run)
    )


def description(run: TrainingNow) -> str:
    """Say what a run is: started by whom, where, which attempt."""
    by = f"{run.scheduler.kind} job {run.scheduler.id}" if run.scheduler else "started by hand"
    return f"attempt {run.attempt}, {by}, process {run.process.pid} of {_machine(run)}"


def way_to_end(run: TrainingNow) -> str:
    """Return the command that ends a run, with a checkpoint."""
    job = run.scheduler
    if job is None:
        there = "" if _is_here(run) else " on its machine"
        return f"kill -TERM {run.process.pid}{there}"
    if job.kind == "slurm":
        return f"scancel {job.id}"
    if job.kind == "kubernetes":
        namespace, _, name = job.id.partition("/")
        return f"kubectl delete job {name.partition('/')[0]} --namespace {namespace}"
    return f"kill -TERM {run.process.pid}" + ("" if _is_here(run) else " on its machine")


def _machine(run: TrainingNow) -> str:
    return "this machine" if _is_here(run) else "another machine"


def _is_here(run: TrainingNow) -> bool:
    return run.process.host == ProcessIdentity.current().host


def _is_same(claimed: SchedulerJob, job: JobHandle) -> bool:
    """Tell whether a claim was taken by a job, or by a pod of its Job."""
    job_id = job.id.partition(";")[0]
    return claimed.id == job_id or claimed.id.startswith(f"{job_id}/")
