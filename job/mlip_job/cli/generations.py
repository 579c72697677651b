"""``mlip-job list``, ``show``, ``report``, ``compare`` and ``promote``: published generations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import (
    GenerationType,
    common_options,
    generation_option,
    output_option,
    resolve_generation,
)
from mlip_job.cli.output import emit, print_lines, print_table
from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name
from mlip_job.report.texts import count, describe_change, duration, fixed, gate_word, significant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.cli.options import Settings
    from mlip_job.models import Errors
    from mlip_job.registry import (
        GenerationSummary,
        LatestPointer,
        Manifest,
        PredecessorChange,
        Registry,
    )
    from mlip_job.report.model import TrainingReport
    from mlip_job.report.texts import Table

_PAGE = "report.html"
_LABEL_WIDTH = 14
_MODES = {"continue": "with the same basis", "extend": "growing its basis"}

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


def show_generations(
    family: str, generations: Sequence[GenerationSummary], latest: int | None
) -> None:
    """Print a table of generations, one line each."""
    if not generations:
        click.echo(f"no generation of {family} is published yet")
        return
    columns = ("", "verdict", "started from", "train", "test", "energy RMSE", "force RMSE")
    rows = [
        (
            generation_name(g.generation) + (" *" if g.generation == latest else ""),
            gate_word(g.headline),
            generation_name(g.parent.generation) if g.parent else "nothing",
            str(g.dataset.train),
            str(g.dataset.test),
            significant(g.headline.test.rmse_energy_mev_per_atom),
            significant(g.headline.test.rmse_force_mev_per_angstrom),
            _change(g.headline.change),
        )
        for g in generations
    ]
    numeric = (False, False, False, True, True, True, True, False)
    print_table((*columns, "change of both"), rows, numeric)
    click.echo(
        "RMSE on each generation's own test set: energy in meV/atom, force in meV/Å per\n"
        "component. Change: since the generation that was in use before, both measured\n"
        "on the structures that are test for both. * is the latest. show has more"
    )
    for g in generations:
        for failed in g.headline.failed_checks:
            click.echo(f"{generation_name(g.generation)} failed a physics check: {failed}")
        for reason in g.headline.unchecked:
            click.echo(f"{generation_name(g.generation)} is not fully checked: {reason}")


def _change(change: PredecessorChange | None) -> str:
    if change is None:
        return fixed(None)
    return f"{describe_change(change.energy)}, {describe_change(change.force)}"


@click.command("show")
@generation_option("latest")
@common_options
@click.pass_obj
def show_command(settings: Settings, generation: int | str) -> None:
    """Show one published generation."""
    registry = settings.registry()
    manifest = registry.get(resolve_generation(generation, registry))
    pointer = registry.pointer()
    latest = pointer if pointer and pointer.generation == manifest.generation else None
    document = {
        **manifest.model_dump(mode="json"),
        "latest": latest.model_dump(mode="json") if latest else None,
    }
    emit(settings, document, lambda: show_manifest(manifest, latest))


def show_manifest(manifest: Manifest, latest: LatestPointer | None = None) -> None:
    """Print the record of one generation; `latest` is the pointer, if it names this one."""
    from mlip_job.report.texts import fit_settings

    print_lines(_header(manifest, latest), _LABEL_WIDTH)
    print_lines(_errors(manifest), _LABEL_WIDTH)
    print_lines(fit_settings(manifest).items(), _LABEL_WIDTH)
    print_lines(_fit(manifest), _LABEL_WIDTH)
    print_lines(_times(manifest), _LABEL_WIDTH)
    print_lines(_committee(manifest), _LABEL_WIDTH)
    headline = manifest.headline
    print_lines([("artefacts", ", ".join(sorted(manifest.artefacts)))], _LABEL_WIDTH)
    print_lines((("failed check", failed) for failed in headline.failed_checks), _LABEL_WIDTH)
    print_lines((("not checked", reason) for reason in headline.unchecked), _LABEL_WIDTH)
    print_lines((("warning", warning) for warning in headline.warnings), _LABEL_WIDTH)


def _header(manifest: Manifest, latest: LatestPointer | None) -> Iterator[tuple[str, str]]:
    headline, dataset, parent = manifest.headline, manifest.dataset, manifest.parent
    reasons = "; ".join(headline.rejected_because)
    yield "generation", f"{generation_name(manifest.generation)} of {manifest.family}"
    yield "verdict", f"{headline.verdict}: {reasons}" if reasons else headline.verdict
    if latest is not None:
        forced = ", forced" if latest.forced else ""
        yield "latest", f"since {latest.moved:%Y-%m-%d %H:%M} UTC{forced}: {latest.reason}"
    yield "elements", ", ".join(manifest.elements)
    if parent is not None:
        yield "started from", f"{generation_name(parent.generation)}, {_MODES[parent.mode]}"
    else:
        yield "started from", "a linear fit" if manifest.linear_start else "nothing"
    yield "dataset", f"{dataset.id}: {dataset.train} train, {dataset.test} test"
    yield "database", dataset.database
    yield "selection", dataset.selection or "all rows"


def _errors(manifest: Manifest) -> Iterator[tuple[str, str]]:
    train, test = manifest.headline.train, manifest.headline.test
    energies = (test.rmse_energy_mev_per_atom, train.rmse_energy_mev_per_atom)
    forces = (test.rmse_force_mev_per_angstrom, train.rmse_force_mev_per_angstrom)
    stresses = (test.rmse_stress_gpa, train.rmse_stress_gpa)
    measured = [
        ("energy RMSE", energies, "meV/atom"),
        ("force RMSE", forces, "meV/Å per component"),
    ]
    if any(stress is not None for stress in stresses):
        measured.append(("stress RMSE", stresses, "GPa per component"))
    for name, (of_test, of_train), unit in measured:
        yield name, f"{significant(of_test)} test, {significant(of_train)} train  {unit}"
    if (change := manifest.headline.change) is not None:
        since = generation_name(change.generation)
        where = f"on {count(change.structures, 'common test structure')}"
        stress = "" if change.stress is None else f", {describe_change(change.stress)}"
        name = "change of all" if stress else "change of both"
        yield name, f"{_change(change)}{stress} since {since}, {where}"


def _fit(manifest: Manifest) -> Iterator[tuple[str, str]]:
    from mlip_job.training.summary import describe_shares

    headline = manifest.headline
    best = headline.best_iteration
    chosen = "" if best is None else f", best at {best} on the validation part"
    yield "basis", f"{fixed(headline.functions, 0)} functions"
    yield "iterations", f"{headline.iterations}{chosen}; seed {manifest.fit_seed}"
    if headline.loss_shares is not None:
        yield "final loss", describe_shares(headline.loss_shares)
    if (speed := headline.evaluator_us_per_atom) is not None:
        cpu = manifest.environment.host.cpu
        yield "evaluator", f"{significant(speed)} µs per atom on one core ({cpu})"
    references = (f"n({e})·{manifest.reference_energies[e]:.6f} eV" for e in manifest.elements)
    yield "E_DFT - E_pot", " + ".join(references)


def _times(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the attempts, and where their time went."""
    started = f"started {manifest.started:%Y-%m-%d %H:%M} UTC"
    parts = ", ".join(f"{part.attempt} ({part.iterations})" for part in manifest.attempts)
    several = len(manifest.attempts) > 1
    yield (
        "attempts",
        f"{parts} iterations, {started}" if several else (f"{manifest.attempt}, {started}"),
    )
    timings = [part.timings for part in manifest.attempts]
    total = sum(sum(t.stages_s.values()) for t in timings)
    if not total:
        return  # published by a version that took no times
    fit = sum(t.stages_s.get("fit", 0.0) for t in timings)
    phases = ("building_graph", "building_test_graph")
    graphs = sum(t.phases_s.get(name, 0.0) for t in timings for name in phases)
    parts = f"{duration(fit)} to fit, {duration(graphs)} of it to build graphs"
    yield "wall time", f"{duration(total)}: {parts}"
    starts = [f"{t.to_trainer_s:.1f} s" for t in timings if t.to_trainer_s is not None]
    if starts:
        yield "trainer", f"started {', '.join(starts)} after the start of the job"


