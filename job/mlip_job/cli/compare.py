"""``mlip-job compare``: several generations held against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import GenerationType, common_options, resolve_generation
from mlip_job.cli.output import emit
from mlip_job.cli.page import open_option, show_page, write_page
from mlip_job.cli.text_table import print_table
from mlip_job.errors import ConfigError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.cli.options import Settings
    from mlip_job.report.model import TrainingReport
    from mlip_job.report.texts import Table


@click.command("compare")
@click.argument(
    "generations", metavar="A B [C…]", nargs=-1, required=True, type=GenerationType(("latest",))
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the page. [default: FAMILY-gen_A-gen_B.html; none with --json]",
)
@open_option
@common_options
@click.pass_obj
def command(
    settings: Settings, generations: tuple[int | str, ...], output: Path | None, *, open_it: bool
) -> None:
    """Compare generations: a table here, and one HTML file."""
    from mlip_job.report.comparison import comparison_document, settings_table
    from mlip_job.report.model import read_report
    from mlip_job.report.page import render_comparison

    registry = settings.registry()
    numbers = [resolve_generation(generation, registry) for generation in generations]
    _check(numbers)
    manifests = [registry.get(number) for number in numbers]
    reports = [read_report(registry, manifest) for manifest in manifests]
    settings_apart = settings_table(manifests)
    path = output
    if path is None and (open_it or not settings.as_json):
        path = Path(f"{registry.family}-{'-'.join(map(generation_name, numbers))}.html")
    if path is not None:
        write_page(path, render_comparison(reports, manifests).encode())
    document = comparison_document(reports) | {
        "settings_that_differ": _by_key(settings_apart, numbers),
        "file": str(path) if path else None,
    }
    emit(settings, document, lambda: _show(reports, settings_apart, path))
    if path is not None:
        show_page(path, open_it=open_it)


def _check(numbers: Sequence[int]) -> None:
    from mlip_job.report.figures import MAX_GENERATIONS

    if len(set(numbers)) < len(numbers):
        raise ConfigError("a generation is named twice")
    if not 1 < len(numbers) <= MAX_GENERATIONS:
        raise ConfigError(
            f"{len(numbers)} given: compare takes from 2 to {MAX_GENERATIONS} generations"
        )


def _by_key(table: Table | None, numbers: Sequence[int]) -> dict[str, dict[str, str]]:
    """Return the settings that differ for ``--json``: of each key, the text per generation."""
    rows = table.rows if table is not None else ()
    names = [generation_name(number) for number in numbers]
    return {str(key): dict(zip(names, map(str, values), strict=True)) for key, *values in rows}


def _show(
    reports: Sequence[TrainingReport], settings_apart: Table | None, path: Path | None
) -> None:
    from mlip_job.report.comparison import figures_table, steps_table

    for table in (steps_table(reports), figures_table(reports), settings_apart):
        if table is not None:
            click.echo(table.title)
            rows = [[str(cell) for cell in row] for row in table.rows]
            print_table(
                [column.heading for column in table.columns],
                rows,
                [column.numeric for column in table.columns],
            )
            click.echo(f"{table.note}\n")
    if settings_apart is None:
        click.echo("Their settings do not differ.\n")
    click.echo(path)
