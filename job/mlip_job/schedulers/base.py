"""The contract that every scheduler fulfils.

Planning and doing are apart: `Scheduler.plan` is a pure function of the request, and its text is
what ``--dry-run`` prints; `Scheduler.submit` is the side effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlip_job.config import JobConfig


FRESH = "--fresh"


class Stage(StrEnum):
    """What a job does of a run, which several jobs may share: only the fit may need a GPU.

    Of one submission, they come in this order.

    Attributes
    ----------
    DATASET
        ``mlip-job run --until dataset``.
    FIT
        ``mlip-job run --until fit``.
    PUBLISH
        What is left after the fit, ``mlip-job run`` again.
    WHOLE
        All of it, ``mlip-job run``; or all that is left to do after `DATASET`.
    """

    DATASET = "dataset"
    FIT = "fit"
    PUBLISH = "publish"
    WHOLE = "whole"

    @property
    def fits(self) -> bool:
        """Whether the job fits."""
        return self in (Stage.FIT, Stage.WHOLE)

    def needs_gpu(self, config: JobConfig) -> bool:
        """Whether the job has a use for a GPU: a linear fit has none."""
        return self.fits and not config.training.is_linear

    @property
    def options(self) -> tuple[str, ...]:
        """Options of ``run`` that end it where the stage does."""
        return ("--until", self.value) if self in (Stage.DATASET, Stage.FIT) else ()

    @property
    def position(self) -> int:
        """Its place in the order of a submission's jobs."""
        return list(Stage).index(self)


def stages(*, split_export: bool, split_evaluation: bool) -> tuple[Stage, ...]:
    """Return the jobs that a run is split into, in order."""
    if not split_export and not split_evaluation:
        return (Stage.WHOLE,)
    first = (Stage.DATASET,) if split_export else ()
    last = (Stage.FIT, Stage.PUBLISH) if split_evaluation else (Stage.WHOLE,)
    return (*first, *last)


@dataclass(frozen=True)
class JobRequest:
    """What shall run: ``mlip-job run --generation N`` with a configuration.

    Attributes
    ----------
    config
        The resolved configuration; it names no secret.
    generation
        What to train.
    directory
        Where relative paths of the configuration are taken from; absolute.
    run_options
        More options of ``run``, e.g. ``("--fresh",)``.
    ensemble
        Number of members to train with different seeds, or None.
    after
        Job of the same scheduler that has to succeed first: an id, or None.
    stages
        The jobs that the submission consists of, in order.
    stage
        Which of them this is.
    follows
        Id of the submission's job before this one, which has to succeed first; None for the first.
    again
        Whether the same was submitted before and goes on: it does not start over once more.
    """

    config: JobConfig
    generation: int
    directory: Path
    run_options: tuple[str, ...] = ()
    ensemble: int | None = None
    after: str | None = None
    stages: tuple[Stage, ...] = (Stage.WHOLE,)
    stage: Stage = Stage.WHOLE
    follows: str | None = None
    again: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the first job of the submission."""
        return self.stage is self.stages[0]

    @property
    def needs_gpu(self) -> bool:
        """Whether the job has a use for a GPU."""
        return self.stage.needs_gpu(self.config)

    @property
    def starts_over(self) -> bool:
        """Whether the job removes what earlier runs left; that is for the first one to do."""
        return FRESH in self.run_options and self.is_first and not self.again

    @property
    def options(self) -> tuple[str, ...]:
        """Options of ``run`` in this job, but for the member of an ensemble.

        A job that is started again has them too: ``--fresh`` spares what it did before.
        """
        given = (option for option in self.run_options if option != FRESH)
        return (*given, *self.stage.options, *((FRESH,) if self.starts_over else ()))

    @property
    def members(self) -> int | None:
        """Number of members that this job is for; they have one dataset, made by one job."""
        return None if self.stage is Stage.DATASET else self.ensemble


@dataclass(frozen=True)
class Plan:
    """A submission that is ready to be made.

    Attributes
    ----------
    request
        What it is of.
    name
        Of the job.
    text
        The script or the manifests, exactly as they are submitted.
    note
        What whoever submits it and does not wait has to know; None where there is nothing.
    """

    request: JobRequest
    name: str
    text: str
    note: str | None = None


@dataclass(frozen=True)
class JobHandle:
    """A job that a scheduler knows, or knew.

    Attributes
    ----------
    scheduler
        ``slurm``, ``kubernetes`` or ``local``.
    id
        What the scheduler calls it: a job id; namespace and name.
    name
        Its name.
    stage
        What it does of a run.
    found
        Whether `Scheduler.submit` found it, and made none.
    release
        Helm release that it belongs to, which stays when the job is cancelled; None for others.
    """

    scheduler: str
    id: str
    name: str
    stage: Stage = Stage.WHOLE
    found: bool = field(default=False, compare=False)
    release: str | None = field(default=None, compare=False)


class JobState(StrEnum):
    """What a job is doing.

    UNKNOWN is not failure: the scheduler could not be asked, or forgot. GONE is its answer that it
    has no such job, as once a Kubernetes Job is deleted.
    """

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    GONE = "gone"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of the job by itself."""
        return self in (
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.GONE,
        )


@dataclass(frozen=True)
class JobStatus:
    """What a scheduler says of a job.

    Attributes
    ----------
    state
        In the terms of all schedulers.
    native
        In the scheduler's own: ``PREEMPTED``, ``OOMKilled``, …
    reason
        Why it waits or how it failed, in words; None where there is nothing to say.
    hint
        What to do about it.
    exit_code
        Of ``mlip-job run``, where it is known.
    resubmit
        Whether it ended by no fault of its own, and the scheduler does not start it again: the
        same submission goes on from its checkpoint. Of a job that waits: whether it waits for just
        that.
    """

    state: JobState
    native: str
    reason: str | None = None
    hint: str | None = None
    exit_code: int | None = None
    resubmit: bool = False


class Scheduler(Protocol):
    """One kind of scheduler.

    All methods but `plan` raise `UnavailableError` where the scheduler can't be reached, and
    `ConfigError` where it refuses what was asked.
    """

    name: str

    def plan(self, request: JobRequest) -> Plan:
        """Return the submission as text; pure, and the same for the same request.

        Raises
        ------
        ConfigError
            If the settings can't be submitted; the message names the key.
        """

    def submit(self, plan: Plan) -> JobHandle:
        """Make the submission and return its job.

        The same plan again, while its job waits or runs, returns that job. Of a submission of
        several jobs, one that has succeeded is not run again: it is returned too.

        Raises
        ------
        ConflictError
            If a job of another submission for the same generation waits or runs.
        """

    def find(self, family: str, generation: int) -> JobHandle | None:
        """Return the job that matters now of a generation's newest submission, or None.

        That is the one that runs; else the first that waits, failed or was cancelled; else the
        last. What waits for a job that failed never matters.
        """

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        """Return all jobs of a generation that wait or run, whoever submitted them.

        Several where a submission has several, or where two submissions were made at once.
        """

    def generations(self, family: str) -> set[int]:
        """Return the generations of a family that the scheduler knows jobs of."""

    def status(self, handle: JobHandle) -> JobStatus:
        """Return what a job is doing; UNKNOWN or GONE once the scheduler has forgotten it.

        Where it does a part of a run, the reason tells which.
        """

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """Yield the lines that a job printed, and the others of its submission, in their order.

        With `follow`, until all have ended. They may be gone soon after the job.
        """

    def cancel(self, handle: JobHandle) -> None:
        """Have a job stop, and the others of its submission, leaving time for a checkpoint.

        It does not wait for their end, which `status` tells. Ended jobs are no error.
        """
