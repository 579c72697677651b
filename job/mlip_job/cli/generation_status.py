"""The status of a generation, from its job and from the store; runs outside any scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from mlip_job.errors import MlipJobError, UnavailableError
from mlip_job.paths import parse_generation_name
from mlip_job.report.texts import duration
from mlip_job.runtime.environment import ProcessIdentity
from mlip_job.schedulers.base import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.registry.checkpoints import TrainingProgress
    from mlip_job.schedulers.base import JobHandle, JobStatus, Scheduler


class State(StrEnum):
    """The state of a generation.

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
    """A source of a status."""

    STORE = "store"
    SCHEDULER = "scheduler"


_BY_JOB = {
    JobState.PENDING: State.PENDING,
    JobState.RUNNING: State.RUNNING,
    JobState.FAILED: State.FAILED,
    JobState.CANCELLED: State.CANCELLED,
}
_HALTED = (State.FAILED, State.CANCELLED, State.STOPPED)

T = TypeVar("T")


@dataclass(frozen=True)
class GenerationStatus:
    """State of a generation, from the store and the scheduler.

    `job` is its newest; of a published generation, only an active one. `others` are pending and
    running jobs of other submissions. `training` is the progress of an unpublished one, or of one
    of its `members`, where None is a trained one. `outside` is a live run that is no job that the
    scheduler knows.
    """

    generation: int
    state: State
    manifest: Manifest | None = None
    job: JobHandle | None = None
    job_status: JobStatus | None = None
    others: tuple[JobHandle, ...] = ()
    training: TrainingProgress | None = None
    members: Mapping[int, TrainingProgress | None] = field(default_factory=dict)
    max_iter: int = 0
    outside: TrainingProgress | None = None
    store_read: bool = True

    def details(self) -> str:
        """Return the details of the state as text."""
        parts = []
        if self.outside is not None:
            parts.append(describe_run(self.outside))
        if self.manifest is not None:
            parts.append(f"{self.manifest.ended:%Y-%m-%d %H:%M} UTC")
        if self.state is State.ENDED:
            known = (
                ", but the store has no manifest of it"
                if self.store_read
                else "; whether it is published is not known"
            )
            parts.append(f"its job has ended with exit code 0{known}")
        if self.job_status is not None and self.job_status.reason:
            parts.append(self.job_status.reason)
        parts += [f"{other} is pending or running too" for other in self.others]
        if self.outside is not None and self.job is not None:
            parts.append(f"{self.job} can't train it meanwhile")
        if (progress := self._progress()) is not None:
            parts.append(progress if self.state is State.RUNNING else f"saved: {progress}")
        return "; ".join(parts)

    def _progress(self) -> str | None:
        """Describe the progress of the training."""
        if self.members:
            done = sum(member is None for member in self.members.values())
            return f"{done} of {len(self.members)} members trained"
        training = self.training
        if training is None or training.checkpoint is None:
            return None
        position = training.checkpoint.position
        if position.finished:
            return "fitted; evaluation and publishing are left"
        text = f"{position} of at most {self.max_iter}"
        left = training.seconds_left(self.max_iter)
        if self.state is State.RUNNING and left is not None:
            return f"{text}, at most {duration(left)} left in this step"
        return text

    def remedy(self) -> str | None:
        """Return the remedy, if action is needed."""
        hint = self.job_status.hint if self.job_status is not None else None
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
        training, status = self.training, self.job_status
        checkpoint = training.checkpoint if training is not None else None
        left = training.seconds_left(self.max_iter) if training is not None else None
        return {
            "generation": self.generation,
            "state": self.state,
            "job": self.job.document() if self.job is not None else None,
            "native_state": status.native if status is not None else None,
            "reason": status.reason if status is not None else None,
            "other_jobs": [other.document() for other in self.others],
            "exit_code": status.exit_code if status is not None else None,
            "remedy": self.remedy(),
            "attempt": training.attempt if training is not None else None,
            "outside": describe_run(self.outside) if self.outside is not None else None,
            "iterations": checkpoint.iterations if checkpoint is not None else None,
            "saved": checkpoint.saved.isoformat() if checkpoint is not None else None,
            "members_trained": [n for n, member in self.members.items() if member is None],
            "seconds_left_in_step": left,
            "published": self.manifest.ended.isoformat() if self.manifest is not None else None,
        }


