"""Slurm's commands: run, repeated while the controller is busy, and read."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.retries import retrying
from mlip_job.schedulers.slurm.refusals import explain_refusal
from mlip_job.schedulers.slurm.states import SECTION, is_live

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_TIMEOUT_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
"""For so long a controller that does not answer is asked again to take a job."""
_GLANCE_SECONDS = 10.0
"""For so long it is asked again for what it knows: a person waits for that."""

# What the commands print where the controller is busy, restarts or can't be reached just now.
_PASSES = re.compile(
    "|".join(
        (
            "unable to contact slurm controller",
            "socket timed out",
            "connection (refused|timed out|reset)",
            "communication connection failure",
            "zero bytes were transmitted",
            "temporarily unable to accept job",
            "resource temporarily unavailable",
            "transport endpoint is not connected",
            "controller in standby mode",
            "message (send|receive) failure",
        )
    ),
    re.IGNORECASE,
)
_SUBMITTED = re.compile(r"(\d+)(?:;(\S+))?")
_JOB_ID = re.compile(r"\d+(?:_\S+)?")
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
_COLUMNS = 4


@dataclass(frozen=True)
class Task:
    """What one source says of a job, or of one task of an array.

    Attributes
    ----------
    id
        ``4711``, ``4711_2``, or ``4711_[3-4]`` for tasks that wait together.
    state
        Slurm's word.
    reason
        Slurm's word for why, where it has one.
    exit_code
        Of the script, where the source knows; None too where a signal ended it.
    name
        The job's, where the source says it.
    """

    id: str
    state: str
    reason: str | None = None
    exit_code: int | None = None
    name: str = ""


class SlurmError(UnavailableError):
    """A command of Slurm's that failed.

    Attributes
    ----------
    said
        What it printed.
    """

    def __init__(self, program: str, said: str, *, transient: bool) -> None:
        self.said = said
        super().__init__(
            f"{program} failed: {said or 'it said nothing'}",
            hint="scontrol ping tells whether the controller answers",
            transient=transient,
        )


def submit(script: Path, name: str, *, section: str = SECTION) -> str:
    """Submit a script and return the job's id, ``id;cluster`` on a cluster among several.

    Where the answer to a submission was lost, the job is found by its name.

    Parameters
    ----------
    script, name
        What to submit, and what the job is called.
    section
        Part of the configuration to look at where Slurm refuses the job.

    Raises
    ------
    ConfigError
        If Slurm refuses the job.
    UnavailableError
        If it can't be asked, or takes no more jobs for now.
    """

    def attempt() -> str:
        live = (job.id for job in my_jobs() if job.name == name and is_live(job.state))
        if (job_id := next(live, None)) is not None:
            return job_id.partition("_")[0]
        return _read_id(_run("sbatch", "--parsable", str(script)))

    try:
        return retrying(attempt, PATIENCE_SECONDS)
    except SlurmError as error:
        if error.transient:
            raise
        raise explain_refusal(error.said, partitions, section) from None


def my_jobs(patience: float = _GLANCE_SECONDS) -> list[Task]:
    """Return the caller's jobs that the controller still knows; of an array, each task."""
    return retrying(lambda: _squeue("--me"), patience)


def queued(job_id: str) -> list[Task]:
    """Return what the queue says of a job; nothing where it does not know it (any more)."""
    try:
        return retrying(lambda: _squeue(*_which(job_id)), _GLANCE_SECONDS)
    except SlurmError as error:
        if "Invalid job id" in error.said:
            return []
        raise


def accounted(job_id: str) -> list[Task]:
    """Return what the accounting says of a job; nothing where there is none."""
    columns = "--format=JobID,State,ExitCode"
    try:
        text = query(
            "sacct", "--noheader", "--parsable2", "--allocations", columns, *_which(job_id)
        )
    except (SlurmError, ConfigError):
        return []  # it is off at many sites, and often its daemon is away
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == _COLUMNS - 2]
    # "CANCELLED by 1000"
    return [Task(row[0], row[1].split()[0], None, _exit_code(row[2])) for row in rows if row[1]]


