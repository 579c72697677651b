"""Run Slurm's commands, retry while the controller is busy, and parse their output."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.retry import retrying
from mlip_job.schedulers.slurm.states import SECTION, Task, refusal, state_of

if TYPE_CHECKING:
    from pathlib import Path

# How long a command is retried while the controller is unavailable; a person waits for a query.
SUBMIT_RETRY_SECONDS = 60.0
QUERY_RETRY_SECONDS = 10.0
_TIMEOUT_SECONDS = 60.0
# Printed while the controller is busy, restarts or can't be reached.
_TRANSIENT = re.compile(
    "unable to contact slurm controller|socket timed out|connection (refused|timed out|reset)|"
    "communication connection failure|zero bytes were transmitted|"
    "temporarily unable to accept job|resource temporarily unavailable|"
    "transport endpoint is not connected|controller in standby mode|"
    "message (send|receive) failure",
    re.IGNORECASE,
)
_SUBMITTED = re.compile(r"\d+(;\S+)?")
_JOB_ID = re.compile(r"\d+(?:_\S+)?")
# Other variables of Slurm change the meaning of our options, or belong to an outer job.
_OPTIONS = ("SBATCH_", "SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


class SlurmError(UnavailableError):
    """A failed command of Slurm, with its output."""

    def __init__(self, program: str, output: str, *, transient: bool) -> None:
        self.output = output
        super().__init__(
            f"{program} failed: {output or 'it printed nothing'}",
            hint="scontrol ping tells whether the controller answers",
            transient=transient,
        )


def submit(script: Path, name: str, *, section: str = SECTION) -> str:
    """Submit a script and return the job's id, ``id;cluster`` on a cluster among several.

    If the response to a submission is lost, the job is found by its name. `section` is the part of
    the configuration with the job's settings, for messages.

    Raise a ConfigError if Slurm rejects the job, an UnavailableError if it does not respond, or a
    limit on the number of jobs is reached.
    """

    def attempt() -> str:
        for job in _squeue("--me"):
            if job.name == name and state_of(job.state).active:
                return job.id.partition("_")[0]
        # A site's wrappers and plugins add lines to the id.
        printed = _run("sbatch", "--parsable", str(script))
        lines = (line.strip() for line in reversed(printed.splitlines()))
        found = next((line for line in lines if _SUBMITTED.fullmatch(line)), None)
        if found is None:
            # The job may have been accepted: the next attempt finds it by its name.
            raise SlurmError("sbatch", f"no job id in {printed[:200]!r}", transient=True)
        return found

    try:
        return retrying(attempt, SUBMIT_RETRY_SECONDS)
    except SlurmError as error:
        if error.transient:
            raise
        raise refusal(error.output, section) from None


def my_jobs(retry_seconds: float | None = None) -> list[Task]:
    """Return the caller's jobs that the controller still knows; of an array, each task."""
    patience = QUERY_RETRY_SECONDS if retry_seconds is None else retry_seconds
    return retrying(lambda: _squeue("--me"), patience)


def queued(job_id: str) -> list[Task]:
    """Return a job's tasks by the queue; none if it does not know the job (any more)."""
    number, cluster = _split(job_id)
    try:
        return retrying(lambda: _squeue(*cluster, f"--jobs={number}"), QUERY_RETRY_SECONDS)
    except SlurmError as error:
        if "Invalid job id" in error.output:
            return []
        raise


def accounted(job_id: str) -> list[Task]:
    """Return a job's tasks by the accounting; none without accounting."""
    number, cluster = _split(job_id)
    columns = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode")
    try:
        text = retrying(
            lambda: _run("sacct", *columns, *cluster, f"--jobs={number}"), QUERY_RETRY_SECONDS
        )
    except (SlurmError, ConfigError):
        return []  # many sites have none, and its daemon is often down
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 2)  # noqa: PLR2004
    # A state may be "CANCELLED by 1000".
    return [
        Task(job, state.split()[0], None, _exit_code(code)) for job, state, code in rows if state
    ]


def cancel(job_id: str) -> None:
    """End a job: a pending one at once, a running one after KillWait at the latest."""
    number, cluster = _split(job_id)
    retrying(lambda: _run("scancel", *cluster, number), QUERY_RETRY_SECONDS)


def _run(program: str, *arguments: str) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OPTIONS) or name in _KEPT_VARIABLES
    }
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and none of the words is a program
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        raise ConfigError(
            f"{program} is not on PATH", hint="submit from a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(program, "no answer", transient=True) from None
    if done.returncode == 0:
        return done.stdout
    output = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
    raise SlurmError(program, output, transient=_TRANSIENT.search(output) is not None)


def _split(job_id: str) -> tuple[str, list[str]]:
    """Return a job's number, and the option that selects its cluster."""
    number, _, cluster = job_id.partition(";")
    return number, [f"--clusters={cluster}"] if cluster else []


def _squeue(*arguments: str) -> list[Task]:
    form = ("--noheader", "--states=all", "--format=%i|%T|%r|%j")
    lines = _run("squeue", *form, *arguments).splitlines()
    rows = (line.strip().split("|", 3) for line in lines if line.count("|") >= 3)  # noqa: PLR2004
    return [
        Task(job_id, state, None if reason in ("None", "(null)") else reason, None, name)
        for job_id, state, reason, name in rows
        if _JOB_ID.fullmatch(job_id)
    ]


def _exit_code(text: str) -> int | None:
    """Return the code in ``75:0``; behind the colon is the signal that ended the script."""
    code, _, number = text.partition(":")
    return int(code) if code.isdecimal() and number == "0" else None
