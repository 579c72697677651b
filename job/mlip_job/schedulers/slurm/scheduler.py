"""`SlurmScheduler`: the contract of all schedulers, fulfilled by Slurm's commands."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlip_job.errors import ConflictError, UnavailableError
from mlip_job.naming import generation_name
from mlip_job.schedulers.base import JobHandle, JobState, JobStatus, Plan, Stage
from mlip_job.schedulers.job_log import lines_of, read_end
from mlip_job.schedulers.job_names import JobName, of_one_submission, require_same
from mlip_job.schedulers.records import SubmitFiles, SubmittedJob, recorded_generations
from mlip_job.schedulers.slurm import commands
from mlip_job.schedulers.slurm.options import dependency
from mlip_job.schedulers.slurm.preflight import check_files
from mlip_job.schedulers.slurm.script import batch_script
from mlip_job.schedulers.slurm.states import SECTION, is_live, state_of
from mlip_job.schedulers.slurm.status import (
    combined,
    status_by_record,
    status_of,
    which_matters,
)
from mlip_job.schedulers.stage_words import of_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.slurm.commands import Task

_ACTIVE = (JobState.PENDING, JobState.RUNNING)


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
        name = str(JobName.of(request))
        return Plan(request, name, batch_script(request, name))

    def submit(self, plan: Plan) -> JobHandle:
        """See `Scheduler.submit`."""
        request = plan.request
        if request.is_first:
            check_files(request.config)
        live = self._live(request)
        for job in live:
            require_same(job, plan)
        if (found := self._found(plan, live)) is not None:
            return replace(found, found=True)
        self._make_room(request, live)
        files = SubmitFiles.of(request.config, request.generation)
        script = files.script("sbatch", request.stage)
        files.write(script, plan.text, request.config)
        section = _section(request.stage, request.config)
        job_id = commands.submit(script, plan.name, *self._dependency(plan), section=section)
        submitted = datetime.now(UTC)
        files.record(self.name, SubmittedJob(id=job_id, name=plan.name, submitted=submitted))
        return JobHandle(self.name, job_id, plan.name, request.stage)

    def find(self, family: str, generation: int) -> JobHandle | None:
        """See `Scheduler.find`; it may have been submitted from another work directory."""
        jobs = self._newest(family, generation)
        if len(jobs) > 1:
            return which_matters([(job, self.status(job)) for job in jobs])
        return jobs[0] if jobs else None

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        """See `Scheduler.active`; only the caller's own."""
        known = self._known(family, generation)
        jobs = [known[number] for number in sorted(known)]
        return [job for job in jobs if self.status(job).state in _ACTIVE]

    def generations(self, family: str) -> set[int]:
        """See `Scheduler.generations`."""
        recorded = recorded_generations(self._config, self.name)
        found = {number for number in recorded if self._recorded(family, number)}
        try:
            tasks = commands.my_jobs(patience=0) if found else commands.my_jobs()
        except UnavailableError:
            if not found:
                raise
            return found
        names = [name for task in tasks if (name := JobName.parse(task.name)) is not None]
        return found | {
            name.generation for name in names if name.is_of(self._config, family, name.generation)
        }

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
            status = self._status_by_records(handle, files)
        else:
            status = combined([self._status_of_task(task, handle, files) for task in tasks])
        return status if handle.stage is Stage.WHOLE else of_part(status, handle.stage)

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """See `Scheduler.logs`; they stay in the work directory."""
        interval, jobs = self._config.submit.poll_interval, self._submission_of(handle)

        def logs() -> dict[Path, str]:
            return {path: prefix for job in jobs for path, prefix in self._logs(job).items()}

        def ended() -> bool:
            statuses = [(job, self.status(job)) for job in jobs]
            state = dict(statuses)[which_matters(statuses)].state
            return state not in _ACTIVE

        return lines_of(logs, ended if follow else None, interval)

    def cancel(self, handle: JobHandle) -> None:
        """See `Scheduler.cancel`; a running job has the site's KillWait for its checkpoint."""
        for job in reversed(self._submission_of(handle)):  # or the next one might start
            if job == handle or self.status(job).state in _ACTIVE:
                commands.cancel(job.id)

    # -- what is there ---------------------------------------------------------------------------

    def _live(self, request: JobRequest) -> dict[JobHandle, JobState]:
        """Return the jobs of a generation that wait or run."""
        family, generation = request.config.family, request.generation
        jobs = commands.my_jobs(commands.PATIENCE_SECONDS)
        found: dict[JobHandle, JobState] = {}
        for job, task in self._named(jobs, family, generation):
            if is_live(task.state) and found.get(job) is not JobState.RUNNING:
                found[job] = state_of(task.state)
        recorded = {_number(job): job for job in self._recorded(family, generation)}
        # What is recorded may name the cluster.
        return {recorded.get(_number(job), job): state for job, state in found.items()}

    def _found(self, plan: Plan, live: Mapping[JobHandle, JobState]) -> JobHandle | None:
        """Return the job that a plan became before, where it need not be submitted."""
        own = [job for job in live if job.name == plan.name]
        if own:
            return max(own, key=_number)
        request = plan.request
        if request.stage is request.stages[-1]:
            return None  # the generation would be published
        later = any(job.stage.position > request.stage.position for job in live)
        if request.starts_over and not later:
            return None
        for job in self._recorded(request.config.family, request.generation):
            if job.name == plan.name and self.status(job).state is JobState.SUCCEEDED:
                return job
        return None

    def _make_room(self, request: JobRequest, live: Mapping[JobHandle, JobState]) -> None:
        """Cancel what waits for a job that failed, before it is submitted again."""
        for job, state in live.items():
            if job.stage.position < request.stage.position:
                continue
            if state is JobState.RUNNING:
                raise ConflictError(
                    f"job {job.id} for {generation_name(request.generation)} runs, which comes "
                    f"after {request.stage.value}",
                    hint=f"wait for its end, or mlip-job cancel -g {request.generation}",
                )
            commands.cancel(job.id)

    def _dependency(self, plan: Plan) -> Iterator[str]:
        """Yield what has a job wait; Slurm may have forgotten a job that has succeeded."""
        if plan.request.is_first or plan.request.follows is None:
            return
        before = JobHandle(self.name, plan.request.follows, plan.name)
        if self.status(before).state is not JobState.SUCCEEDED:
            yield dependency(plan.request, before.id)

    def _newest(self, family: str, generation: int) -> list[JobHandle]:
        """Return the jobs of a generation's newest submission, in the order in which they run."""
        known = self._known(family, generation)
        if not known:
            return []
        newest = known[max(known)]
        ascending = (known[number] for number in sorted(known))
        stages = {job.stage: job for job in ascending if of_one_submission(job.name, newest.name)}
        return sorted(stages.values(), key=lambda job: job.stage.position)

    def _known(self, family: str, generation: int) -> dict[int, JobHandle]:
        """Return the jobs of a generation that are queued, or recorded here, by their numbers."""
        recorded = self._recorded(family, generation)
        known: dict[int, JobHandle] = {}
        try:
            jobs = commands.my_jobs(patience=0) if recorded else commands.my_jobs()
            known = {_number(job): job for job, _ in self._named(jobs, family, generation)}
        except UnavailableError:
            if not recorded:
                raise
        return known | {_number(job): job for job in recorded}

    def _submission_of(self, handle: JobHandle) -> Sequence[JobHandle]:
        """Return the jobs that were submitted together with one, and itself."""
        name = JobName.parse(handle.name)
        jobs = self._newest(name.family, name.generation) if name is not None else []
        return jobs if handle in jobs else [handle]

    def _named(
        self, tasks: Iterable[Task], family: str, generation: int
    ) -> Iterator[tuple[JobHandle, Task]]:
        for task in tasks:
            name = JobName.parse(task.name)
            if name is not None and name.is_of(self._config, family, generation):
                number = task.id.partition("_")[0]
                yield JobHandle(self.name, number, task.name, name.stage), task

    def _recorded(self, family: str, generation: int) -> list[JobHandle]:
        record = SubmitFiles.of(self._config, generation).submission()
        if record is None or record.scheduler != self.name:
            return []
        return [
            JobHandle(self.name, job.id, job.name, name.stage)
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
        return status_of(task, ended, log, _section(handle.stage, self._config))

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


def _section(stage: Stage, config: JobConfig) -> str:
    """Return the part of the configuration that holds what a job asks for."""
    return SECTION if stage.needs_gpu(config) else f"{SECTION}.cpu"