def _committee(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the members of an ensemble and their spread."""
    if manifest.ensemble is None:
        return
    training = manifest.config.get("training", {})
    # Losses of curves have the weights 1-κ and κ, those of members a and b.
    scale = sum(float(training.get(f"{name}_weight", 0)) for name in ("energy", "force")) or 1.0
    for member in manifest.ensemble.members:
        best = " (the best)" if member.number == manifest.ensemble.best else ""
        loss = f"test loss {member.test_loss / scale:.4g}"
        rmse = format_rmse(member.headline.test)
        yield f"member {member.number}", f"seed {member.seed}, {loss}, RMSE {rmse}{best}"
    if (spread := manifest.ensemble.spread) is not None:
        yield (
            "spread",
            f"{significant(spread.mean_energy_mev_per_atom)} meV/atom, "
            f"{significant(spread.mean_force_mev_per_angstrom)} meV/Å: mean standard deviation of "
            "the members' predictions on the test set",
        )


def format_rmse(errors: Errors) -> str:
    """Return the RMSEs with their units; that of stresses if it is known."""
    energy = significant(errors.rmse_energy_mev_per_atom)
    stress = errors.rmse_stress_gpa
    return f"{energy} meV/atom, {significant(errors.rmse_force_mev_per_angstrom)} meV/Å" + (
        "" if stress is None else f", {significant(stress)} GPa"
    )


@click.command("report")
@generation_option("latest")
@output_option("Where to write it. [default: FAMILY-gen_NN.html]")
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
    path = output or Path(f"{registry.family}-{generation_name(manifest.generation)}.html")
    _write_page(path, _page(registry, manifest))
    document = {"generation": manifest.generation, "file": str(path)}
    emit(settings, document, lambda: click.echo(path))
    if open_it:
        _open_page(path)


def _page(registry: Registry, manifest: Manifest) -> bytes:
    """Return the page as it was published, or make it."""
    from mlip_job.report.model import read_facts, read_predecessor
    from mlip_job.report.page import render_report

    if _PAGE in manifest.artefacts:
        return registry.read(manifest, _PAGE)
    facts = read_facts(registry, manifest.generation)
    return render_report(facts, read_predecessor(registry, facts.report)).encode()


def _write_page(path: Path, page: bytes) -> None:
    """Write a page; one of that name is replaced."""
    try:
        path.write_bytes(page)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror or error}", hint="choose another -o FILE"
        ) from None


def _open_page(path: Path) -> None:
    """Open a page in the user's browser, where there is one."""
    if click.launch(str(path.resolve())) != 0:
        click.echo(f"no browser could be started; open {path} in one", err=True)


@click.command("compare")
@click.argument(
    "generations", metavar="A B [C…]", nargs=-1, required=True, type=GenerationType(("latest",))
)
@output_option("Where to write the page. [default: FAMILY-gen_A-gen_B.html; none with --json]")
@open_option
@common_options
@click.pass_obj
def compare_command(
    settings: Settings, generations: tuple[int | str, ...], output: Path | None, *, open_it: bool
) -> None:
    """Compare generations: a table here, and one HTML file."""
    from mlip_job.registry.objects import at_once
    from mlip_job.report.model import read_report
    from mlip_job.report.page import comparison_document, render_comparison
    from mlip_job.report.texts import settings_table

    registry = settings.registry()
    numbers = [resolve_generation(generation, registry) for generation in generations]
    _check(numbers)
    manifests = at_once(registry.get, numbers)
    reports = at_once(lambda manifest: read_report(registry, manifest), manifests)
    differing = settings_table(manifests)
    path = output
    if path is None and (open_it or not settings.as_json):
        path = Path(f"{registry.family}-{'-'.join(map(generation_name, numbers))}.html")
    if path is not None:
        _write_page(path, render_comparison(reports, manifests).encode())
    document = comparison_document(reports) | {
        "settings_that_differ": _by_key(differing, numbers),
        "file": str(path) if path else None,
    }
    emit(settings, document, lambda: show_comparison(reports, differing, path))
    if path is not None and open_it:
        _open_page(path)


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
    reports: Sequence[TrainingReport], differing: Table | None, path: Path | None
) -> None:
    """Print the tables of several generations, and where the page is."""
    from mlip_job.report.page import figures_table, steps_table

    for table in (steps_table(reports), figures_table(reports), differing):
        if table is not None:
            click.echo(table.title)
            rows = [[str(cell) for cell in row] for row in table.rows]
            print_table(
                [column.heading for column in table.columns],
                rows,
                [column.numeric for column in table.columns],
            )
            click.echo(f"{table.note}\n")
    if differing is None:
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

    An older one too: this rolls back to it, until another generation is published and accepted. A
    generation that its gate rejected needs --force.
    """
    registry = settings.registry()
    registry.promote(generation, reason, force=force)
    name = generation_name(generation)
    emit(
        settings,
        {"latest": generation, "name": name, "reason": reason},
        lambda: click.echo(f"{name} is the latest of {registry.family}"),
    )
