"""The files of a submission in the work directory: script, configuration, logs and records.

::

    <work>/gen_04/submit.sbatch          the script, as it was submitted
    <work>/gen_04/mlip-job.yaml          the resolved configuration that the run reads
    <work>/gen_04/submission.json        the submitted jobs
    <work>/gen_04/slurm-4711.log         the output of the job
    <work>/gen_04/slurm-4711.ended       its exit code, written by the script itself
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError

from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.models import Frozen
from mlip_job.paths import generation_name, make_private_directory, parse_generation_name, private
from mlip_job.runtime.environment import ProcessIdentity
from mlip_job.schedulers.base import JobHandle, JobName, JobState, JobStatus, meaning_of
from mlip_job.store.base import StoredName, is_relative, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlip_job.config import JobConfig

# It becomes part of file names, and of commands.
_JobId = Annotated[str, StringConstraints(pattern=r"^[1-9][\w;.-]{0,127}$")]


class SubmittedJob(Frozen):
    """A submitted job; `process` is set for a job on this machine."""

    id: _JobId
    name: str
    submitted: datetime = Field(default_factory=lambda: datetime.now(UTC))
    process: ProcessIdentity | None = None


class Submission(Frozen):
    """Content of ``submission.json``: one job; of an earlier version, possibly several."""

    schema_version: Literal[2] = 2
    scheduler: StoredName
    jobs: tuple[SubmittedJob, ...]


class Ended(Frozen):
    """How a job ended, as its own script recorded it.

    `resubmit` tells whether it has to be submitted again to resume; None if the script could not
    tell.
    """

    exit_code: int
    resubmit: bool | None


@dataclass(frozen=True)
class SubmitFiles:
    """The files of a generation's submissions, in its work directory.

    Ids of jobs come from a scheduler or a record: one that is no part of a file name is an
    `UnavailableError`.
    """

    directory: Path

    @classmethod
    def of(cls, config: JobConfig, generation: int) -> SubmitFiles:
        """Name those of a generation."""
        return cls(Path(config.work_dir) / generation_name(generation))

    @classmethod
    def of_job(cls, config: JobConfig, job: JobHandle) -> SubmitFiles:
        """Name those of a job's generation."""
        name = JobName.parse(job.name)
        return cls.of(config, name.generation if name is not None else 1)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.directory / "mlip-job.yaml"

    def of_id(self, kind: Literal["log", "ended", "cancelled"], scheduler: str, id_: str) -> Path:
        """Return the log of a job, the record of how it ended, or the mark of a cancelled one."""
        name = f"{scheduler}-{id_}.{kind}"
        if "/" in name or not is_relative(name):
            raise UnavailableError(f"{shown(id_)} is no id of a job of {scheduler}")
        return self.directory / name

    def write(self, suffix: str, text: str, config: JobConfig) -> Path:
        """Write the configuration and the script; return the script."""
        values = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        script = self.directory / f"submit.{suffix}"
        try:
            make_private_directory(self.directory)
            write_whole(self.config, values)
            write_whole(script, text)
        except OSError as error:
            raise ConfigError(
                f"can't write to {self.directory}: {error.strerror}", hint="set work_dir"
            ) from None
        return script

    def record(self, scheduler: str, job: SubmittedJob) -> None:
        """Record a job as the newest submission."""
        submission = Submission(scheduler=scheduler, jobs=(job,))
        write_whole(self._submission, submission.model_dump_json(indent=2) + "\n")

    def submission(self) -> Submission | None:
        """Return the newest submission that is recorded."""
        try:
            return Submission.model_validate_json(self._submission.read_bytes())
        except (OSError, ValidationError):
            return None

    def submitted(self, job_id: str) -> SubmittedJob | None:
        """Return the job of an id, if it is one of the newest submission's."""
        submission = self.submission()
        jobs = submission.jobs if submission is not None else ()
        return next((job for job in jobs if job.id == job_id), None)

    def how_it_ended(self, scheduler: str, job_id: str) -> Ended | None:
        """Return how a job, or a task of it, ended according to its script."""
        try:
            return Ended.model_validate_json(self.of_id("ended", scheduler, job_id).read_bytes())
        except (OSError, ValidationError):
            return None

    @property
    def _submission(self) -> Path:
        return self.directory / "submission.json"


