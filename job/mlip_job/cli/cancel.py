"""``mlip-job cancel``: have a submitted job stop."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, scheduler_option
from mlip_job.cli.output import Reporter, emit
from mlip_job.errors import ConfigError, MlipJobError, UnavailableError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobHandle, JobState, Scheduler

_MARGIN_SECONDS = 120.0
"""So long an ended run's job may take to end, as where a node answers slowly."""

_POLL_SECONDS = 1.0


@click.command("cancel")
@generation_option()
@click.option("--no-wait", is_flag=True, help="Return at once; mlip-job status tells the end.")
@scheduler_option
@common_options
@click.pass_obj
def command(settings: Settings, generation: int, scheduler: str | None, *, no_wait: bool) -> None:
    """Stop all jobs of a generation; each saves a checkpoint first.

    Waits for their end. Submitting the generation again resumes from the checkpoint. A job that has
    ended is left as it is. A run that was started by hand is no job: it is named, and what ends it.
    """
    from mlip_job.cli.job_words import document_of, name_of
    from mlip_job.cli.outside import note_on_outside
    from mlip_job.registry import Registry
    from mlip_job.schedulers.open import open_scheduler

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
    from mlip_job.cli.job_words import name_of

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
    from mlip_job.cli.job_words import name_of

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
