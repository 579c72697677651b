"""``mlip-job cancel``: have a submitted job stop."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, scheduler_option
from mlip_job.cli.output import Reporter, emit
from mlip_job.errors import ConfigError, MlipJobError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings
    from mlip_job.schedulers.base import JobHandle, JobStatus, Scheduler

_LONGEST_WAIT_SECONDS = 120.0
_POLL_SECONDS = 1.0


@click.command("cancel")
@generation_option()
@scheduler_option
@common_options
@click.pass_obj
def command(settings: Settings, generation: int, scheduler: str | None) -> None:
    """Stop the job of a generation; it saves a checkpoint first.

    Submitting the generation again goes on from there. A job that has ended is left as it is. Of a
    run that was split into several, all are stopped. A run that was started by hand is no job: it
    is named, with what ends it.
    """
    from mlip_job.cli.job_words import name_of
    from mlip_job.cli.outside import note_on_outside
    from mlip_job.registry import Registry
    from mlip_job.schedulers.open import open_scheduler

    config = settings.config()
    chosen = open_scheduler(config, scheduler)
    job = chosen.find(config.family, generation)
    name = generation_name(generation)
    outside = None
    with suppress(MlipJobError):  # the store: its keys may be the jobs' alone
        registry = Registry(settings.store(config), config.family)
        outside = note_on_outside(registry, generation, chosen)
    if job is None:
        raise ConfigError(f"{chosen.name} knows no job of {name} of {config.family}", hint=outside)
    status = chosen.status(job)
    cancelled = not status.state.ended
    if cancelled:
        Reporter(settings).message(f"cancelling {name_of(job)}; it may save a checkpoint")
    chosen.cancel(job)
    if cancelled:
        status = _wait_for_end(chosen, job)
    document = {"generation": generation, "job": job.id, "cancelled": cancelled}
    emit(
        settings,
        document | {"state": status.state},
        lambda: click.echo(
            f"{name_of(job)} of {name} {'is' if cancelled else 'had ended:'} {status.state}"
        ),
    )

    if outside is not None:
        Reporter(settings).message(f"note: {outside}")


def _wait_for_end(scheduler: Scheduler, job: JobHandle) -> JobStatus:
    end = time.monotonic() + _LONGEST_WAIT_SECONDS
    while True:
        status = scheduler.status(job)
        if status.state.ended or time.monotonic() > end:
            return status
        time.sleep(_POLL_SECONDS)