def recorded_jobs(
    config: JobConfig, scheduler: str, family: str, generation: int
) -> list[JobHandle]:
    """Return the jobs of a generation's newest submission, if a scheduler got it from here."""
    record = SubmitFiles.of(config, generation).submission()
    if record is None or record.scheduler != scheduler:
        return []
    return [
        JobHandle(scheduler, job.id, job.name)
        for job in record.jobs
        if (name := JobName.parse(job.name)) is not None
        and name.generation == generation
        and name.is_of(config, family)
    ]


def recorded_generations(config: JobConfig, scheduler: str, family: str) -> set[int]:
    """Return the generations whose newest submission went to a scheduler, from this directory."""
    names = (path.name for path in Path(config.work_dir).glob("gen_*"))
    numbers = {n for n in map(parse_generation_name, names) if n is not None}
    return {n for n in numbers if recorded_jobs(config, scheduler, family, n)}


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: a reader finds the old or the new content."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "w", encoding="utf-8", opener=private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# -- logs ------------------------------------------------------------------------------------------

_END_BYTES = 1 << 16
_ERROR, _HINT = "error: ", "  hint: "
_DETAILS = 5


def error_in(log: str) -> tuple[str, str | None] | None:
    """Return message and hint of the last error in a run's output, or None.

    `mlip_job.cli.main` prints ``error: …``, indented details, ``hint: …``.
    """
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(_ERROR)]
    if not starts:
        return None
    first, *rest = lines[starts[-1] :]
    details = []
    for line in rest:
        if not line.startswith("  ") or line.startswith(_HINT):
            break
        details.append(line.strip())
    message = " ".join(filter(None, (first.removeprefix(_ERROR), "; ".join(details[:_DETAILS]))))
    hints = (line.removeprefix(_HINT) for line in rest if line.startswith(_HINT))
    return message, next(hints, None)


def failed_run(
    code: int | None, log: str, native: str, *, resubmit: bool, noise: str = r"(?!)"
) -> JobStatus:
    """Return the status of a failed run, explained by its log; else by its exit code, if known.

    Lines of the log that begin with the pattern `noise` are not of the run.
    """
    error = error_in(log)
    lines = (line.strip() for line in reversed(log.splitlines()))
    last = next((line for line in lines if line and not re.match(noise, line)), None)
    reason, hint = error or (last, None)
    if error is None and code is not None:
        meaning = meaning_of(code)
        reason = meaning.reason
        if not meaning.retry:
            reason += f" (exit code {code})" + (f": {last}" if last else "")
    return JobStatus(JobState.FAILED, native, reason, hint, code, resubmit=resubmit)


def read_end(path: Path) -> str | None:
    """Return the end of a log; None if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return None


def lines_of(
    logs: Callable[[], Mapping[Path, str]], ended: Callable[[], bool] | None, interval: float
) -> Iterator[str]:
    """Yield the lines of one or several logs as they grow.

    `logs` returns the logs that exist, each with the prefix of its lines. They are followed until
    `ended` is true, with a look every `interval` seconds; without `ended`, they are read once.
    """
    unread: dict[Path, tuple[int, str]] = {}  # position, and a last line without its end
    while True:
        over = ended is None or ended()  # first: lines that are printed meanwhile are read below
        for path, prefix in logs().items():
            position, rest = unread.get(path, (0, ""))
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(position)
                data = file.read()
                *whole, rest = (rest + data.decode(errors="replace")).split("\n")
                unread[path] = position + len(data), rest
                yield from (prefix + line for line in whole)
            if over and rest:
                yield prefix + rest
        if over:
            return
        time.sleep(interval)
