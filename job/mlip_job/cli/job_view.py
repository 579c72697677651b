"""The state of a generation, from its job and from the store; runs outside any scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from mlip_job.cli.jobs import document_of, name_of
from mlip_job.cli.output import duration
from mlip_job.errors import ConflictError, MlipJobError, UnavailableError
from mlip_job.paths import generation_name, parse_generation_name
from mlip_job.runtime.environment import ProcessIdentity
from mlip_job.schedulers.base import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.registry.checkpoints import TrainingProgress
    from mlip_job.runtime.environment import SchedulerJob
    from mlip_job.schedulers.base import JobHandle, JobStatus, Scheduler


def is_outside(
    training: TrainingProgress,
    job: JobHandle | None,
    status: JobStatus | None,
    *,
    member: bool = False,
) -> bool:
    """Return whether a live run is not the scheduler's newest job of its generation.

    Parameters
    ----------
    training
        What the store says of it.
    job, status
        That job, if there is one.
    member
        Whether it trains a member of an ensemble. Slurm gives each task of an array its own
        number, so that it can't be distinguished from another array's.
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


def find_outside(
    registry: Registry, generation: int, scheduler: Scheduler
) -> TrainingProgress | None:
    """Return a live run of a generation that is no job that the scheduler knows of, or None.

    Raises
    ------
    UnavailableError
        If the store or the scheduler can't be read.
    """
    from mlip_job.registry import members_of
    from mlip_job.registry.checkpoints import read_progress

    places = {0: registry, **members_of(registry, generation)}
    found = {number: read_progress(place, generation) for number, place in places.items()}
    live = {n: run for n, run in found.items() if run is not None and run.live}
    if not live:
        return None
    job = scheduler.find(registry.family, generation)
    status = scheduler.status(job) if job is not None else None
    return next((r for n, r in live.items() if is_outside(r, job, status, member=n > 0)), None)


