"""``mlip-job list``: the published generations of the family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options
from mlip_job.cli.output import emit

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("list")
@common_options
@click.pass_obj
def command(settings: Settings) -> None:
    """List the published generations."""
    from mlip_job.cli.tables import show_generations

    registry = settings.registry()
    generations = registry.summaries()
    latest = registry.latest()
    document = {
        "family": registry.family,
        "latest": latest,
        "generations": [generation.model_dump(mode="json") for generation in generations],
    }
    emit(settings, document, lambda: show_generations(registry.family, generations, latest))
