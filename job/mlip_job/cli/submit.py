"""``mlip-job submit``: submit generations, and wait until they are published."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mlip_job.cli.generation_status import Source, State, StatusReader, describe_run, way_to_end
from mlip_job.cli.options import (
    GenerationType,
    common_options,
    resolve_generation,
    scheduler_option,
)
from mlip_job.cli.output import Reporter, emit
from mlip_job.errors import (
    ConfigError,
    ConflictError,
    InterruptedRunError,
    MlipJobError,
    TrainingError,
    UnavailableError,
)
from mlip_job.paths import generation_name
from mlip_job.schedulers.base import JobRequest, JobState, meaning_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.cli.generation_status import GenerationStatus
    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig
    from mlip_job.config.schedulers import SubmitConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.schedulers.base import JobHandle, Scheduler

_LOST = (State.ABSENT, State.UNKNOWN, State.STOPPED, State.ENDED)
_MAX_RESUBMITS = 20
_LOST_LOOKS = 4  # so often in a row a generation may be found neither trained nor published


class _Generations(GenerationType):
    """One generation, or the ends of a range of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or ".." not in value:
            return super().convert(value, param, ctx)
        ends = value.split("..")
        if not all(end.isdecimal() for end in ends) or len(ends) != 2:  # noqa: PLR2004
            raise ConfigError(f"{value!r} is no range of generations", hint="as in -g 4..6")
        first, last = map(int, ends)
        generation_name(first)
        if first > last:
            raise ConfigError(f"{value!r} ends before it begins", hint="as in -g 4..6")
        return range(first, last + 1)


@click.command("submit")
@click.option(
    "-g",
    "--generation",
    required=True,
    metavar="N|next|A..B",
    type=_Generations(("next",)),
    help="Number of the generation, or next, or several: each is trained after the one before.",
)
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Print what would be submitted, and nothing else.")
@click.option("--wait", is_flag=True, help="Wait until it is published or has failed.")
@click.option(
    "--after",
    metavar="JOB",
    help="Job that has to succeed first; for Slurm, also a --dependency of sbatch.",
)
@click.option(
    "--ensemble",
    metavar="M",
    type=click.IntRange(2, 100),
    help="Train M members, of which the best becomes the generation.",
)
@click.option("--fresh", is_flag=True, help="Start over; remove checkpoints of earlier runs.")
@common_options
@click.pass_obj
def submit_command(
    settings: Settings,
    generation: int | str | range,
    scheduler: str | None,
    after: str | None,
    ensemble: int | None,
    *,
    dry_run: bool,
    wait: bool,
    fresh: bool,
) -> None:
    """Submit a generation to Slurm, Kubernetes or this machine.

    The same submission again, while its job is pending or running, returns that job. A generation
    that exists is rejected (73). With --wait, a job that ended for an external reason, e.g.
    preemption, is resubmitted, and the exit code is that of the run.
    """
    from mlip_job.schedulers import open_scheduler

    config = settings.config()
    registry = settings.registry(config)
    if isinstance(generation, range):
        numbers = list(generation)
    else:
        numbers = [resolve_generation(generation, registry)]
    chosen = open_scheduler(config, scheduler)
    request = JobRequest(
        config=config,
        generation=numbers[0],
        directory=settings.config_path.resolve().parent,
        run_options=("--fresh",) if fresh else (),
        ensemble=ensemble,
        after=after,
    )
    if dry_run:
        if len(numbers) > 1:
            raise ConfigError("--dry-run shows one generation at a time")
        click.echo(chosen.plan(request).text, nl=False)
        return
    submitter = _Submitter(registry, chosen, Reporter(settings).message)
    requests = [replace(request, generation=number) for number in numbers]
    for one in requests:
        submitter.require_absent(one)
    submitter.note_missing_parent(requests[0])
    documents: list[dict[str, Any]] = []
    for one in requests:
        # The scheduler has each wait for the job of the one before; --wait waits here.
        ordered = replace(one, after=after)
        job = submitter.submit(ordered)
        documents.append({"generation": one.generation, **job.document()})
        after = None if wait else job.id
        if wait:
            manifest = submitter.wait(ordered)
            documents[-1]["manifest"] = manifest.model_dump(mode="json")
            _show_manifest(settings, manifest)
    emit(settings, {"jobs": documents}, lambda: None)


def _show_manifest(settings: Settings, manifest: Manifest) -> None:
    from mlip_job.cli.generations import show_manifest

    if not settings.as_json:
        show_manifest(manifest)


