"""The contract of all schedulers.

Planning and submitting are separate: `Scheduler.plan` is a pure function of the request, and its
text is what ``--dry-run`` prints; `Scheduler.submit` has the side effects.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import signal
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from jinja2 import Environment, PackageLoader, StrictUndefined

from mlip_job.errors import (
    ConfigError,
    ConflictError,
    DataError,
    GpuRequiredError,
    InterruptedRunError,
    MlipJobError,
    TrainingError,
    UnavailableError,
)
from mlip_job.paths import FAMILY_PATTERN, generation_name, parse_generation_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import JobConfig

_FRESH = "--fresh"


@dataclass(frozen=True)
class JobRequest:
    """What to run: ``mlip-job run --generation N`` with a resolved configuration.

    `directory` is absolute and resolves relative paths of the configuration. `after` is the id of a
    job of the same scheduler that must succeed first. `again` marks the resubmission of an earlier
    submission, which does not start over again.
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
        """Whether the job can use a GPU: a linear fit can't."""
        return not self.config.training.is_linear

    @property
    def starts_over(self) -> bool:
        """Whether the job discards the checkpoints of earlier runs."""
        return _FRESH in self.run_options and not self.again

    @property
    def options(self) -> tuple[str, ...]:
        """Options of ``run`` in this job, without the member of an ensemble.

        A restarted job has the same options: ``--fresh`` keeps the checkpoints of the same job.
        """
        others = (option for option in self.run_options if option != _FRESH)
        return (*others, *((_FRESH,) if self.starts_over else ()))


@dataclass(frozen=True)
class Plan:
    """A submission: the job's name, and the script or manifests exactly as they are submitted."""

    request: JobRequest
    name: str
    text: str


@dataclass(frozen=True)
class JobHandle:
    """A job of a scheduler.

    `id` is the scheduler's: a job id, or namespace and name. `found` marks an existing job that
    `Scheduler.submit` returned instead of a new one. `release` is the Helm release of the job.
    """

    scheduler: str
    id: str
    name: str
    found: bool = field(default=False, compare=False)
    release: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        kind = {"local": "process", "kubernetes": "Job"}.get(
            self.scheduler, f"{self.scheduler} job"
        )
        return f"{kind} {self.id}"

    def document(self) -> dict[str, str]:
        """Return it for ``--json``."""
        return {"scheduler": self.scheduler, "id": self.id, "name": self.name}


class JobState(StrEnum):
    """The state of a job.

    UNKNOWN is not a failure: the scheduler is unavailable or no longer knows the job. GONE means
    that the scheduler has no such job, e.g. after a Kubernetes Job was deleted.
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
        """Whether the job will not run again by itself."""
        return not (self.active or self is JobState.UNKNOWN)

    @property
    def active(self) -> bool:
        """Whether the job is pending or running."""
        return self in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class JobStatus:
    """The status of a job, as reported by its scheduler.

    `native` is the scheduler's own term: ``PREEMPTED``, ``OOMKilled``, … `reason` explains why the
    job is pending or failed, `hint` suggests what to do. `exit_code` is that of ``mlip-job run``.
    `resubmit` marks an interrupted job that the scheduler does not requeue: the same submission
    resumes from its checkpoint.
    """

    state: JobState
    native: str
    reason: str | None = None
    hint: str | None = None
    exit_code: int | None = None
    resubmit: bool = False


class Scheduler(Protocol):
    """One kind of scheduler.

    All methods but `plan` raise `UnavailableError` if the scheduler is unavailable, and
    `ConfigError` if it rejects the request.
    """

    name: str

    def plan(self, request: JobRequest) -> Plan:
        """Return the submission as text; pure, and the same for the same request.

        A ConfigError names the key of a setting that can't be submitted.
        """

    def submit(self, plan: Plan) -> JobHandle:
        """Submit a plan and return its job.

        While a job of the same plan is pending or running, that job is returned. One of another
        submission for the same generation is a ConflictError.
        """

    def find(self, family: str, generation: int) -> JobHandle | None:
        """Return the job of a generation's newest submission, or None."""

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        """Return all pending and running jobs of a generation, by any submitter.

        Concurrent submissions may result in several.
        """

    def generations(self, family: str) -> set[int]:
        """Return the generations of a family that the scheduler knows jobs of."""

    def status(self, handle: JobHandle) -> JobStatus:
        """Return the status of a job; UNKNOWN or GONE if the scheduler no longer knows it."""

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """Yield the lines that a job printed; with `follow`, until it has ended.

        The log may disappear soon after the job.
        """

    def cancel(self, handle: JobHandle) -> None:
        """Stop a job, leaving it time for a checkpoint; do not wait for its end.

        Cancelling an ended job is not an error.
        """


# -- names of jobs ---------------------------------------------------------------------------------

_NAME = re.compile(rf"mlip-({FAMILY_PATTERN})-(gen_\d+)-([0-9a-f]{{8}})-([0-9a-f]{{8}})")


