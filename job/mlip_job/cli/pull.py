"""``mlip-job pull``: download a generation's artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, resolve_generation
from mlip_job.cli.output import emit
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("pull")
@generation_option("latest")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to put them. [default: the generation's name]",
)
@click.option("--dataset", "with_dataset", is_flag=True, help="The dataset too.")
@common_options
@click.pass_obj
def command(
    settings: Settings,
    generation: int | str,
    output: Path | None,
    *,
    with_dataset: bool,
) -> None:
    """Download a generation's artefacts and check them.

    Every file is checked against the manifest before it takes its place; files that are there
    already are replaced only by themselves, anything else ends with 73.
    """
    from mlip_job.registry.pull import pull_generation

    registry = settings.registry()
    manifest = registry.get(resolve_generation(generation, registry))
    directory = output or Path(generation_name(manifest.generation))
    files = pull_generation(registry, manifest, directory, with_dataset=with_dataset)
    emit(
        settings,
        {"generation": manifest.generation, "files": [str(file) for file in files]},
        lambda: click.echo("\n".join(str(file) for file in files)),
    )