class StatusReader:
    """Reads the status of generations of a family.

    `unread` maps a source that could not be read to the error; its part of the status is left out,
    and it is not tried again.
    """

    def __init__(self, config: JobConfig, registry: Registry, scheduler: Scheduler) -> None:
        self.unread: dict[Source, MlipJobError] = {}
        self._config = config
        self._registry = registry
        self._scheduler = scheduler

    def unread_messages(self) -> dict[str, str]:
        """Return why a source could not be read, by its name.

        Raises
        ------
        UnavailableError
            If none of them could.
        """
        unread = self.unread
        if len(unread) == len(Source):
            texts = "; ".join(f"the {source}: {error.message}" for source, error in unread.items())
            raise UnavailableError(
                f"nothing can be read, neither store nor scheduler: {texts}",
                hint=unread[Source.STORE].hint,
            )
        return {str(source): error.message for source, error in unread.items()}

    def read(self, generation: int) -> GenerationStatus:
        """Return the status of a generation."""
        found = self._read(generation)
        if found.state is not State.PUBLISHED:
            return found
        try:
            for job in self._scheduler.active(self._config.family, generation)[:1]:
                return replace(found, job=job, job_status=self._scheduler.status(job))
        except MlipJobError:  # a published generation needs no scheduler
            pass
        return found

    def read_all(self) -> Iterator[GenerationStatus]:
        """Yield the status of every generation of which anything is known, ascending."""
        family, keys = self._config.family, self._registry.keys
        names = self._try(
            Source.STORE, lambda: list(self._registry.store.list_prefixes(keys.generations))
        )
        submitted = self._try(Source.SCHEDULER, lambda: self._scheduler.generations(family))
        stored = {n for n in map(parse_generation_name, names or ()) if n is not None}
        for number in sorted(stored | (submitted or set())):
            status = self._read(number)
            if status.state is not State.ABSENT:
                yield status

    def _try(self, source: Source, ask: Callable[[], T]) -> T | None:
        """Return the answer of a source; None if it can't be read."""
        # A damaged manifest in a store that can be read is an error.
        errors = UnavailableError if source is Source.STORE else MlipJobError
        if source in self.unread:
            return None
        try:
            return ask()
        except errors as error:
            self.unread[source] = error
            return None

    def _read(self, generation: int) -> GenerationStatus:
        manifest = self._try(Source.STORE, lambda: self._registry.find(generation))
        if manifest is not None:
            return GenerationStatus(generation, State.PUBLISHED, manifest)
        stored = self._try(Source.STORE, lambda: self._training(generation))
        training, members = stored or (None, {})
        known = self._try(Source.SCHEDULER, lambda: self._jobs(generation))
        job, status, others = known or (None, None, ())
        outside = None
        if training is not None and is_outside(training, job, status, member=bool(members)):
            outside = training
            if status is not None and status.state.ended:
                job, status = None, None  # an earlier job does not describe this one
        state = _state(job, status, training, started=bool(members))
        if outside is not None:
            state = State.RUNNING
        if state is State.ABSENT and self.unread:
            state = State.UNKNOWN
        return GenerationStatus(
            generation,
            state,
            job=job,
            job_status=status,
            others=others,
            training=training,
            members=members,
            max_iter=self._config.training.max_iter,
            outside=outside,
            store_read=Source.STORE not in self.unread,
        )

    def _training(
        self, generation: int
    ) -> tuple[TrainingProgress | None, dict[int, TrainingProgress | None]]:
        """Return the progress of a generation, and of each member of an ensemble."""
        from mlip_job.registry import members_of
        from mlip_job.registry.checkpoints import read_progress

        training = read_progress(self._registry, generation)
        members = {
            number: None
            if member.find_own(generation) is not None
            else read_progress(member, generation)
            for number, member in members_of(self._registry, generation).items()
        }
        runs = [run for run in (training, *members.values()) if run is not None]
        newest = max(runs, key=lambda run: (run.live, run is training, run.attempt), default=None)
        return newest, members

    def _jobs(
        self, generation: int
    ) -> tuple[JobHandle | None, JobStatus | None, tuple[JobHandle, ...]]:
        """Return the newest job, its status, and other submissions' active jobs."""
        family = self._config.family
        job = self._scheduler.find(family, generation)
        if job is None:
            return None, None, ()
        status = self._scheduler.status(job)
        if status.state.ended:
            return job, status, ()
        active = self._scheduler.active(family, generation)
        return job, status, tuple(other for other in active if other != job)


def _state(
    job: JobHandle | None,
    status: JobStatus | None,
    training: TrainingProgress | None,
    *,
    started: bool,
) -> State:
    if status is not None and status.state in _BY_JOB:
        return _BY_JOB[status.state]
    if training is not None and training.live:
        return State.RUNNING
    if status is not None and status.state is JobState.SUCCEEDED:
        return State.ENDED
    if training is not None or started:
        return State.STOPPED
    return State.UNKNOWN if job is not None else State.ABSENT


# -- runs that are no job of the scheduler ---------------------------------------------------------


def is_outside(
    training: TrainingProgress,
    job: JobHandle | None,
    status: JobStatus | None,
    *,
    member: bool = False,
) -> bool:
    """Return whether a live run is not the scheduler's newest job of its generation.

    A `member` of an ensemble can't be distinguished from another array's: Slurm gives each task of
    an array its own number.
    """
    if not training.live:
        return False
    if job is None or status is None:
        return True
    claimed = training.scheduler
    if not training.certain:
        return False
    if claimed is None or claimed.kind != job.scheduler:
        return True
    job_id = job.id.partition(";")[0]
    same = claimed.id == job_id or claimed.id.startswith(f"{job_id}/")  # a pod of its Job
    return status.state.ended and not (member or same)


def describe_run(run: TrainingProgress) -> str:
    """Describe a run: its attempt, how it was started, and its process."""
    by = f"{run.scheduler.kind} job {run.scheduler.id}" if run.scheduler else "started by hand"
    machine = "this machine" if _is_here(run) else "another machine"
    return f"attempt {run.attempt}, {by}, process {run.process.pid} of {machine}"


def way_to_end(run: TrainingProgress) -> str:
    """Return the command that ends a run, with a checkpoint."""
    job = run.scheduler
    if job is not None and job.kind == "slurm":
        return f"scancel {job.id}"
    if job is not None and job.kind == "kubernetes":
        namespace, name, *_ = job.id.split("/")
        return f"kubectl delete job {name} --namespace {namespace}"
    return f"kill -TERM {run.process.pid}" + ("" if _is_here(run) else " on its machine")


def _is_here(run: TrainingProgress) -> bool:
    return run.process.host == ProcessIdentity.current().host