class _Submitter:
    """Submits generations, and waits for them; `log` receives messages."""

    def __init__(
        self, registry: Registry, scheduler: Scheduler, log: Callable[[str], None]
    ) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._log = log

    def require_absent(self, request: JobRequest) -> None:
        """Reject a generation that is published, or trained by no job of the scheduler."""
        from mlip_job.registry.members import require_one_kind

        number, name = request.generation, generation_name(request.generation)
        reader = self._reader(request.config)
        status = reader.read(number)
        if (error := reader.unread.get(Source.STORE)) is not None:
            self._log(f"note: {error.message}; the job will find out whether {name} exists")
            return
        if status.manifest is not None:
            raise ConflictError(
                f"{name} of {request.config.family} is published already",
                hint=f"mlip-job show -g {number}; mlip-job submit -g next trains another",
            )
        if (error := reader.unread.get(Source.SCHEDULER)) is not None:
            raise error
        require_one_kind(self._registry, number, request.ensemble, fresh=request.starts_over)
        if (run := status.outside) is not None and run.certain:
            raise ConflictError(
                f"{name} is being trained: {describe_run(run)}",
                hint=f"wait for it, or {way_to_end(run)}",
            )

    def note_missing_parent(self, request: JobRequest) -> None:
        """Log that a job which starts now would fail, because its parent is not published."""
        from mlip_job.generation.lineage import find_lineage

        if request.after is not None:
            return
        try:
            find_lineage(self._registry, request.config.training, request.generation)
        except ConfigError as error:
            self._log(f"note: {error.message}; a job that starts before that fails")
        except UnavailableError:
            pass  # already logged

    def submit(self, request: JobRequest) -> JobHandle:
        """Submit a request, and return its job."""
        number = request.generation
        before = self._scheduler.find(request.config.family, number)
        active = before is not None and not self._scheduler.status(before).state.ended
        job = self._scheduler.submit(self._scheduler.plan(request))
        found = job.found or (active and job == before)
        if not request.again:
            done = "is pending or running already as" if found else "submitted as"
            self._log(f"{generation_name(number)} {done} {job}")
        return job

    def wait(self, request: JobRequest) -> Manifest:
        """Wait until a generation is published."""
        try:
            return wait_until_published(
                request.generation,
                lambda: self.submit(replace(request, again=True)),
                lambda: self._reader(request.config),
                request.config.submit,
                self._log,
            )
        except KeyboardInterrupt:
            self._log(f"the job continues; mlip-job status -g {request.generation}")
            raise

    def _reader(self, config: JobConfig) -> StatusReader:
        return StatusReader(config, self._registry, self._scheduler)


# -- submit --wait ---------------------------------------------------------------------------------


def wait_until_published(
    generation: int,
    resubmit: Callable[[], JobHandle],
    open_reader: Callable[[], StatusReader],
    settings: SubmitConfig,
    log: Callable[[str], None],
) -> Manifest:
    """Wait for a generation; resubmit it if its job ended for an external reason, e.g. preemption.

    `open_reader` returns a new reader of statuses, `log` receives a message at each change.

    Raises
    ------
    MlipJobError
        Of the kind that the run ended with.
    """
    name = generation_name(generation)
    logged, lost, resubmits = "", 0, 0
    while True:
        status, text = None, ""
        try:
            status, text = _look(open_reader(), generation)
        except UnavailableError as error:
            text = f"{name}: {error.message}; looking again"
        if text != logged:
            log(text)
            logged = text
        if status is not None and status.manifest is not None:
            return status.manifest
        lost = lost + 1 if status is not None and status.state in _LOST else 0
        if status is not None and status.state in (State.FAILED, State.CANCELLED):
            if (final := _final_error(status, resubmits < _MAX_RESUBMITS)) is not None:
                raise final
            try:
                log(f"{name}: submitted again as {resubmit()}, to resume from its checkpoint")
                resubmits += 1
            except UnavailableError as error:
                log(f"{name}: can't be submitted again for now: {error.message}")
        if status is not None and lost == _LOST_LOOKS:
            raise UnavailableError(
                f"{name} is not known to be published, and no job for it is pending or running"
                + (f": {status.details()}" if status.details() else ""),
                hint=f"mlip-job logs -g {generation} shows what is left of its log",
            )
        time.sleep(settings.poll_interval)


def _look(reader: StatusReader, generation: int) -> tuple[GenerationStatus, str]:
    """Return the status and its text.

    Raises
    ------
    UnavailableError
        If a source that could add something may be available later.
    """
    found = reader.read(generation)
    for error in reader.unread.values():
        transient = isinstance(error, UnavailableError) and error.transient
        final = found.state is State.ENDED and not transient
        if found.state not in (State.PUBLISHED, State.FAILED, State.CANCELLED) and not final:
            raise UnavailableError(error.message)
    details = found.details()
    job = found.job_status
    if job is not None and job.state is JobState.PENDING and job.hint:
        details += f" ({job.hint})"
    text = f"{generation_name(generation)}: {found.state}"
    return found, f"{text}, {details}" if details else text


def _final_error(status: GenerationStatus, may_resubmit: bool) -> MlipJobError | None:
    """Return the error that the run itself ended with; None to submit it again."""
    job = status.job_status
    if job is not None and job.resubmit and may_resubmit:
        return None
    kind: type[MlipJobError] = TrainingError
    if status.state is State.CANCELLED or (job is not None and job.resubmit):
        kind = InterruptedRunError
    elif job is not None and job.exit_code is not None:
        kind = meaning_of(job.exit_code).error
    if kind is MlipJobError:
        kind = TrainingError
    text = f"{generation_name(status.generation)} {status.state}"
    details = status.details()
    return kind(f"{text}: {details}" if details else text, hint=status.remedy())
