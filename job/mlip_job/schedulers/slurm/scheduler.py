"""`SlurmScheduler`: the scheduler contract, implemented with Slurm's commands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlip_job.errors import UnavailableError
from mlip_job.schedulers.base import JobHandle, JobName, JobState, JobStatus, Plan, require_same
from mlip_job.schedulers.records import (
    SubmitFiles,
    SubmittedJob,
    lines_of,
    read_end,
    recorded_generations,
    recorded_jobs,
)
from mlip_job.schedulers.slurm import commands
from mlip_job.schedulers.slurm.script import batch_script, check_files, record_image
from mlip_job.schedulers.slurm.states import (
    SECTION,
    combined,
    state_of,
    status_by_record,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.slurm.states import Task


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
        name = str(JobName.of(request))
        return Plan(request, name, batch_script(request, name))

    def submit(self, plan: Plan) -> JobHandle:
        config, generation = plan.request.config, plan.request.generation
        check_files(config)
        queue = commands.my_jobs(commands.SUBMIT_RETRY_SECONDS)
        active = [task for task in queue if state_of(task.state).active]
        numbers = {task.id.partition("_")[0] for task in active}
        recorded = recorded_jobs(self._config, self.name, config.family, generation)
        recorded = [job for job in recorded if str(_number(job)) in numbers]
        found = self._jobs_among(active, recorded, config.family, generation)
        for job in found:
            require_same(job, plan)
        if found:
            return replace(found[-1], found=True)
        files = SubmitFiles.of(config, generation)
        script = files.write("sbatch", plan.text, config)
        record_image(config)
        job_id = commands.submit(script, plan.name, section=self._section)
        files.record(self.name, SubmittedJob(id=job_id, name=plan.name))
        return JobHandle(self.name, job_id, plan.name)

    def find(self, family: str, generation: int) -> JobHandle | None:
        # Also a job submitted from another work directory.
        known = self._known(family, generation)
        return known[-1] if known else None

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        # Only the caller's own.
        return [job for job in self._known(family, generation) if self.status(job).state.active]

    def generations(self, family: str) -> set[int]:
        found = recorded_generations(self._config, self.name, family)
        names = [JobName.parse(task.name) for task in self._queue(recorded=bool(found))]
        return found | {
            name.generation
            for name in names
            if name is not None and name.is_of(self._config, family)
        }

    def status(self, handle: JobHandle) -> JobStatus:
        # Pending and running jobs are those of the queue: the accounting lags behind a requeue.
        # Then come the accounting, and the record that the script left at its end.
        tasks = commands.queued(handle.id)
        if not any(state_of(task.state).active for task in tasks):
            tasks = commands.accounted(handle.id) or tasks
        files = SubmitFiles.of_job(self._config, handle)
        if not tasks:
            statuses = self._recorded_statuses(files, _number(handle))
            return combined(statuses) if statuses else JobStatus(JobState.UNKNOWN, "")
        # The logs of a job that was submitted from another work directory are there.
        absent = None if files.submitted(handle.id) is not None else ""

        def status(task: Task) -> JobStatus:
            log = read_end(files.of_id("log", self.name, task.id))
            ended = files.how_it_ended(self.name, task.id)
            return status_of(task, ended, absent if log is None else log, self._section)

        return combined([status(task) for task in tasks])

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        ended = (lambda: not self.status(handle).state.active) if follow else None
        return lines_of(lambda: self._logs(handle), ended, self._config.submit.poll_interval)

    def cancel(self, handle: JobHandle) -> None:
        # A running job has the site's KillWait for its checkpoint.
        commands.cancel(handle.id)

    # -- jobs by the queue and by the records ----------------------------------------------------

    def _queue(self, *, recorded: bool) -> list[Task]:
        """Return the caller's jobs; without Slurm, none if there are records to go by."""
        try:
            return commands.my_jobs(0 if recorded else None)
        except UnavailableError:
            if not recorded:
                raise
            return []

    def _known(self, family: str, generation: int) -> list[JobHandle]:
        """Return the jobs of a generation that are queued, or recorded here; the newest last."""
        recorded = recorded_jobs(self._config, self.name, family, generation)
        queue = self._queue(recorded=bool(recorded))
        return self._jobs_among(queue, recorded, family, generation)

    def _jobs_among(
        self, queue: Sequence[Task], recorded: Sequence[JobHandle], family: str, generation: int
    ) -> list[JobHandle]:
        found = {}
        for task in queue:
            name = JobName.parse(task.name)
            if name and name.generation == generation and name.is_of(self._config, family):
                job = JobHandle(self.name, task.id.partition("_")[0], task.name)
                found[_number(job)] = job
        found |= {_number(job): job for job in recorded}  # which may name the cluster
        return [found[number] for number in sorted(found)]

    # -- files of the work directory ---------------------------------------------------------------

    def _logs(self, handle: JobHandle) -> Mapping[Path, str]:
        files, number = SubmitFiles.of_job(self._config, handle), str(_number(handle))
        members = sorted(files.directory.glob(files.of_id("log", self.name, f"{number}_*").name))
        if members:
            return {path: f"[{path.stem.rpartition('_')[2]}] " for path in members}
        return {files.of_id("log", self.name, number): ""}

    def _recorded_statuses(self, files: SubmitFiles, number: int) -> list[JobStatus]:
        paths = sorted(files.directory.glob(files.of_id("ended", self.name, f"{number}*").name))
        tasks = [path.stem.partition("-")[2] for path in paths]
        return [
            status_by_record(ended, read_end(files.of_id("log", self.name, task)))
            for task in tasks
            if task.partition("_")[0] == f"{number}"
            and (ended := files.how_it_ended(self.name, task)) is not None
        ]


def _number(handle: JobHandle) -> int:
    return int(handle.id.partition(";")[0])
