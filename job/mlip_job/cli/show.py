"""``mlip-job show``: one published generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, resolve_generation
from mlip_job.cli.output import emit

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("show")
@generation_option("latest")
@common_options
@click.pass_obj
def command(settings: Settings, generation: int | str) -> None:
    """Show one published generation."""
    from mlip_job.cli.tables import show_manifest

    registry = settings.registry()
    manifest = registry.get(resolve_generation(generation, registry))
    pointer = registry.pointer()
    latest = pointer if pointer and pointer.generation == manifest.generation else None
    document = {
        **manifest.model_dump(mode="json"),
        "latest": latest.model_dump(mode="json") if latest else None,
    }
    emit(settings, document, lambda: show_manifest(manifest, latest))
