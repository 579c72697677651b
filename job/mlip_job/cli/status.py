"""``mlip-job status``: what becomes of submitted generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, scheduler_option
from mlip_job.cli.output import emit
from mlip_job.cli.text_table import print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.cli.job_view import GenerationView, Observatory
    from mlip_job.cli.options import Settings


@click.command("status")
@generation_option(required=False)
@scheduler_option
@common_options
@click.pass_obj
def command(settings: Settings, generation: int | None, scheduler: str | None) -> None:
    """Show what becomes of one generation, or of all.

    Published, running and how far, pending and why, failed with the cause and what to do. Ends
    with 0 whatever it is, also where the store or the scheduler can't be read: the other one tells
    what it knows.
    """
    from mlip_job.cli.job_view import Observatory
    from mlip_job.registry import Registry
    from mlip_job.schedulers.open import open_scheduler

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
    from mlip_job.cli.job_words import name_of
    from mlip_job.naming import generation_name

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
