"""``mlip-job promote``: choose the generation that ``latest.json`` points at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option
from mlip_job.cli.output import emit
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("promote")
@generation_option()
@click.option("--reason", required=True, metavar="TEXT", help="Why; recorded in latest.json.")
@click.option("--force", is_flag=True, help="Also a generation that its gate rejected.")
@common_options
@click.pass_obj
def command(settings: Settings, generation: int, reason: str, *, force: bool) -> None:
    """Make a generation the latest.

    An older one too: that goes back to it, until a generation is published and accepted after
    that. A generation that its gate rejected takes --force.
    """
    registry = settings.registry()
    registry.promote(generation, reason, force=force)
    name = generation_name(generation)
    emit(
        settings,
        {"latest": generation, "name": name, "reason": reason},
        lambda: click.echo(f"{name} is the latest of {registry.family}"),
    )
