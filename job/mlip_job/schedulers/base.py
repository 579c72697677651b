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
    again
        Whether the same was submitted before and goes on: it does not start over once more.
    """

    config: JobConfig
    generation: int
    directory: Path
    run_options: tuple[str, ...] = ()
    ensemble: int | None = None
    after: str | None = None
    again: bool = False

    @property
    def needs_gpu(self) -> bool:
        """Whether the job has a use for a GPU: a linear fit has none."""
        return not self.config.training.is_linear

    @property
    def starts_over(self) -> bool:
        """Whether the job removes what earlier runs left."""
        return FRESH in self.run_options and not self.again

    @property
    def options(self) -> tuple[str, ...]:
        """Options of ``run`` in this job, but for the member of an ensemble.

        A job that is started again has them too: ``--fresh`` spares what it did before.
        """
        given = (option for option in self.run_options if option != FRESH)
        return (*given, *((FRESH,) if self.starts_over else ()))


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
    """

    request: JobRequest
    name: str
    text: str


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
    found
        Whether `Scheduler.submit` found it, and made none.
    release
        Helm release that it belongs to, which stays when the job is cancelled; None for others.
    """

    scheduler: str
    id: str
    name: str
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
        same submission resumes from its checkpoint.
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

        The same plan again, while its job waits or runs, returns that job.

        Raises
        ------
        ConflictError
            If a job of another submission for the same generation waits or runs.
        """

    def find(self, family: str, generation: int) -> JobHandle | None:
        """Return the job of a generation's newest submission, or None."""

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        """Return all jobs of a generation that wait or run, whoever submitted them.

        Several where two submissions were made at once.
        """

    def generations(self, family: str) -> set[int]:
        """Return the generations of a family that the scheduler knows jobs of."""

    def status(self, handle: JobHandle) -> JobStatus:
        """Return what a job is doing; UNKNOWN or GONE once the scheduler has forgotten it."""

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """Yield the lines that a job printed; they may be gone soon after the job.

        With `follow`, until it has ended.
        """

    def cancel(self, handle: JobHandle) -> None:
        """Have a job stop, leaving time for a checkpoint.

        It does not wait for their end, which `status` tells. Ended jobs are no error.
        """