def require_no_run_outside(registry: Registry, generation: int, scheduler: Scheduler) -> None:
    """Reject a submission that would conflict with a live run.

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


def description(run: TrainingProgress) -> str:
    """Describe a run: started by whom, where, which attempt."""
    by = f"{run.scheduler.kind} job {run.scheduler.id}" if run.scheduler else "started by hand"
    return f"attempt {run.attempt}, {by}, process {run.process.pid} of {_machine(run)}"


def way_to_end(run: TrainingProgress) -> str:
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


def _machine(run: TrainingProgress) -> str:
    return "this machine" if _is_here(run) else "another machine"


def _is_here(run: TrainingProgress) -> bool:
    return run.process.host == ProcessIdentity.current().host


def _is_same(claimed: SchedulerJob, job: JobHandle) -> bool:
    """Return whether a claim belongs to a job, or to a pod of its Job."""
    job_id = job.id.partition(";")[0]
    return claimed.id == job_id or claimed.id.startswith(f"{job_id}/")


T = TypeVar("T")


class State(StrEnum):
    """What a generation is.

    ENDED is a job that ended with 0 while no manifest is seen: there is none, or the store can't be
    read. ABSENT requires that both store and scheduler were read; else it is UNKNOWN.
    """

    PUBLISHED = "published"
    RUNNING = "running"
    PENDING = "pending"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    ENDED = "ended"
    UNKNOWN = "unknown"
    ABSENT = "absent"


class Source(StrEnum):
    """What a view is made from."""

    STORE = "store"
    SCHEDULER = "scheduler"


_BY_JOB = {
    JobState.PENDING: State.PENDING,
    JobState.RUNNING: State.RUNNING,
    JobState.FAILED: State.FAILED,
    JobState.CANCELLED: State.CANCELLED,
}
_HALTED = (State.FAILED, State.CANCELLED, State.STOPPED)


@dataclass(frozen=True)
class GenerationView:
    """State of a generation, from the store and the scheduler.

    Attributes
    ----------
    generation, state
        Which one, and what of it.
    manifest
        Where it is published.
    job, status
        Its newest job, where the scheduler knows one. For a published one, only an active job.
    others
        More jobs of other submissions that wait or run.
    training
        What the store says of its training, where it is not published; of an ensemble, of the
        member that was at work last.
    members
        What it says of each member of an ensemble; None for one that is trained.
    max_iter
        Iterations that a ladder step may take.
    outside
        The run that is at work, where that is no job that the scheduler knows of.
    store_read
        Whether the store could be read.
    """

    generation: int
    state: State
    manifest: Manifest | None = None
    job: JobHandle | None = None
    status: JobStatus | None = None
    training: TrainingProgress | None = None
    members: Mapping[int, TrainingProgress | None] = field(default_factory=dict)
    max_iter: int = 0
    others: tuple[JobHandle, ...] = ()
    store_read: bool = True
    outside: TrainingProgress | None = None

    def progress(self) -> str | None:
        """Return the progress of the fit, or of each member's, as text."""
        if self.members:
            return ", ".join(
                f"member {number} "
                + ("trained" if training is None else self._progress(training) or "begun")
                for number, training in self.members.items()
            )
        return None if self.training is None else self._progress(self.training)

    def _progress(self, training: TrainingProgress) -> str | None:
        if training.checkpoint is None:
            return None
        position = training.checkpoint.position
        if position.finished:
            return "fitted; evaluation and publishing are left"
        text = f"{position} of at most {self.max_iter}"
        left = training.seconds_left(self.max_iter)
        if self.state is State.RUNNING and left is not None:
            return f"{text}, at most {duration(left)} left in this step"
        return text

    def words(self) -> str:
        """Return the details of the state as text."""
        parts = [] if self.manifest is None else [f"{self.manifest.ended:%Y-%m-%d %H:%M} UTC"]
        if self.state is State.ENDED:
            parts.append(self._without_manifest())
        if self.status is not None and self.status.reason:
            parts.append(self.status.reason)
        parts += [f"{name_of(other)} waits or runs too" for other in self.others]
        if self.outside is not None:
            parts.insert(0, description(self.outside))
            if self.job is not None:
                parts.append(f"{name_of(self.job)} can't train it meanwhile")
        if (progress := self.progress()) is not None:
            parts.append(progress if self.state is State.RUNNING else f"saved: {progress}")
        return "; ".join(parts)

    def _without_manifest(self) -> str:
        if not self.store_read:
            return "its job has ended with exit code 0; whether it is published is not known"
        return "its job has ended with exit code 0, but the store has no manifest of it"

    def remedy(self) -> str | None:
        """Return the remedy, if action is needed."""
        hint = self.status.hint if self.status is not None else None
        if self.outside is not None:
            return f"wait for it, or {way_to_end(self.outside)}"
        if self.others:
            return f"mlip-job cancel -g {self.generation} ends all of them"
        if self.state is State.ENDED and self.store_read:
            return hint or (
                "check that storage.url is the job's, and that this machine sees it; "
                f"mlip-job logs -g {self.generation} tells what the job did"
            )
        if self.state not in _HALTED:
            return hint
        saved = self.training is not None and self.training.checkpoint is not None
        command = f"mlip-job submit -g {self.generation}" + (" resumes from there" if saved else "")
        return f"{hint}; then {command}" if hint is not None else command

    def document(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        training, status = self.training, self.status
        checkpoint = training.checkpoint if training is not None else None
        return {
            "generation": self.generation,
            "state": self.state,
            "job": document_of(self.job) if self.job is not None else None,
            "native_state": status.native if status is not None else None,
            "reason": status.reason if status is not None else None,
            "other_jobs": [document_of(other) for other in self.others],
            "exit_code": status.exit_code if status is not None else None,
            "remedy": self.remedy(),
            "attempt": training.attempt if training is not None else None,
            "outside": description(self.outside) if self.outside is not None else None,
            "iterations": checkpoint.iterations if checkpoint is not None else None,
            "saved": checkpoint.saved.isoformat() if checkpoint is not None else None,
            "members_trained": [n for n, member in self.members.items() if member is None],
            "seconds_left_in_step": training.seconds_left(self.max_iter)
            if training is not None
            else None,
            "published": self.manifest.ended.isoformat() if self.manifest is not None else None,
        }


class Observatory:
    """Looks at the generations of a family.

    Parameters
    ----------
    config, registry
        Of the family.
    scheduler
        Where its jobs are.

    Attributes
    ----------
    unread
        Why a source could not be read; what it says is left out then.
    """

    def __init__(self, config: JobConfig, registry: Registry, scheduler: Scheduler) -> None:
        self.unread: dict[Source, MlipJobError] = {}
        self._config = config
        self._registry = registry
        self._scheduler = scheduler

    def look(self, generation: int) -> GenerationView:
        """Return what a generation is now."""
        view = self._look(generation)
        if view.state is not State.PUBLISHED:
            return view
        job, status = self._still_active(generation)
        return replace(view, job=job, status=status)

    def all(self) -> Iterator[GenerationView]:
        """Yield every generation of which anything is known, ascending."""
        stored = self._read(Source.STORE, self._stored) or set()
        submitted = self._read(
            Source.SCHEDULER, lambda: self._scheduler.generations(self._config.family)
        )
        for number in sorted(stored | (submitted or set())):
            view = self._look(number)
            if view.state is not State.ABSENT:
                yield view

    def _read(self, source: Source, ask: Callable[[], T]) -> T | None:
        """Return what a source says; None where it can't be read, which is tried once."""
        # A damaged manifest, and whatever else is wrong in a store that can be read, is an error.
        errors = UnavailableError if source is Source.STORE else MlipJobError
        if source in self.unread:
            return None
        try:
            return ask()
        except errors as error:
            self.unread[source] = error
            return None

    def _stored(self) -> set[int]:
        names = self._registry.store.list_prefixes(self._registry.keys.generations)
        return {n for n in map(parse_generation_name, names) if n is not None}

    def _look(self, generation: int) -> GenerationView:
        manifest = self._read(Source.STORE, lambda: self._registry.find(generation))
        if manifest is not None:
            return GenerationView(generation, State.PUBLISHED, manifest)
        return self._unpublished(generation)

    def _unpublished(self, generation: int) -> GenerationView:
        stored = self._read(Source.STORE, lambda: self._training(generation))
        training, members = stored or (None, {})
        asked = self._read(Source.SCHEDULER, lambda: self._ask(generation))
        job, status, others = asked or (None, None, ())
        outside = None
        if training is not None and is_outside(training, job, status, member=bool(members)):
            outside = training
            if status is not None and status.state.ended:
                job, status = None, None  # an earlier job does not describe this one
        state = _state(job, status, training, begun=bool(members))
        if outside is not None:
            state = State.RUNNING
        if state is State.ABSENT and self.unread:
            state = State.UNKNOWN
        return GenerationView(
            generation,
            state,
            job=job,
            status=status,
            training=training,
            members=members,
            max_iter=self._config.training.max_iter,
            others=others,
            outside=outside,
            store_read=Source.STORE not in self.unread,
        )

    def _training(
        self, generation: int
    ) -> tuple[TrainingProgress | None, dict[int, TrainingProgress | None]]:
        """Return what the store says of a training, and of each member's."""
        from mlip_job.registry import members_of
        from mlip_job.registry.checkpoints import read_progress

        training = read_progress(self._registry, generation)
        members = {
            number: None
            if member.find_own(generation) is not None
            else read_progress(member, generation)
            for number, member in members_of(self._registry, generation).items()
        }
        under_way = [member for member in members.values() if member is not None]
        training = training or max(under_way, key=lambda m: (m.live, m.attempt), default=None)
        return training, members

    def _ask(
        self, generation: int
    ) -> tuple[JobHandle | None, JobStatus | None, tuple[JobHandle, ...]]:
        """Return the job that matters, its status, and other submissions' active jobs."""
        family = self._config.family
        job = self._scheduler.find(family, generation)
        if job is None:
            return None, None, ()
        status = self._scheduler.status(job)
        if status.state.ended:
            return job, status, ()
        active = self._scheduler.active(family, generation)
        return job, status, tuple(other for other in active if other != job)

    def _still_active(self, generation: int) -> tuple[JobHandle | None, JobStatus | None]:
        """Return the active job of a published generation, if the scheduler is available."""
        try:
            jobs = self._scheduler.active(self._config.family, generation)
            return (jobs[0], self._scheduler.status(jobs[0])) if jobs else (None, None)
        except MlipJobError:
            return None, None


def _state(
    job: JobHandle | None,
    status: JobStatus | None,
    training: TrainingProgress | None,
    *,
    begun: bool,
) -> State:
    if status is not None and status.state in _BY_JOB:
        return _BY_JOB[status.state]
    if training is not None and training.live:
        return State.RUNNING
    if status is not None and status.state is JobState.SUCCEEDED:
        return State.ENDED
    if training is not None or begun:
        return State.STOPPED
    return State.UNKNOWN if job is not None else State.ABSENT


def title(view: GenerationView) -> str:
    """Return a generation's name and state in one line."""
    job = f" ({name_of(view.job)})" if view.job is not None else ""
    return f"{generation_name(view.generation)} {view.state}{job}"
