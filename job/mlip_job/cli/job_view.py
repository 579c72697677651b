"""What store and scheduler together say of a generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mlip_job.cli.job_words import document_of, name_of
from mlip_job.cli.output import duration
from mlip_job.cli.outside import description, is_outside, way_to_end
from mlip_job.errors import MlipJobError
from mlip_job.naming import generation_name, parse_generation_name
from mlip_job.schedulers.base import JobState
from mlip_job.schedulers.stage_words import in_brackets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.registry.training_now import TrainingNow
    from mlip_job.schedulers.base import JobHandle, JobStatus, Scheduler


class State(StrEnum):
    """What a generation is."""

    PUBLISHED = "published"
    RUNNING = "running"
    PENDING = "pending"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    UNKNOWN = "unknown"
    ABSENT = "absent"


_BY_JOB = {
    JobState.PENDING: State.PENDING,
    JobState.RUNNING: State.RUNNING,
    JobState.FAILED: State.FAILED,
    JobState.CANCELLED: State.CANCELLED,
}
_HALTED = (State.FAILED, State.CANCELLED, State.STOPPED)


@dataclass(frozen=True)
class GenerationView:
    """A generation as it is seen from outside.

    Attributes
    ----------
    generation, state
        Which one, and what of it.
    manifest
        Where it is published.
    job, status
        Its newest job, where the scheduler knows one.
    training
        What the store says of its training, where it is not published; of an ensemble, of the
        member that was at work last.
    members
        What it says of each member of an ensemble; None for one that is trained.
    max_iter
        Iterations that a ladder step may take.
    outside
        The run that is at work, where that is no job that the scheduler knows of.
    """

    generation: int
    state: State
    manifest: Manifest | None = None
    job: JobHandle | None = None
    status: JobStatus | None = None
    training: TrainingNow | None = None
    members: Mapping[int, TrainingNow | None] = field(default_factory=dict)
    max_iter: int = 0
    outside: TrainingNow | None = None

    def progress(self) -> str | None:
        """Return how far the fit is, or each member's, in words."""
        if self.members:
            return ", ".join(
                f"member {number} "
                + ("trained" if training is None else self._progress(training) or "begun")
                for number, training in self.members.items()
            )
        return None if self.training is None else self._progress(self.training)

    def _progress(self, training: TrainingNow) -> str | None:
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
        """Return all that is worth saying beside the state."""
        if self.manifest is not None:
            return f"{self.manifest.ended:%Y-%m-%d %H:%M} UTC"
        parts = [self.status.reason] if self.status is not None and self.status.reason else []
        if self.outside is not None:
            parts.insert(0, description(self.outside))
            if self.job is not None:
                parts.append(f"{name_of(self.job)} can't train it meanwhile")
        if (progress := self.progress()) is not None:
            parts.append(progress if self.state is State.RUNNING else f"saved: {progress}")
        return "; ".join(parts)

    def remedy(self) -> str | None:
        """Return what to do, where something has to be done."""
        hint = self.status.hint if self.status is not None else None
        if self.outside is not None:
            return f"wait for it, or {way_to_end(self.outside)}"
        if self.state not in _HALTED:
            return hint
        saved = self.training is not None and self.training.checkpoint is not None
        command = f"mlip-job submit -g {self.generation}" + (" goes on from there" if saved else "")
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
    problem
        Why the scheduler could not be asked; what it says is left out then.
    """

    def __init__(self, config: JobConfig, registry: Registry, scheduler: Scheduler) -> None:
        self.problem: MlipJobError | None = None
        self._config = config
        self._registry = registry
        self._scheduler = scheduler

    def look(self, generation: int) -> GenerationView:
        """Return what a generation is now."""
        manifest = self._registry.find(generation)
        if manifest is not None:
            return GenerationView(generation, State.PUBLISHED, manifest)
        return self._unpublished(generation)

    def all(self) -> Iterator[GenerationView]:
        """Yield every generation of which anything is known, ascending."""
        keys = self._registry.keys
        names = {*self._registry.store.list_prefixes(keys.generations), *self._work_directories()}
        numbers = sorted({n for n in map(parse_generation_name, names) if n is not None})
        for number in numbers:
            view = self.look(number)
            if view.state is not State.ABSENT:
                yield view
        # Jobs that wait have left nothing yet, unless they were submitted from here.
        number = max(numbers, default=0) + 1
        while (view := self._unpublished(number)).state is not State.ABSENT:
            yield view
            number += 1

    def _unpublished(self, generation: int) -> GenerationView:
        from mlip_job.registry import members_of
        from mlip_job.registry.training_now import look_at_training

        training = look_at_training(self._registry, generation)
        members = {
            number: None
            if member.find_own(generation) is not None
            else look_at_training(member, generation)
            for number, member in members_of(self._registry, generation).items()
        }
        under_way = [member for member in members.values() if member is not None]
        of_member = training is None
        training = training or max(under_way, key=lambda m: (m.live, m.attempt), default=None)
        job, status = self._ask(generation)
        outside = None
        if training is not None and is_outside(training, job, status, member=of_member):
            outside = training
            if status is not None and status.state.ended:
                job, status = None, None  # how an earlier job ended is not what is going on
        return GenerationView(
            generation,
            State.RUNNING if outside else _state(job, status, training, begun=bool(members)),
            job=job,
            status=status,
            training=training,
            members=members,
            max_iter=self._config.training.max_iter,
            outside=outside,
        )

    def _ask(self, generation: int) -> tuple[JobHandle | None, JobStatus | None]:
        if self.problem is not None:
            return None, None
        try:
            job = self._scheduler.find(self._config.family, generation)
            return job, self._scheduler.status(job) if job is not None else None
        except MlipJobError as error:
            self.problem = error
            return None, None

    def _work_directories(self) -> Iterator[str]:
        from mlip_job.schedulers.records import SubmitFiles

        for directory in SubmitFiles.root(self._config).glob("gen_*"):
            if SubmitFiles(directory).submission() is not None:
                yield directory.name


def _state(
    job: JobHandle | None, status: JobStatus | None, training: TrainingNow | None, *, begun: bool
) -> State:
    if status is not None and status.state in _BY_JOB:
        return _BY_JOB[status.state]
    if training is not None or begun:
        return State.RUNNING if training is not None and training.live else State.STOPPED
    return State.UNKNOWN if job is not None else State.ABSENT


def title(view: GenerationView) -> str:
    """Return a generation's name and state in one line."""
    job = f" ({name_of(view.job)}{in_brackets(view.job.stage)})" if view.job is not None else ""
    return f"{generation_name(view.generation)} {view.state}{job}"
