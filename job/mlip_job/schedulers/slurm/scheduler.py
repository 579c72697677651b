"""`SlurmScheduler`: the scheduler contract, implemented with Slurm's commands."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlip_job.errors import UnavailableError
from mlip_job.schedulers.base import JobHandle, JobName, JobState, JobStatus, Plan, require_same
from mlip_job.schedulers.records import (
    SubmitFiles,
    SubmittedJob,
    lines_of,
    read_end,
    recorded_generations,
)
from mlip_job.schedulers.slurm import commands
from mlip_job.schedulers.slurm.script import batch_script, check_files, record_image
from mlip_job.schedulers.slurm.states import (
    SECTION,
    combined,
    is_live,
    status_by_record,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.slurm.states import Task

_ACTIVE = (JobState.PENDING, JobState.RUNNING)


class SlurmScheduler:
    """Submits to the Slurm cluster whose commands are on PATH.

    Jobs are found by their names in the queue, and by the records of the work directory.
    """

    name = "slurm"

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        # The part of the configuration with the settings of the job, for messages.
        self._section = f"{SECTION}.cpu" if config.training.is_linear else SECTION

    def plan(self, request: JobRequest) -> Plan:
        """See `Scheduler.plan`; the text is the batch script."""
        name = str(JobName.of(request))
        return Plan(request, name, batch_script(request, name))

    def submit(self, plan: Plan) -> JobHandle:
        """See `Scheduler.submit`."""
        request = plan.request
        check_files(request.config)
        live = self._live(request)
        for job in live:
            require_same(job, plan)
        if live:
            return replace(max(live, key=_number), found=True)
        files = SubmitFiles.of(request.config, request.generation)
        script = files.script("sbatch")
        files.write(script, plan.text, request.config)
        record_image(request.config)
        job_id = commands.submit(script, plan.name, section=self._section)
        submitted = datetime.now(UTC)
        files.record(self.name, SubmittedJob(id=job_id, name=plan.name, submitted=submitted))
        return JobHandle(self.name, job_id, plan.name)

    def find(self, family: str, generation: int) -> JobHandle | None:
        """See `Scheduler.find`; also a job submitted from another work directory."""
        known = self._known(family, generation)
        return known[max(known)] if known else None

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        """See `Scheduler.active`; only the caller's own."""
        known = self._known(family, generation)
        jobs = [known[number] for number in sorted(known)]
        return [job for job in jobs if self.status(job).state in _ACTIVE]

    def generations(self, family: str) -> set[int]:
        """See `Scheduler.generations`."""
        recorded = recorded_generations(self._config, self.name)
        found = {number for number in recorded if self._recorded(family, number)}
        names = [JobName.parse(task.name) for task in self._my_jobs(recorded=bool(found))]
        return found | {
            name.generation
            for name in names
            if name is not None and name.is_of(self._config, family, name.generation)
        }

    def status(self, handle: JobHandle) -> JobStatus:
        """See `Scheduler.status`.

        Pending and running jobs are those of the queue: the accounting lags behind a requeue.
        Then come the accounting, the controller, and the record that the script left at its end.
        """
        tasks = commands.queued(handle.id)
        if not any(map(is_live, tasks)):
            tasks = commands.accounted(handle.id) or commands.controlled(handle.id) or tasks
        files = self._files(handle)
        if not tasks:
            return self._status_by_records(handle, files)
        return combined([self._status_of_task(task, handle, files) for task in tasks])

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """See `Scheduler.logs`; they stay in the work directory."""

        def ended() -> bool:
            return self.status(handle).state not in _ACTIVE

        interval = self._config.submit.poll_interval
        return lines_of(lambda: self._logs(handle), ended if follow else None, interval)

    def cancel(self, handle: JobHandle) -> None:
        """See `Scheduler.cancel`; a running job has the site's KillWait for its checkpoint."""
        commands.cancel(handle.id)

    # -- jobs by the queue and by the records ----------------------------------------------------

    def _my_jobs(self, *, recorded: bool) -> list[Task]:
        """Return the caller's jobs; without Slurm, none if there are records to go by."""
        if not recorded:
            return commands.my_jobs()
        try:
            return commands.my_jobs(0)
        except UnavailableError:
            return []

    def _live(self, request: JobRequest) -> list[JobHandle]:
        """Return the pending and running jobs of a generation."""
        family, generation = request.config.family, request.generation
        tasks = filter(is_live, commands.my_jobs(commands.SUBMIT_RETRY_SECONDS))
        found = dict.fromkeys(self._named(tasks, family, generation))
        recorded = {_number(job): job for job in self._recorded(family, generation)}
        # A recorded job may name its cluster.
        return [recorded.get(_number(job), job) for job in found]

    def _known(self, family: str, generation: int) -> dict[int, JobHandle]:
        """Return the jobs of a generation that are queued, or recorded here, by their numbers."""
        recorded = self._recorded(family, generation)
        queued = self._named(self._my_jobs(recorded=bool(recorded)), family, generation)
        return {_number(job): job for job in (*queued, *recorded)}

    def _named(self, tasks: Iterable[Task], family: str, generation: int) -> Iterator[JobHandle]:
        for task in tasks:
            name = JobName.parse(task.name)
            if name is not None and name.is_of(self._config, family, generation):
                yield JobHandle(self.name, task.id.partition("_")[0], task.name)

    def _recorded(self, family: str, generation: int) -> list[JobHandle]:
        record = SubmitFiles.of(self._config, generation).submission()
        if record is None or record.scheduler != self.name:
            return []
        return [
            JobHandle(self.name, job.id, job.name)
            for job in record.jobs
            if (name := JobName.parse(job.name)) is not None
            and name.is_of(self._config, family, generation)
        ]

    # -- files of the work directory ---------------------------------------------------------------

    def _files(self, handle: JobHandle) -> SubmitFiles:
        name = JobName.parse(handle.name)
        return SubmitFiles.of(self._config, name.generation if name is not None else 1)

    def _logs(self, handle: JobHandle) -> Mapping[Path, str]:
        files, number = self._files(handle), str(_number(handle))
        members = sorted(files.directory.glob(files.log(self.name, f"{number}_*").name))
        if members:
            return {path: f"[{path.stem.rpartition('_')[2]}] " for path in members}
        return {files.log(self.name, number): ""}

    def _status_of_task(self, task: Task, handle: JobHandle, files: SubmitFiles) -> JobStatus:
        log = read_end(files.log(self.name, task.id))
        submission = files.submission()
        if log is None and (submission is None or submission.job(handle.id) is None):
            log = ""  # submitted from another work directory, which has the log
        ended = files.how_it_ended(self.name, task.id)
        return status_of(task, ended, log, self._section)

    def _status_by_records(self, handle: JobHandle, files: SubmitFiles) -> JobStatus:
        number = str(_number(handle))
        found = []
        for path in sorted(files.directory.glob(files.ended(self.name, f"{number}*").name)):
            task_id = path.stem.partition("-")[2]
            ended = files.how_it_ended(self.name, task_id)
            if ended is not None and task_id.partition("_")[0] == number:
                found.append(status_by_record(ended, read_end(files.log(self.name, task_id))))
        return combined(found) if found else JobStatus(JobState.UNKNOWN, "")


def _number(handle: JobHandle) -> int:
    return int(handle.id.partition(";")[0])
