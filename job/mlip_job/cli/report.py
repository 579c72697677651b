"""``mlip-job report``: the page about a generation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, resolve_generation
from mlip_job.cli.output import emit
from mlip_job.cli.page import open_option, show_page, write_page
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings
    from mlip_job.registry import Manifest, Registry

_PAGE = "report.html"


@click.command("report")
@generation_option("latest")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it. [default: FAMILY-gen_NN.html]",
)
@open_option
@common_options
@click.pass_obj
def command(
    settings: Settings, generation: int | str, output: Path | None, *, open_it: bool
) -> None:
    """Fetch the report of a generation, one HTML file.

    Where a generation was published without one, it is made from its report.json.
    """
    registry = settings.registry()
    manifest = registry.get(resolve_generation(generation, registry))
    name = generation_name(manifest.generation)
    path = output or Path(f"{registry.family}-{name}.html")
    write_page(path, _page(registry, manifest))
    document = {"generation": manifest.generation, "file": str(path)}
    emit(settings, document, lambda: click.echo(path))
    show_page(path, open_it=open_it)


def _page(registry: Registry, manifest: Manifest) -> bytes:
    """Return the page as it was published, or make it."""
    from mlip_job.report.model import read_facts, read_predecessor
    from mlip_job.report.page import render_report

    if _PAGE in manifest.artefacts:
        return registry.read(manifest, _PAGE)
    facts = read_facts(registry, manifest.generation)
    return render_report(facts, read_predecessor(registry, facts.report)).encode()
