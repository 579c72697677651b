"""``mlip-job list``, ``show``, ``report``, ``compare`` and ``promote``: published generations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import (
    GenerationType,
    common_options,
    generation_option,
    resolve_generation,
)
from mlip_job.cli.output import emit
from mlip_job.cli.tables import print_table
from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.cli.options import Settings
    from mlip_job.registry import Manifest, Registry
    from mlip_job.report.model import TrainingReport
    from mlip_job.report.texts import Table


_NEWEST = 100
"""Generations that a list shows: one request each, and a screen has fewer lines."""

open_option = click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")


@click.command("list")
@click.option("--all", "list_all", is_flag=True, help=f"Also those before the newest {_NEWEST}.")
@common_options
@click.pass_obj
def list_command(settings: Settings, *, list_all: bool) -> None:
    """List the published generations.

    A table has the newest 100, --json all.
    """
    from mlip_job.cli.tables import show_generations

    registry = settings.registry()
    started = registry.started()
    newest = started if list_all or settings.as_json else started[-_NEWEST:]
    generations = registry.summaries(newest)
    latest = registry.latest()
    document = {
        "family": registry.family,
        "latest": latest,
        "generations": [generation.model_dump(mode="json") for generation in generations],
    }

    def show() -> None:
        show_generations(registry.family, generations, latest)
        if len(newest) < len(started):
            click.echo(f"Only the newest {_NEWEST} are listed; --all lists all")

    emit(settings, document, show)


@click.command("show")
@generation_option("latest")
@common_options
@click.pass_obj
def show_command(settings: Settings, generation: int | str) -> None:
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
def report_command(
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


def write_page(path: Path, page: bytes) -> None:
    """Write a page; one of that name is replaced."""
    try:
        path.write_bytes(page)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror or error}", hint="choose another -o FILE"
        ) from None


def show_page(path: Path, *, open_it: bool) -> None:
    """Open a page in the user's browser, where there is one."""
    if open_it and click.launch(str(path.resolve())) != 0:
        click.echo(f"no browser could be started; open {path} in one", err=True)


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
def compare_command(
    settings: Settings, generations: tuple[int | str, ...], output: Path | None, *, open_it: bool
) -> None:
    """Compare generations: a table here, and one HTML file."""
    from mlip_job.registry.objects import at_once
    from mlip_job.report.comparison import comparison_document, settings_table
    from mlip_job.report.model import read_report
    from mlip_job.report.page import render_comparison

    registry = settings.registry()
    numbers = [resolve_generation(generation, registry) for generation in generations]
    _check(numbers)
    manifests = at_once(registry.get, numbers)
    reports = at_once(lambda manifest: read_report(registry, manifest), manifests)
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
    emit(settings, document, lambda: show_comparison(reports, settings_apart, path))
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


def show_comparison(
    reports: Sequence[TrainingReport], settings_apart: Table | None, path: Path | None
) -> None:
    """Print the tables of several generations, and where the page is."""
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


@click.command("promote")
@generation_option()
@click.option("--reason", required=True, metavar="TEXT", help="Why; recorded in latest.json.")
@click.option("--force", is_flag=True, help="Also a generation that its gate rejected.")
@common_options
@click.pass_obj
def promote_command(settings: Settings, generation: int, reason: str, *, force: bool) -> None:
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
