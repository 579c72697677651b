"""Run Slurm's commands, retry while the controller is busy, and parse their output."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.retries import retrying
from mlip_job.schedulers.slurm.states import SECTION, Task, is_live, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_TIMEOUT_SECONDS = 60.0
SUBMIT_RETRY_SECONDS = 60.0
"""How long a submission is retried while the controller is unavailable."""
_QUERY_RETRY_SECONDS = 10.0  # a person waits for the answer

# What the commands print while the controller is busy, restarts or can't be reached.
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
    """A failed command of Slurm; `said` is its output."""

    def __init__(self, program: str, said: str, *, transient: bool) -> None:
        self.said = said
        super().__init__(
            f"{program} failed: {said or 'it printed nothing'}",
            hint="scontrol ping tells whether the controller answers",
            transient=transient,
        )


def submit(script: Path, name: str, *, section: str = SECTION) -> str:
    """Submit a script and return the job's id, ``id;cluster`` on a cluster among several.

    If the response to a submission is lost, the job is found by its name. `section` is the part of
    the configuration with the job's settings, for messages.

    Raises
    ------
    ConfigError
        If Slurm rejects the job.
    UnavailableError
        If Slurm does not respond, or a limit on the number of jobs is reached.
    """

    def attempt() -> str:
        live = (job.id for job in my_jobs() if job.name == name and is_live(job))
        if (job_id := next(live, None)) is not None:
            return job_id.partition("_")[0]
        return _read_id(_run("sbatch", "--parsable", str(script)))

    try:
        return retrying(attempt, SUBMIT_RETRY_SECONDS)
    except SlurmError as error:
        if error.transient:
            raise
        raise refusal(error.said, section) from None


def my_jobs(retry_seconds: float | None = None) -> list[Task]:
    """Return the caller's jobs that the controller still knows; of an array, each task."""
    patience = _QUERY_RETRY_SECONDS if retry_seconds is None else retry_seconds
    return retrying(lambda: _squeue("--me"), patience)


def queued(job_id: str) -> list[Task]:
    """Return a job's tasks by the queue; none if it does not know the job (any more)."""
    return _unless_unknown(lambda: _squeue(*_select(job_id)))


def accounted(job_id: str) -> list[Task]:
    """Return a job's tasks by the accounting; none without accounting."""
    columns = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode")
    try:
        text = _query("sacct", *columns, *_select(job_id))
    except (SlurmError, ConfigError):
        return []  # many sites have none, and its daemon is often down
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 2)  # noqa: PLR2004
    # "CANCELLED by 1000"
    return [
        Task(job, state.split()[0], None, _exit_code(code)) for job, state, code in rows if state
    ]


def controlled(job_id: str) -> list[Task]:
    """Return a job's tasks by the controller; none once it has forgotten the job."""
    *cluster, number = _select(job_id)
    show = ("--oneliner", "show", "job", number.partition("=")[2])
    return _unless_unknown(lambda: list(_records(_run("scontrol", *cluster, *show))))


def cancel(job_id: str) -> None:
    """End a job: a pending one at once, a running one after KillWait at the latest."""
    *cluster, number = _select(job_id)
    _query("scancel", *cluster, number.partition("=")[2])


def _query(program: str, *arguments: str) -> str:
    return retrying(lambda: _run(program, *arguments), _QUERY_RETRY_SECONDS)


def _unless_unknown(ask: Callable[[], list[Task]]) -> list[Task]:
    try:
        return retrying(ask, _QUERY_RETRY_SECONDS)
    except SlurmError as error:
        if "Invalid job id" in error.said:
            return []
        raise


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
    said = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
    raise SlurmError(program, said, transient=_TRANSIENT.search(said) is not None)


def _read_id(printed: str) -> str:
    """Find the id in the output of sbatch, to which a site's wrappers and plugins add lines."""
    lines = [line.strip() for line in printed.splitlines()]
    found = [line for line in lines if _SUBMITTED.fullmatch(line)]
    if not found:
        # The job may have been accepted: the next attempt finds it by its name.
        raise SlurmError("sbatch", f"no job id in {printed[:200]!r}", transient=True)
    return found[-1]


def _select(job_id: str) -> list[str]:
    number, _, cluster = job_id.partition(";")
    return [*([f"--clusters={cluster}"] if cluster else []), f"--jobs={number}"]


def _squeue(*arguments: str) -> list[Task]:
    form = ("--noheader", "--states=all", "--format=%i|%T|%r|%j")
    lines = _run("squeue", *form, *arguments).splitlines()
    rows = (line.strip().split("|", 3) for line in lines if line.count("|") >= 3)  # noqa: PLR2004
    return [
        Task(job_id, state, None if reason in ("None", "(null)") else reason, None, name)
        for job_id, state, reason, name in rows
        if _JOB_ID.fullmatch(job_id)
    ]


def _records(text: str) -> Iterator[Task]:
    """Read ``scontrol show job -o``; the first of each key is Slurm's, later ones may be paths."""
    for line in text.splitlines():
        found: dict[str, str] = {}
        for key, value in re.findall(r"(?:^| )(\w+)=(\S*)", line):
            found.setdefault(key, value)
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
    """Return the code in ``75:0``; after the colon is the signal that ended the script."""
    code, _, number = text.partition(":")
    return int(code) if code.isdecimal() and number == "0" else None
