"""``mlip-job verify``: read a generation back and check every hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, resolve_generation
from mlip_job.cli.output import emit
from mlip_job.errors import IntegrityError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("verify")
@generation_option("latest")
@common_options
@click.pass_obj
def command(settings: Settings, generation: int | str) -> None:
    """Read back a generation and check every hash.

    Covers every artefact, the copies under potentials/ and the dataset. Ends with 65 where
    anything is missing or differs.
    """
    registry = settings.registry()
    manifest = registry.get(resolve_generation(generation, registry))
    name = generation_name(manifest.generation)
    problems = registry.verify(manifest)
    emit(
        settings,
        {"generation": manifest.generation, "intact": not problems, "problems": problems},
        lambda: None if problems else click.echo(f"{name} is intact"),
    )
    if problems:
        details = "\n".join(f"  {problem}" for problem in problems)
        raise IntegrityError(f"{name} is damaged:\n{details}", hint="restore it from a backup")
