"""What a submission leaves in the work directory: files, and records that outlive the scheduler's.

::

    <work>/gen_04/submit.sbatch          the script, as it was submitted
    <work>/gen_04/mlip-job.yaml          the resolved configuration that the run reads
    <work>/gen_04/submission.json        which jobs it became
    <work>/gen_04/slurm-4711.log         what the job printed
    <work>/gen_04/slurm-4711.ended       its exit code, written by the script itself
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from mlip_job.disk import make_private_directory, private
from mlip_job.environment import ProcessIdentity
from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.naming import generation_name, parse_generation_name
from mlip_job.store.keys import StoredName, is_relative, shown

if TYPE_CHECKING:
    from mlip_job.config import JobConfig

_JobId = Annotated[str, StringConstraints(pattern=r"^[1-9][\w;.-]{0,127}$")]
"""It becomes part of file names, and of commands."""


class SubmittedJob(BaseModel):
    """A job that a submission became.

    Attributes
    ----------
    id, name
        See `JobHandle`.
    submitted
        When.
    process
        Which process it is, where it is one of this machine's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: _JobId
    name: str
    submitted: datetime
    process: ProcessIdentity | None = None


class Submission(BaseModel):
    """Content of ``submission.json``.

    Attributes
    ----------
    scheduler
        Where.
    jobs
        What it became: one job; of an earlier version, possibly several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    scheduler: StoredName
    jobs: tuple[SubmittedJob, ...]

    def job(self, job_id: str) -> SubmittedJob | None:
        """Return the job of an id, if it is one of the submission's."""
        return next((job for job in self.jobs if job.id == job_id), None)


class Ended(BaseModel):
    """How a job ended, in the words of its own script.

    Attributes
    ----------
    exit_code
        Of the run.
    resubmit
        Whether it has to be submitted again to go on; None where the script could not tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int
    resubmit: bool | None


@dataclass(frozen=True)
class SubmitFiles:
    """The files of a generation's submissions, in its work directory."""

    directory: Path

    @classmethod
    def of(cls, config: JobConfig, generation: int) -> SubmitFiles:
        """Name those of a generation."""
        return cls(cls.root(config) / generation_name(generation))

    @staticmethod
    def root(config: JobConfig) -> Path:
        """Return where the directories of all generations are."""
        return Path(config.work_dir)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.directory / "mlip-job.yaml"

    def script(self, suffix: str) -> Path:
        """Return the script, whose suffix tells the scheduler's kind."""
        return self.directory / f"submit.{suffix}"

    def log(self, scheduler: str, job_id: str) -> Path:
        """Return what a job printed."""
        return self._of_job(scheduler, job_id, "log")

    def ended(self, scheduler: str, job_id: str) -> Path:
        """Return the record of how a job ended."""
        return self._of_job(scheduler, job_id, "ended")

    def cancelled(self, scheduler: str, job_id: str) -> Path:
        """Return the mark of a job that was told to stop, where the scheduler keeps none."""
        return self._of_job(scheduler, job_id, "cancelled")

    def write(self, script: Path, text: str, config: JobConfig) -> None:
        """Write the script and the configuration beside it."""
        values = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        try:
            make_private_directory(self.directory)
            write_whole(self.config, values)
            write_whole(script, text)
        except OSError as error:
            raise ConfigError(
                f"can't write to {self.directory}: {error.strerror}", hint="set work_dir"
            ) from None

    def record(self, scheduler: str, job: SubmittedJob) -> None:
        """Remember a job as the newest submission."""
        submission = Submission(scheduler=scheduler, jobs=(job,))
        write_whole(self._submission, submission.model_dump_json(indent=2) + "\n")

    def submission(self) -> Submission | None:
        """Return the newest submission that is remembered."""
        try:
            return Submission.model_validate_json(self._submission.read_bytes())
        except (OSError, ValidationError):
            return None

    def how_it_ended(self, scheduler: str, job_id: str) -> Ended | None:
        """Return how a job, or a task of it, says that it ended."""
        try:
            return Ended.model_validate_json(self.ended(scheduler, job_id).read_bytes())
        except (OSError, ValidationError):
            return None

    def _of_job(self, scheduler: str, job_id: str, suffix: str) -> Path:
        """Return a file of a job, whose id a scheduler said or a record holds."""
        name = f"{scheduler}-{job_id}.{suffix}"
        if "/" in name or not is_relative(name):
            raise UnavailableError(f"{shown(job_id)} is no id of a job of {scheduler}")
        return self.directory / name

    @property
    def _submission(self) -> Path:
        return self.directory / "submission.json"


def recorded_generations(config: JobConfig, scheduler: str) -> set[int]:
    """Return the generations whose newest submission was made to a scheduler, from here."""
    directories = SubmitFiles.root(config).glob("gen_*")
    found = ((parse_generation_name(path.name), SubmitFiles(path)) for path in directories)
    return {
        number
        for number, files in found
        if number is not None
        and (record := files.submission()) is not None
        and record.scheduler == scheduler
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new one, and never a part."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "w", encoding="utf-8", opener=private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
