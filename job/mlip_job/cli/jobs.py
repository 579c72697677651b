"""``mlip-job status``, ``logs`` and ``cancel``: the jobs of generations."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from mlip_job.cli.generation_status import StatusReader, describe_run, way_to_end
from mlip_job.cli.options import common_options, generation_option, scheduler_option
from mlip_job.cli.output import Reporter, emit, print_lines, print_table
from mlip_job.errors import ConfigError, MlipJobError, UnavailableError
from mlip_job.paths import generation_name
from mlip_job.schedulers import open_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlip_job.cli.generation_status import GenerationStatus
    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig
    from mlip_job.registry import Registry
    from mlip_job.schedulers.base import JobHandle, JobState, JobStatus, Scheduler

_MARGIN_SECONDS = 120.0  # for a job to end after its run, as where a node answers slowly
_POLL_SECONDS = 1.0


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
    config = settings.config()
    reader = StatusReader(config, settings.registry(config), open_scheduler(config, scheduler))
    if generation is not None:
        status = reader.read(generation)
        document = status.document() | {"unread": reader.unread_messages()}
        emit(settings, document, lambda: _show_one(status))
    else:
        statuses = list(reader.read_all())
        unread = reader.unread_messages()
        documents = [status.document() for status in statuses]
        document = {"family": config.family, "generations": documents, "unread": unread}
        emit(settings, document, lambda: _show_all(config.family, statuses, unread))
    if not settings.quiet:
        for source, message in reader.unread_messages().items():
            click.echo(f"note: the {source} can't be read: {message}", err=True)


def _show_one(status: GenerationStatus) -> None:
    job = f" ({status.job})" if status.job is not None else ""
    click.echo(f"{generation_name(status.generation)} {status.state}{job}")
    if details := status.details():
        click.echo(f"  {details}")
    if remedy := status.remedy():
        click.echo(f"  next: {remedy}")


def _show_all(family: str, statuses: Sequence[GenerationStatus], unread: Mapping[str, str]) -> None:
    if not statuses:
        asked = f", with the {' and '.join(unread)} unread" if unread else ""
        click.echo(f"nothing is known of any generation of {family}{asked}")
        return
    rows = [
        (generation_name(s.generation), str(s.state), str(s.job or ""), s.details())
        for s in statuses
    ]
    print_table(("generation", "state", "job", ""), rows)
    print_lines(((f"{generation_name(s.generation)}:", s.remedy()) for s in statuses), 0)


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
    lines: list[str] = []

    def show(line: str) -> None:
        if settings.as_json:
            lines.append(line)
        else:
            click.echo(line)

    source, state = "job", None
    printed, status = _print_log(config, generation, scheduler, show, follow=follow)
    if not printed:
        state = status.state if status is not None else None
        text = _stored_log(settings, config, generation, required=state is None or state.ended)
        source = "job" if text is None else "store"
        for line in (text or "").splitlines():
            show(line)
    if settings.as_json:
        document = {"generation": generation, "source": source, "lines": lines, "job_state": state}
        click.echo(json.dumps(document, indent=2))


def _print_log(
    config: JobConfig,
    generation: int,
    scheduler: str | None,
    show: Callable[[str], None],
    *,
    follow: bool,
) -> tuple[bool, JobStatus | None]:
    """Show the log of a job; return whether there were lines, else the job's status.

    A note says if the scheduler is unavailable.
    """
    printed, status = False, None
    try:
        chosen = open_scheduler(config, scheduler)
        job = chosen.find(config.family, generation)
        if job is None:
            return False, None
        for line in chosen.logs(job, follow=follow):
            printed = True
            show(line)
        if not printed:
            status = chosen.status(job)
            why = f": {status.reason}" if status.reason else ""
            _note(f"{job} is {status.state} and has printed nothing{why}")
    except MlipJobError as error:
        _note(error.message)
    return printed, status


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _stored_log(
    settings: Settings, config: JobConfig, generation: int, *, required: bool
) -> str | None:
    """Return the log of the fit from the store; None if it can't be read and is not required."""
    try:
        return _newest_log(settings.registry(config), generation)
    except UnavailableError as error:
        if required:
            raise
        _note(f"the store can't be read: {error.message}")
    except ConfigError:
        if required:
            raise
    return None


def _newest_log(registry: Registry, generation: int) -> str:
    """Return the newest log of an attempt, of a generation or of a member."""
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


@click.command("cancel")
@generation_option()
@click.option("--no-wait", is_flag=True, help="Return at once; mlip-job status shows the end.")
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
    config = settings.config()
    chosen, reporter = open_scheduler(config, scheduler), Reporter(settings)
    name = generation_name(generation)
    outside = _describe_outside(settings, config, generation, chosen)
    active = list(chosen.active(config.family, generation))
    newest = active[0] if active else chosen.find(config.family, generation)
    if newest is None:
        raise ConfigError(f"{chosen.name} knows no job of {name} of {config.family}", hint=outside)
    # The last checkpoint and the release of the claim may each take run.stop_timeout.
    timeout = None if no_wait else _MARGIN_SECONDS + 2 * config.run.stop_timeout
    states = _stop(chosen, active, reporter, timeout) or [chosen.status(newest).state]
    document = {
        "generation": generation,
        "job": newest.id,
        "cancelled": bool(active),
        "state": states[0],
        "jobs": [
            {**job.document(), "release": job.release, "state": state}
            for job, state in zip(active, states, strict=False)
        ],
    }

    def show() -> None:
        for job, state in zip(active or [newest], states, strict=True):
            ends = "is" if state.ended else "is being cancelled, and still"
            click.echo(f"{job} of {name} {ends if active else 'had ended:'} {state}")

    emit(settings, document, show)
    for job in active:
        if job.release is not None:
            reporter.message(
                f"note: the Helm release {job.release} still exists, and an upgrade makes its Job "
                f"again: helm uninstall {job.release} --namespace {job.id.partition('/')[0]}"
            )
    if outside is not None:
        reporter.message(f"note: {outside}")


def _describe_outside(
    settings: Settings, config: JobConfig, generation: int, scheduler: Scheduler
) -> str | None:
    """Describe a live run that the scheduler can't cancel, if the store can be read."""
    run = None
    with suppress(MlipJobError):
        run = StatusReader(config, settings.registry(config), scheduler).read(generation).outside
    if run is None:
        return None
    end = way_to_end(run) + (" ends it, with a checkpoint" if run.scheduler is None else "")
    name = generation_name(generation)
    return f"{name} is being trained by no job of {scheduler.name}: {describe_run(run)}; {end}"


def _stop(
    scheduler: Scheduler, jobs: Sequence[JobHandle], reporter: Reporter, timeout: float | None
) -> list[JobState]:
    """Stop jobs, wait for their end if there is a `timeout`, and return their states."""
    for job in jobs:
        of = f" of the Helm release {job.release}" if job.release is not None else ""
        reporter.message(f"cancelling {job}{of}; it may save a checkpoint")
    for job in reversed(jobs):  # of several in a row, the last first: it must not start
        scheduler.cancel(job)
    end = time.monotonic() + (timeout or 0)
    while True:
        states = [scheduler.status(job).state for job in jobs]
        left = [job for job, state in zip(jobs, states, strict=True) if not state.ended]
        if not left or timeout is None:
            return states
        if time.monotonic() > end:
            raise UnavailableError(
                f"{left[0]} has not stopped within {timeout:.0f} s",
                hint="mlip-job status says what it is doing",
            )
        time.sleep(_POLL_SECONDS)
