"""``mlip-job submit``, ``status``, ``logs`` and ``cancel``: the jobs of generations."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from mlip_job.cli.options import (
    GenerationType,
    common_options,
    generation_option,
    resolve_generation,
    scheduler_option,
)
from mlip_job.cli.output import Reporter, emit
from mlip_job.cli.tables import print_table
from mlip_job.errors import ConfigError, ConflictError, MlipJobError, UnavailableError
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.cli.job_view import GenerationView, Observatory
    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.schedulers.base import JobHandle, JobRequest, JobState, Scheduler


def document_of(job: JobHandle) -> dict[str, str]:
    """Return a job for ``--json``."""
    return {
        "scheduler": job.scheduler,
        "id": job.id,
        "name": job.name,
    }


def name_of(job: JobHandle) -> str:
    """Return the name of a job in messages."""
    word = {"local": "process", "kubernetes": "Job"}.get(job.scheduler, f"{job.scheduler} job")
    return f"{word} {job.id}"


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

    The same submission again, while its job waits or runs, returns that job. A generation that
    exists is rejected (73). With --wait, a job that ended for an external reason, e.g. preemption,
    is resubmitted, and the exit code is that of the run.
    """
    from mlip_job.registry import Registry
    from mlip_job.schedulers import open_scheduler
    from mlip_job.schedulers.base import JobRequest

    config = settings.config()
    registry = Registry(settings.store(config), config.family)
    numbers = (
        list(generation)
        if isinstance(generation, range)
        else [resolve_generation(generation, registry)]
    )
    chosen = open_scheduler(config, scheduler)
    first = JobRequest(
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
        click.echo(chosen.plan(first).text, nl=False)
        return
    submitter = _Submitter(settings, config, registry, chosen, Reporter(settings))
    documents = submitter.submit(first, numbers, wait=wait)
    emit(settings, {"jobs": documents}, lambda: None)


class _Submitter:
    """Submits one generation after the other."""

    def __init__(
        self,
        settings: Settings,
        config: JobConfig,
        registry: Registry,
        scheduler: Scheduler,
        reporter: Reporter,
    ) -> None:
        self._settings = settings
        self._config = config
        self._registry = registry
        self._scheduler = scheduler
        self._reporter = reporter

    def submit(self, first: JobRequest, numbers: list[int], *, wait: bool) -> list[dict[str, Any]]:
        """Submit all; with `wait`, each after the previous one is published.

        Else each waits for the job of the one before, which the scheduler sees to.
        """
        from dataclasses import replace

        documents: list[dict[str, Any]] = []
        after = first.after
        for number in numbers:
            self._require_absent(number, first)
        for number in numbers:
            request = replace(first, generation=number, after=after)
            job = self._submit_one(request)
            documents.append({"generation": number, **document_of(job)})
            after = None if wait else job.id
            if wait:
                documents[-1]["manifest"] = self._wait(request).model_dump(mode="json")
        return documents

    def _submit_one(self, request: JobRequest) -> JobHandle:
        from dataclasses import replace

        number = request.generation
        before = self._scheduler.find(self._config.family, number)
        live = before is not None and not self._scheduler.status(before).state.ended
        job = self._scheduler.submit(self._scheduler.plan(request))
        job = replace(job, found=job.found or (live and job == before))
        what = "waits or runs already as" if job.found else "submitted as"
        if not request.again:
            self._reporter.message(f"{generation_name(number)} {what} {name_of(job)}")
        return job

    def _wait(self, request: JobRequest) -> Manifest:
        from dataclasses import replace

        from mlip_job.cli.job_view import Observatory
        from mlip_job.cli.tables import show_manifest
        from mlip_job.cli.waiting import wait_until_published

        again = replace(request, again=True)
        try:
            manifest = wait_until_published(
                request.generation,
                lambda: self._submit_one(again),
                lambda: Observatory(self._config, self._registry, self._scheduler),
                self._config.submit,
                self._reporter.message,
            )
        except KeyboardInterrupt:
            self._reporter.message(f"the job continues; mlip-job status -g {request.generation}")
            raise
        if not self._settings.as_json:
            show_manifest(manifest)
        return manifest

    def _require_absent(self, number: int, first: JobRequest) -> None:
        from mlip_job.cli.job_view import require_no_run_outside
        from mlip_job.registry.members import require_one_kind

        try:
            published = self._registry.find(number)
        except UnavailableError as error:
            self._reporter.message(
                f"note: {error.message}; whether {generation_name(number)} exists is for the job "
                "to find out"
            )
            return
        if published is not None:
            raise ConflictError(
                f"{generation_name(number)} of {self._config.family} is published already",
                hint=f"mlip-job show -g {number}; mlip-job submit -g next trains another",
            )
        require_one_kind(self._registry, number, first.ensemble, fresh=first.starts_over)
        require_no_run_outside(self._registry, number, self._scheduler)


@click.command("status")
@generation_option(required=False)
@scheduler_option
@common_options
@click.pass_obj
def status_command(settings: Settings, generation: int | None, scheduler: str | None) -> None:
    """Show the jobs of one generation, or of all.

    Published, running with its progress, pending with the reason, failed with the cause and what to
    do. Ends with 0 in every state, also if the store or the scheduler is unavailable: the other one
    is shown.
    """
    from mlip_job.cli.job_view import Observatory
    from mlip_job.registry import Registry
    from mlip_job.schedulers import open_scheduler

    config = settings.config()
    registry = Registry(settings.store(config), config.family)
    observatory = Observatory(config, registry, open_scheduler(config, scheduler))
    if generation is not None:
        view = observatory.look(generation)
        unread = _unread(observatory)
        emit(settings, view.document() | {"unread": unread}, lambda: _show_one(view))
    else:
        views = list(observatory.all())
        unread = _unread(observatory)
        documents = [view.document() for view in views]
        document = {"family": config.family, "generations": documents, "unread": unread}
        emit(settings, document, lambda: _show_all(config.family, views, unread))
    if not settings.quiet:
        for source, message in unread.items():
            click.echo(f"note: the {source} can't be read: {message}", err=True)


def _unread(observatory: Observatory) -> dict[str, str]:
    """Return why a source could not be read, by its name.

    Raises
    ------
    UnavailableError
        If none of them could.
    """
    from mlip_job.cli.job_view import Source
    from mlip_job.errors import UnavailableError

    unread = observatory.unread
    if len(unread) == len(Source):
        texts = "; ".join(f"the {source}: {error.message}" for source, error in unread.items())
        raise UnavailableError(
            f"nothing can be read, neither store nor scheduler: {texts}",
            hint=unread[Source.STORE].hint,
        )
    return {str(source): error.message for source, error in unread.items()}


def _show_one(view: GenerationView) -> None:
    from mlip_job.cli.job_view import title

    click.echo(title(view))
    lines = {"": view.words(), "next": view.remedy()}
    for name, text in lines.items():
        if text:
            click.echo(f"  {name + ': ' if name else ''}{text}")


def _show_all(family: str, views: Sequence[GenerationView], unread: Mapping[str, str]) -> None:
    from mlip_job.paths import generation_name

    if not views:
        asked = f", with the {' and '.join(unread)} unread" if unread else ""
        click.echo(f"nothing is known of any generation of {family}{asked}")
        return
    print_table(
        ("generation", "state", "job", ""),
        [
            (
                generation_name(view.generation),
                str(view.state),
                name_of(view.job) if view.job is not None else "",
                view.words(),
            )
            for view in views
        ],
    )
    for view in views:
        if (remedy := view.remedy()) is not None:
            click.echo(f"{generation_name(view.generation)}: {remedy}")


@click.command("logs")
@generation_option()
@click.option("-f", "--follow", is_flag=True, help="Follow until the job has ended.")
@scheduler_option
@common_options
@click.pass_obj
def logs_command(
    settings: Settings, generation: int, scheduler: str | None, *, follow: bool
) -> None:
    """Print what the job of a generation printed.

    If the scheduler no longer has it, print the log of the fit from the store. For a job without
    output, print its state.
    """
    if settings.as_json and follow:
        raise ConfigError("--json prints one document, and --follow has no end: choose one")
    config = settings.config()
    job = _Job(config, generation, scheduler)
    found = False
    kept: list[str] = []
    for line in job.lines(follow=follow):
        found = True
        if settings.as_json:
            kept.append(line)
        else:
            click.echo(line)
    source = "job"
    if not found:
        text = _stored_log(settings, config, generation, job)
        source = "job" if text is None else "store"
        kept = (text or "").splitlines()
        if not settings.as_json:
            click.echo(text or "", nl=False)
    if settings.as_json:
        import json

        document = {"generation": generation, "source": source, "lines": kept}
        click.echo(json.dumps(document | {"job_state": job.state}, indent=2))


class _Job:
    """The job of a generation, where the scheduler knows one.

    Attributes
    ----------
    state
        What it is doing, where it has printed nothing; None where that is not known.
    """

    def __init__(self, config: JobConfig, generation: int, scheduler: str | None) -> None:
        self.state: JobState | None = None
        self._config = config
        self._generation = generation
        self._scheduler = scheduler

    @property
    def goes_on(self) -> bool:
        """Whether it waits or runs."""
        return self.state is not None and not self.state.ended

    def lines(self, *, follow: bool) -> Iterator[str]:
        """Yield its output; without output, a note gives its state.

        A note also says if the scheduler is unavailable.
        """
        from mlip_job.schedulers import open_scheduler

        try:
            chosen = open_scheduler(self._config, self._scheduler)
            job = chosen.find(self._config.family, self._generation)
            if job is None:
                return
            empty = True
            for line in chosen.logs(job, follow=follow):
                empty = False
                yield line
            if empty:
                status = chosen.status(job)
                self.state = status.state
                why = f": {status.reason}" if status.reason else ""
                _note(f"{name_of(job)} is {status.state} and has printed nothing{why}")
        except MlipJobError as error:
            _note(error.message)


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _stored_log(settings: Settings, config: JobConfig, generation: int, job: _Job) -> str | None:
    """Return the log of the fit from the store.

    None where it is missing or can't be read, and the job waits or runs: it may print one yet.
    """
    from mlip_job.errors import UnavailableError
    from mlip_job.registry import Registry

    try:
        return _newest_log(Registry(settings.store(config), config.family), generation)
    except UnavailableError as error:
        if not job.goes_on:
            raise
        _note(f"the store can't be read: {error.message}")
    except ConfigError:
        if not job.goes_on:
            raise
    return None


def _newest_log(registry: Registry, generation: int) -> str:
    """Return the log of the newest attempt that has shipped one, at whichever member it is."""
    from mlip_job.registry import members_of

    attempts = [
        (attempt, place.own.attempt(generation, attempt, "train.log"))
        for place in (registry, *members_of(registry, generation).values())
        for attempt in registry.store.list_prefixes(place.own.generation(generation, "attempts/"))
    ]
    for _, key in sorted(attempts, reverse=True):
        if registry.store.head(key) is not None:
            return registry.store.get(key).decode(errors="replace")
    raise ConfigError(
        f"there is no log of {generation_name(generation)}: no job is known, and nothing is stored",
        hint=f"mlip-job status -g {generation}",
    )


_MARGIN_SECONDS = 120.0
"""So long an ended run's job may take to end, as where a node answers slowly."""

_POLL_SECONDS = 1.0


@click.command("cancel")
@generation_option()
@click.option("--no-wait", is_flag=True, help="Return at once; mlip-job status tells the end.")
@scheduler_option
@common_options
@click.pass_obj
def cancel_command(
    settings: Settings, generation: int, scheduler: str | None, *, no_wait: bool
) -> None:
    """Stop all jobs of a generation; each saves a checkpoint first.

    Waits for their end. Submitting the generation again resumes from the checkpoint. A job that has
    ended is not changed. A run that was started by hand is no job: it is named, with the command
    that stops it.
    """
    from mlip_job.cli.job_view import note_on_outside
    from mlip_job.registry import Registry
    from mlip_job.schedulers import open_scheduler

    config = settings.config()
    chosen, reporter = open_scheduler(config, scheduler), Reporter(settings)
    name = generation_name(generation)
    outside = None
    with suppress(MlipJobError):  # the store: its keys may be the jobs' alone
        registry = Registry(settings.store(config), config.family)
        outside = note_on_outside(registry, generation, chosen)
    jobs = list(chosen.active(config.family, generation))
    if not jobs:
        _show_ended(settings, chosen, config, generation, outside)
        return
    for job in jobs:
        of = f" of the Helm release {job.release}" if job.release is not None else ""
        reporter.message(f"cancelling {name_of(job)}{of}; it may save a checkpoint")
    for job in reversed(jobs):  # of several in a row, the last first: it must not start
        chosen.cancel(job)
    states = [chosen.status(job).state for job in jobs]
    if not no_wait:
        states = _wait_for_end(chosen, jobs, _patience(config))
    document = {
        "generation": generation,
        "job": jobs[0].id,
        "cancelled": True,
        "state": states[0],
        "jobs": [
            {**document_of(job), "release": job.release, "state": state}
            for job, state in zip(jobs, states, strict=True)
        ],
    }

    def show() -> None:
        for job, state in zip(jobs, states, strict=True):
            ends = "is" if state.ended else "is being cancelled, and still"
            click.echo(f"{name_of(job)} of {name} {ends} {state}")

    emit(settings, document, show)
    for job in jobs:
        if job.release is not None:
            reporter.message(
                f"note: the Helm release {job.release} still exists, and an upgrade makes its Job "
                f"again: helm uninstall {job.release} --namespace {job.id.partition('/')[0]}"
            )
    if outside is not None:
        reporter.message(f"note: {outside}")


def _show_ended(
    settings: Settings,
    scheduler: Scheduler,
    config: JobConfig,
    generation: int,
    outside: str | None,
) -> None:

    job, name = scheduler.find(config.family, generation), generation_name(generation)
    if job is None:
        raise ConfigError(
            f"{scheduler.name} knows no job of {name} of {config.family}", hint=outside
        )
    state = scheduler.status(job).state
    document = {"generation": generation, "job": job.id, "cancelled": False, "state": state}
    emit(
        settings,
        document | {"jobs": []},
        lambda: click.echo(f"{name_of(job)} of {name} had ended: {state}"),
    )

    if outside is not None:
        Reporter(settings).message(f"note: {outside}")


def _patience(config: JobConfig) -> float:
    """Return for how many seconds a job may take to end: its last checkpoint, and a margin."""
    return _MARGIN_SECONDS + 2 * config.run.stop_timeout


def _wait_for_end(
    scheduler: Scheduler, jobs: Sequence[JobHandle], patience: float
) -> list[JobState]:

    end = time.monotonic() + patience
    while True:
        states = [scheduler.status(job).state for job in jobs]
        left = [job for job, state in zip(jobs, states, strict=True) if not state.ended]
        if not left:
            return states
        if time.monotonic() > end:
            raise UnavailableError(
                f"{name_of(left[0])} was told to stop, and has not within {patience:.0f} s",
                hint="mlip-job status says what it is doing",
            )
        time.sleep(_POLL_SECONDS)
