"""``mlip-job status``: what becomes of submitted generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, scheduler_option
from mlip_job.cli.output import emit, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.cli.job_view import GenerationView
    from mlip_job.cli.options import Settings


@click.command("status")
@generation_option(required=False)
@scheduler_option
@common_options
@click.pass_obj
def command(settings: Settings, generation: int | None, scheduler: str | None) -> None:
    """Show what becomes of one generation, or of all.

    Published, running and how far, pending and why, failed with the cause and what to do. Ends
    with 0 whatever it is.
    """
    from mlip_job.cli.job_view import Observatory
    from mlip_job.registry import Registry
    from mlip_job.schedulers.open import open_scheduler

    config = settings.config()
    registry = Registry(settings.store(config), config.family)
    observatory = Observatory(config, registry, open_scheduler(config, scheduler))
    if generation is not None:
        view = observatory.look(generation)
        emit(settings, view.document(), lambda: _show_one(view))
    else:
        views = list(observatory.all())
        document = {"family": config.family, "generations": [view.document() for view in views]}
        emit(settings, document, lambda: _show_all(config.family, views))
    if observatory.problem is not None and not settings.quiet:
        click.echo(
            f"note: the scheduler can't be asked, this is what the store says: "
            f"{observatory.problem.message}",
            err=True,
        )


def _show_one(view: GenerationView) -> None:
    from mlip_job.cli.job_view import title

    click.echo(title(view))
    lines = {"": view.words(), "next": view.remedy()}
    for name, text in lines.items():
        if text:
            click.echo(f"  {name + ': ' if name else ''}{text}")


def _show_all(family: str, views: Sequence[GenerationView]) -> None:
    from mlip_job.cli.job_words import name_of
    from mlip_job.naming import generation_name
    from mlip_job.schedulers.stage_words import in_brackets

    if not views:
        click.echo(f"nothing is known of any generation of {family}")
        return
    print_table(
        ("generation", "state", "job", ""),
        [
            (
                generation_name(view.generation),
                str(view.state),
                name_of(view.job) + in_brackets(view.job.stage) if view.job is not None else "",
                view.words(),
            )
            for view in views
        ],
    )
    for view in views:
        if (remedy := view.remedy()) is not None:
            click.echo(f"{generation_name(view.generation)}: {remedy}")
