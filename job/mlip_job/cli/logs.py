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
    from mlip_job.schedulers.base import JobState


@click.command("logs")
@generation_option()
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@scheduler_option
@common_options
@click.pass_obj
def command(settings: Settings, generation: int, scheduler: str | None, *, follow: bool) -> None:
    """Print what the job of a generation printed.

    Where the scheduler has nothing any more, the log of the fit from the store. Of a job that has
    printed nothing yet, what it is doing.
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
        """Yield what it printed; where that is nothing, a note says what it is doing.

        A note says as well where the scheduler can't be asked.
        """
        from mlip_job.cli.job_words import name_of
        from mlip_job.schedulers.open import open_scheduler

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