def controlled(job_id: str) -> list[Task]:
    """Return all that the controller says of a job; nothing where it has forgotten it."""
    *which, number = _which(job_id)
    try:
        text = query("scontrol", *which, "--oneliner", "show", "job", number.partition("=")[2])
    except SlurmError as error:
        if "Invalid job id" in error.said:
            return []
        raise
    return list(_records(text))


def partitions() -> list[str]:
    """Return the names of the partitions; nothing where they can't be asked for."""
    try:
        return sorted(set(query("sinfo", "--noheader", "--format=%R").split()))
    except UnavailableError:
        return []


def cancel(job_id: str) -> None:
    """Have a job end: a waiting one at once, a running one after KillWait at the latest."""
    *which, number = _which(job_id)
    query("scancel", *which, number.partition("=")[2])


def query(program: str, *arguments: str) -> str:
    """Run a command that changes nothing, or may be repeated; return what it printed."""
    return retrying(lambda: _run(program, *arguments), _GLANCE_SECONDS)


def _run(program: str, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and none of the words is a program
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
            env=_environment(os.environ),
        )
    except FileNotFoundError:
        raise ConfigError(
            f"{program} is not on PATH", hint="submit from a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(program, "it does not answer", transient=True) from None
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
    raise SlurmError(program, said, transient=_PASSES.search(said) is not None)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what would change the meaning of our options: SBATCH_*, an outer job's SLURM_*."""
    prefixes = ("SBATCH_", "SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(prefixes) or name in _KEPT_VARIABLES
    }


def _read_id(printed: str) -> str:
    """Find the id among what a site's wrappers and plugins print besides."""
    found = [
        match for line in printed.splitlines() if (match := _SUBMITTED.fullmatch(line.strip()))
    ]
    if not found:
        # It may have been accepted, so that the next try finds it by its name.
        raise SlurmError("sbatch", f"no job id in {printed[:200]!r}", transient=True)
    return found[-1].group()


def _which(job_id: str) -> list[str]:
    number, _, cluster = job_id.partition(";")
    return [*([f"--clusters={cluster}"] if cluster else []), f"--jobs={number}"]


def _squeue(*arguments: str) -> list[Task]:
    form = ("--noheader", "--states=all", "--format=%i|%T|%r|%j")
    rows = [
        line.strip().split("|", _COLUMNS - 1)
        for line in _run("squeue", *form, *arguments).splitlines()
    ]
    return [
        Task(job_id, state, None if reason in ("None", "(null)") else reason, None, name)
        for job_id, state, reason, name in (row for row in rows if len(row) == _COLUMNS)
        if _JOB_ID.fullmatch(job_id)
    ]


def _records(text: str) -> Iterator[Task]:
    """Read ``scontrol show job -o``; the first of each key is Slurm's, later ones may be paths."""
    for line in text.splitlines():
        found = {
            key: match.group(1)
            for key in ("JobId", "ArrayJobId", "ArrayTaskId", "JobState", "Reason", "ExitCode")
            if (match := re.search(rf"(?:^| ){key}=(\S*)", line))
        }
        if "JobId" in found and "JobState" in found:
            array, task = found.get("ArrayJobId"), found.get("ArrayTaskId")
            reason = found.get("Reason", "None")
            yield Task(
                id=f"{array}_{task}" if array and task else found["JobId"],
                state=found["JobState"],
                reason=None if reason == "None" else reason,
                exit_code=_exit_code(found.get("ExitCode", "")),
            )


def _exit_code(text: str) -> int | None:
    """Return the code in ``75:0``; after the colon stands the signal that ended the script."""
    code, _, number = text.partition(":")
    return int(code) if code.isdecimal() and number == "0" else None
