"""``mlip-job logs``: what a job printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, scheduler_option
from mlip_job.errors import ConfigError, MlipJobError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig
    from mlip_job.registry import Registry


@click.command("logs")
@generation_option()
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@scheduler_option
@common_options
@click.pass_obj
def command(settings: Settings, generation: int, scheduler: str | None, *, follow: bool) -> None:
    """Print what the job of a generation printed.

    Where the scheduler has nothing any more, the log of the fit from the store.
    """
    from mlip_job.registry import Registry

    if settings.as_json and follow:
        raise ConfigError("--json prints one document, and --follow has no end: choose one")
    config = settings.config()
    found = False
    kept: list[str] = []
    for line in _job_lines(config, generation, scheduler, follow=follow):
        found = True
        if settings.as_json:
            kept.append(line)
        else:
            click.echo(line)
    source = "job"
    if not found:
        source = "store"
        registry = Registry(settings.store(config), config.family)
        text = _stored_log(registry, generation)
        kept = text.splitlines()
        if not settings.as_json:
            click.echo(text, nl=False)
    if settings.as_json:
        import json

        document = {"generation": generation, "source": source, "lines": kept}
        click.echo(json.dumps(document, indent=2))


def _job_lines(
    config: JobConfig, generation: int, scheduler: str | None, *, follow: bool
) -> Iterator[str]:
    """Yield what the scheduler has; a note where it can't be asked."""
    from mlip_job.schedulers.open import open_scheduler

    try:
        chosen = open_scheduler(config, scheduler)
        job = chosen.find(config.family, generation)
        if job is not None:
            yield from chosen.logs(job, follow=follow)
    except MlipJobError as error:
        click.echo(f"note: {error.message}", err=True)


def _stored_log(registry: Registry, generation: int) -> str:
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
