"""What a submission leaves in the work directory: files, and records that outlive the scheduler's.

::

    <work>/gen_04/submit.sbatch          the script, as it was submitted
    <work>/gen_04/mlip-job.yaml          the resolved configuration that the run reads
    <work>/gen_04/submission.json        which job it became
    <work>/gen_04/slurm-4711.log         what the job printed
    <work>/gen_04/slurm-4711.ended       its exit code, written by the script itself
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mlip_job.environment import ProcessIdentity
from mlip_job.errors import ConfigError
from mlip_job.naming import FAMILY_PATTERN, generation_name, parse_generation_name

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobRequest

_JOB = re.compile(rf"mlip-({FAMILY_PATTERN})-(gen_\d+)-([0-9a-f]{{8}})-[0-9a-f]{{8}}")


class Submission(BaseModel):
    """Content of ``submission.json``.

    Attributes
    ----------
    scheduler, id, name
        The job, see `JobHandle`.
    submitted
        When.
    process
        Which process it is, where it is one of this machine's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    scheduler: str
    id: str
    name: str
    submitted: datetime
    process: ProcessIdentity | None = None


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
        return self.directory / f"{scheduler}-{job_id}.log"

    def ended(self, scheduler: str, job_id: str) -> Path:
        """Return the record of how a job ended."""
        return self.directory / f"{scheduler}-{job_id}.ended"

    def cancelled(self, scheduler: str, job_id: str) -> Path:
        """Return the mark of a job that was told to stop, where the scheduler keeps none."""
        return self.directory / f"{scheduler}-{job_id}.cancelled"

    def write(self, script: Path, text: str, config: JobConfig) -> None:
        """Write the script and the configuration beside it."""
        values = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            _write_whole(self.config, values)
            _write_whole(script, text)
        except OSError as error:
            raise ConfigError(
                f"can't write to {self.directory}: {error.strerror}", hint="set work_dir"
            ) from None

    def record(self, submission: Submission) -> None:
        """Remember which job the submission became."""
        _write_whole(self._submission, submission.model_dump_json(indent=2) + "\n")

    def submission(self) -> Submission | None:
        """Return the newest job that is remembered."""
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

    @property
    def _submission(self) -> Path:
        return self.directory / "submission.json"


def _job_name(family: str, generation: int, store: str, submission: str) -> str:
    """Return the name of a job in a queue, ``mlip-cu-ni-gen_04-1a2b3c4d-5e6f7a8b``.

    Parameters
    ----------
    family, generation
        What it trains.
    store, submission
        Hashes that tell families of one name in several stores apart, and submissions.
    """
    return f"mlip-{family}-{generation_name(generation)}-{store[:8]}-{submission[:8]}"


def parse_job_name(name: str) -> tuple[str, int, str] | None:
    """Return family, generation and store that a job's name stands for; None for others' jobs."""
    match = _JOB.fullmatch(name)
    generation = parse_generation_name(match.group(2)) if match is not None else None
    if match is None or generation is None:
        return None
    return match.group(1), generation, match.group(3)


def name_of_job(request: JobRequest) -> str:
    """Return the name of a request's job; another request has another name."""
    content = {
        "config": request.config.model_dump(mode="json"),
        "generation": request.generation,
        "directory": str(request.directory),
        "run_options": request.run_options,
        "ensemble": request.ensemble,
        "after": request.after,
    }
    submission = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    config = request.config
    return _job_name(config.family, request.generation, _hash_of_store(config), submission)


def is_of(name: str, config: JobConfig, family: str, generation: int) -> bool:
    """Tell whether a job of this name trains a generation for the configured store."""
    return parse_job_name(name) == (family, generation, _hash_of_store(config)[:8])


def _hash_of_store(config: JobConfig) -> str:
    place = f"{config.storage.url}\n{config.storage.endpoint_url}"
    return hashlib.sha256(place.encode()).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new one, and never a part."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
