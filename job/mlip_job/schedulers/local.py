"""`LocalScheduler`: a job as a process of this machine that outlives its terminal."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mlip_job.config.load import ENVIRONMENT_PREFIX
from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.paths import generation_name, private
from mlip_job.runtime.environment import ProcessIdentity
from mlip_job.schedulers.base import (
    Code,
    JobHandle,
    JobName,
    JobState,
    JobStatus,
    Plan,
    meaning_of,
    render,
    require_same,
)
from mlip_job.schedulers.records import (
    SubmitFiles,
    SubmittedJob,
    failed_run,
    lines_of,
    read_end,
    recorded_generations,
    recorded_jobs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.records import Ended

_DETACH = 'setsid sh "$0" 2>&1 </dev/null & echo $! >&2'
_JOB_ID = re.compile(r"\d+-\d+")


class LocalScheduler:
    """Starts jobs on this machine at once; nothing restarts them.

    A job's id is its process id and its start, in clock ticks since boot. Jobs are found by the
    records of the work directory.
    """

    name = "local"

    def __init__(self, config: JobConfig) -> None:
        self._config = config

    def plan(self, request: JobRequest) -> Plan:
        if request.after is not None and _JOB_ID.fullmatch(request.after) is None:
            raise ConfigError(f"--after: {request.after!r} is no job of this machine")
        files = SubmitFiles.of(request.config, request.generation)
        program = (sys.executable, "-m", "mlip_job", "run", "--generation", str(request.generation))
        words = (*program, "--config", str(files.config), *request.options)
        members = range(1, (request.ensemble or 0) + 1)
        text = render(
            "local.sh.j2",
            generation_name=generation_name(request.generation),
            family=request.config.family,
            directory=files.directory,
            work_dir=request.config.work_dir,
            after=request.after,
            ensemble=request.ensemble,
            members=Code("".join(f" {member}" for member in members)),
            program=Code(shlex.join(words)),
        )
        return Plan(request, str(JobName.of(request)), text)

    def submit(self, plan: Plan) -> JobHandle:
        config, generation = plan.request.config, plan.request.generation
        for job in self.active(config.family, generation):
            require_same(job, plan)
            return replace(job, found=True)
        files = SubmitFiles.of(config, generation)
        process = _start(files.write("sh", plan.text, config), files)
        job_id = f"{process.pid}-{process.started}"
        files.record(self.name, SubmittedJob(id=job_id, name=plan.name, process=process))
        return JobHandle(self.name, job_id, plan.name)

    def find(self, family: str, generation: int) -> JobHandle | None:
        jobs = recorded_jobs(self._config, self.name, family, generation)
        return jobs[-1] if jobs else None

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        # A job of another machine counts until it has ended.
        job = self.find(family, generation)
        return [job] if job is not None and not self.status(job).state.ended else []

    def generations(self, family: str) -> set[int]:
        return recorded_generations(self._config, self.name, family)

    def status(self, handle: JobHandle) -> JobStatus:
        # A job of another machine is unknown until it has ended.
        files, me = SubmitFiles.of_job(self._config, handle), ProcessIdentity.current()
        job = files.submitted(handle.id)
        process = job.process if job is not None else None
        if process is not None and process.host == me.host and not process.is_gone(me):
            return JobStatus(JobState.RUNNING, "running")
        log = read_end(files.of_id("log", self.name, handle.id))
        if (ended := files.how_it_ended(self.name, handle.id)) is not None:
            cancelled = files.of_id("cancelled", self.name, handle.id).exists()
            return _ended(ended, log, cancelled=cancelled)
        if process is not None and process.is_gone(me):
            reason = "its process is gone without a record: it was killed, or the machine went down"
            return JobStatus(JobState.FAILED, "killed", reason, resubmit=True)
        return JobStatus(JobState.UNKNOWN, "", "it is no process of this machine")

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        log = SubmitFiles.of_job(self._config, handle).of_id("log", self.name, handle.id)
        ended = (lambda: self.status(handle).state is not JobState.RUNNING) if follow else None
        return lines_of(lambda: {log: ""}, ended, self._config.submit.poll_interval)

    def cancel(self, handle: JobHandle) -> None:
        # The time for the checkpoint is unlimited.
        state = self.status(handle).state
        if state is JobState.UNKNOWN:
            raise UnavailableError(f"{handle.id} is no process of this machine: cancel it there")
        if state is JobState.RUNNING:
            files = SubmitFiles.of_job(self._config, handle)
            files.of_id("cancelled", self.name, handle.id).touch()
            with suppress(ProcessLookupError):
                os.killpg(int(handle.id.partition("-")[0]), signal.SIGTERM)


def _ended(ended: Ended, log: str | None, *, cancelled: bool) -> JobStatus:
    code = ended.exit_code
    if code == 0:
        return JobStatus(JobState.SUCCEEDED, "exited", exit_code=0)
    retry = meaning_of(code).retry
    if cancelled and retry:
        return JobStatus(JobState.CANCELLED, "exited", exit_code=code)
    return failed_run(code, log or "", "exited", resubmit=retry)


def _start(script: Path, files: SubmitFiles) -> ProcessIdentity:
    """Start a script in a new session, detached from this process.

    It inherits a lock on its log, held until the script and its children end; other jobs wait for
    this lock.
    """
    log = files.directory / ".local.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    with open(log, "ab", opener=private) as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        done = subprocess.run(  # noqa: S603 - a fixed command; the script is its argument
            ["/bin/sh", "-c", _DETACH, str(script)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        )
    process = ProcessIdentity.of(int(done.stderr))
    log.replace(files.of_id("log", "local", f"{process.pid}-{process.started}"))
    return process