@dataclass(frozen=True)
class JobName:
    """The name of a job in a queue, ``mlip-cu-ni-gen_04-1a2b3c4d-5e6f7a8b``.

    The hashes `store` and `submission` distinguish families of one name in several stores, and
    submissions.
    """

    family: str
    generation: int
    store: str
    submission: str

    def __str__(self) -> str:
        name = generation_name(self.generation)
        return f"mlip-{self.family}-{name}-{self.store}-{self.submission}"

    @classmethod
    def of(cls, request: JobRequest) -> Self:
        """Name the job of a request; a request of another submission has another name."""
        config = request.config
        content = {
            "config": config.model_dump(mode="json"),
            "generation": request.generation,
            "directory": str(request.directory),
            "run_options": request.run_options,
            "ensemble": request.ensemble,
            "after": request.after,
        }
        submission = _hash(json.dumps(content, sort_keys=True))
        return cls(config.family, request.generation, _store_hash(config), submission)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a name; None for jobs of other programs."""
        match = _NAME.fullmatch(text)
        generation = parse_generation_name(match.group(2)) if match is not None else None
        if match is None or generation is None:
            return None
        return cls(match.group(1), generation, match.group(3), match.group(4))

    def is_of(self, config: JobConfig, family: str) -> bool:
        """Tell whether the job trains a generation of a family in the configured store."""
        return (self.family, self.store) == (family, _store_hash(config))


def require_same(active: JobHandle, plan: Plan) -> None:
    """Raise a ConflictError if a pending or running job belongs to another submission."""
    if active.name == plan.name:
        return
    generation = plan.request.generation
    raise ConflictError(
        f"job {active.id} for {generation_name(generation)} is pending or running, with another "
        "configuration or other options",
        hint=f"mlip-job cancel -g {generation} ends it",
    )


def _store_hash(config: JobConfig) -> str:
    return _hash(f"{config.storage.url}\n{config.storage.endpoint_url}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# -- exit codes of a run ---------------------------------------------------------------------------


class ExitMeaning(NamedTuple):
    """How a run ended, and the kind of error that it ended with."""

    reason: str
    error: type[MlipJobError]

    @property
    def retry(self) -> bool:
        """Whether a retry of the same run may succeed."""
        return self.error in (UnavailableError, InterruptedRunError)


# 126, 127 and 137 are the shell's: no program, and ended by SIGKILL.
_EXIT_CODES: Mapping[int, ExitMeaning] = {
    64: ExitMeaning("the configuration or the command line is wrong", ConfigError),
    65: ExitMeaning("the data can't be trained on, or an object is damaged", DataError),
    69: ExitMeaning("the store or the database was unavailable", UnavailableError),
    70: ExitMeaning("the training failed", TrainingError),
    71: ExitMeaning("a GPU is required and TensorFlow saw none", GpuRequiredError),
    73: ExitMeaning("the generation exists or is trained elsewhere", ConflictError),
    75: ExitMeaning("it was stopped, its checkpoint is saved", InterruptedRunError),
    126: ExitMeaning("the program to run can't be executed on the node", ConfigError),
    127: ExitMeaning("the program to run was not found on the node", ConfigError),
    137: ExitMeaning("it was killed, as for using too much memory", TrainingError),
}
# Signals with which a person or a scheduler stops a run.
_INTERRUPTING = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)


def meaning_of(exit_code: int) -> ExitMeaning:
    """Return what an exit code other than 0 means; above 128, a shell's code for a signal."""
    if exit_code in _EXIT_CODES:
        return _EXIT_CODES[exit_code]
    try:
        number = signal.Signals(exit_code - 128)
    except ValueError:
        return ExitMeaning("it failed without saying why", MlipJobError)
    if number in _INTERRUPTING:
        return ExitMeaning(f"it was interrupted by {number.name}", InterruptedRunError)
    return ExitMeaning(f"it was ended by {number.name}", TrainingError)


# -- texts from templates, in which no value can become code ---------------------------------------

# Line breaks and unprintable characters in YAML, though not in JSON.
_SPECIAL = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")


class Code(str):
    """Text that is inserted unquoted: code that the user wrote, or a quoted value."""

    __slots__ = ()


def render(template: str, **values: object) -> str:
    """Fill a template; every inserted value that is no `Code` is quoted: for the shell, or as JSON.

    JSON is a subset of YAML, so templates named ``.yaml.j2`` give valid YAML.
    """
    quote = _quote_json if template.endswith(".yaml.j2") else _quote_shell
    return _environment(quote).get_template(template).render(values)


@cache
def _environment(quote: Callable[[object], str]) -> Environment:
    return Environment(  # noqa: S701 - quoted for a shell or as JSON, not for HTML
        loader=PackageLoader("mlip_job.schedulers"),
        finalize=quote,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _quote_shell(value: object) -> str:
    return value if isinstance(value, Code) else shlex.quote(str(value))


def _quote_json(value: object) -> str:
    if isinstance(value, Code):
        return value
    # A pair of surrogates, which JSON's own escapes need, is no character in YAML.
    text = json.dumps(value, ensure_ascii=False)
    return _SPECIAL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
