"""`SlurmScheduler`: the contract of all schedulers, fulfilled by Slurm's commands."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlip_job.errors import UnavailableError
from mlip_job.schedulers.base import JobHandle, JobState, JobStatus, Plan, require_same
from mlip_job.schedulers.job_log import lines_of, read_end
from mlip_job.schedulers.records import (
    Submission,
    SubmitFiles,
    is_of,
    name_of_job,
    parse_job_name,
)
from mlip_job.schedulers.slurm import commands
from mlip_job.schedulers.slurm.preflight import check_files
from mlip_job.schedulers.slurm.script import batch_script
from mlip_job.schedulers.slurm.states import is_live
from mlip_job.schedulers.slurm.status import combined, status_by_record, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.slurm.commands import Task


class SlurmScheduler:
    """Submits to the Slurm cluster whose commands are on PATH.

    Parameters
    ----------
    config
        Of the family; jobs are found by its work directory too.
    """

    name = "slurm"

    def __init__(self, config: JobConfig) -> None:
        self._config = config

    def plan(self, request: JobRequest) -> Plan:
        """See `Scheduler.plan`; the text is the batch script."""
        name = name_of_job(request)
        return Plan(request, name, batch_script(request, name))

    def submit(self, plan: Plan) -> JobHandle:
        """See `Scheduler.submit`."""
        config, generation = plan.request.config, plan.request.generation
        check_files(config)
        if (live := self._live(config.family, generation)) is not None:
            return require_same(live, plan)
        files = SubmitFiles.of(config, generation)
        script = files.script("sbatch")
        files.write(script, plan.text, config)
        job_id = commands.submit(script, plan.name)
        files.record(
            Submission(scheduler=self.name, id=job_id, name=plan.name, submitted=datetime.now(UTC))
        )
        return JobHandle(self.name, job_id, plan.name)

    def find(self, family: str, generation: int) -> JobHandle | None:
        """See `Scheduler.find`; it may have been submitted from another work directory."""
        recorded = self._recorded(family, generation)
        try:
            jobs = commands.my_jobs() if recorded is None else commands.my_jobs(patience=0)
            found = self._named(jobs, family, generation)
        except UnavailableError:
            if recorded is None:
                raise
            return recorded
        newest = max(found, key=_number, default=recorded)
        if recorded is not None and newest is not None and _number(recorded) >= _number(newest):
            return recorded
        return newest

    def status(self, handle: JobHandle) -> JobStatus:
        """See `Scheduler.status`.

        The queue is asked first for what waits and runs, since the accounting lags behind a
        requeue; then the accounting, the controller, and what the script noted at its end.
        """
        tasks = commands.queued(handle.id)
        if not any(is_live(task.state) for task in tasks):
            tasks = commands.accounted(handle.id) or commands.controlled(handle.id) or tasks
        files = self._files(handle)
        if not tasks:
            return self._status_by_records(handle, files)
        return combined([self._status_of_task(task, handle, files) for task in tasks])

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """See `Scheduler.logs`; they stay in the work directory."""
        interval = self._config.submit.poll_interval

        def ended() -> bool:
            return self.status(handle).state not in (JobState.PENDING, JobState.RUNNING)

        return lines_of(lambda: self._logs(handle), ended if follow else None, interval)

    def cancel(self, handle: JobHandle) -> None:
        """See `Scheduler.cancel`; a running job has the site's KillWait for its checkpoint."""
        commands.cancel(handle.id)

    def _live(self, family: str, generation: int) -> JobHandle | None:
        jobs = commands.my_jobs(commands.PATIENCE_SECONDS)
        found = self._named(jobs, family, generation, live=True)
        newest = max(found, key=_number, default=None)
        recorded = self._recorded(family, generation)
        if newest is not None and recorded is not None and _number(newest) == _number(recorded):
            return recorded  # it may name the cluster
        return newest

    def _named(
        self, jobs: Iterable[Task], family: str, generation: int, *, live: bool = False
    ) -> list[JobHandle]:
        return [
            JobHandle(self.name, job.id.partition("_")[0], job.name)
            for job in jobs
            if is_of(job.name, self._config, family, generation)
            and (is_live(job.state) or not live)
        ]

    def _recorded(self, family: str, generation: int) -> JobHandle | None:
        record = SubmitFiles.of(self._config, generation).submission()
        if record is None or record.scheduler != self.name:
            return None
        if not is_of(record.name, self._config, family, generation):
            return None
        return JobHandle(self.name, record.id, record.name)

    def _files(self, handle: JobHandle) -> SubmitFiles:
        _, generation, _ = parse_job_name(handle.name) or ("", 1, "")
        return SubmitFiles.of(self._config, generation)

    def _logs(self, handle: JobHandle) -> Mapping[str, Path]:
        files, number = self._files(handle), str(_number(handle))
        members = sorted(files.directory.glob(files.log(self.name, f"{number}_*").name))
        if members:
            return {f"[{path.stem.rpartition('_')[2]}] ": path for path in members}
        return {"": files.log(self.name, number)}

    def _status_of_task(self, task: Task, handle: JobHandle, files: SubmitFiles) -> JobStatus:
        log = read_end(files.log(self.name, task.id))
        submission = files.submission()
        if log is None and (submission is None or submission.id != handle.id):
            log = ""  # submitted from another work directory, which has the log
        return status_of(task, files.how_it_ended(self.name, task.id), log)

    def _status_by_records(self, handle: JobHandle, files: SubmitFiles) -> JobStatus:
        number = str(_number(handle))
        pattern = files.ended(self.name, f"{number}*").name
        found = []
        for path in sorted(files.directory.glob(pattern)):
            task_id = path.stem.partition("-")[2]
            ended = files.how_it_ended(self.name, task_id)
            if ended is not None and task_id.partition("_")[0] == number:
                found.append(status_by_record(ended, read_end(files.log(self.name, task_id))))
        return combined(found) if found else JobStatus(JobState.UNKNOWN, "")


def _number(handle: JobHandle) -> int:
    return int(handle.id.partition(";")[0])
