"""``mlip-job select``: candidates for the next generation."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import (
    common_options,
    generation_option,
    output_option,
    resolve_generation,
)
from mlip_job.cli.output import Reporter, emit, print_table
from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name
from mlip_job.report.texts import fixed

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig
    from mlip_job.selection import By, CandidateSource, Selection

_DEFAULT_SELECT = "status=candidate"
_SHOWN_OTHERS = 5
_MIN_GRADE, _BROKEN = 1.0, 25.0
"""Above 25 a structure is rarely one that a simulation should have reached; runs of LAMMPS with
``pair_style pace/extrapolation`` are usually stopped there."""
_MIN_SPREAD, _BROKEN_SPREAD = 50.0, 1000.0
"""meV/Å; the lower one is DP-GEN's usual ``model_devi_f_trust_lo`` (Y. Zhang et al., Comput. Phys.
Commun. 253, 107206 (2020))."""


@click.command("select")
@click.argument(
    "candidates", required=False, type=click.Path(dir_okay=False, path_type=Path), metavar="[FILE]"
)
@generation_option("latest")
@click.option(
    "--select",
    "expression",
    metavar="EXPR",
    help="Candidates are these rows of the configured database, where no FILE is given. "
    f"[default: {_DEFAULT_SELECT}]",
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="Choose at most so many.")
@click.option(
    "--by",
    type=click.Choice(("grade", "committee")),
    default="grade",
    show_default=True,
    help="Rank by extrapolation grade, or by how far the members of an ensemble differ.",
)
@click.option(
    "--min-grade",
    type=float,
    show_default=f"{_MIN_GRADE:g}",
    help="Only candidates with a higher extrapolation grade.",
)
@click.option(
    "--max-grade",
    type=float,
    show_default=f"{_BROKEN:g}, if --min-grade is lower",
    help="Leave out candidates with a higher grade, most of which are broken structures; inf "
    "takes all.",
)
@click.option(
    "--min-spread",
    type=click.FloatRange(min=0),
    show_default=f"{_MIN_SPREAD:g}",
    help="By committee: only candidates with a larger spread of the forces, meV/Å.",
)
@click.option(
    "--max-spread",
    type=click.FloatRange(min=0),
    show_default=f"{_BROKEN_SPREAD:g}, if --min-spread is lower",
    help="By committee: leave out candidates with a larger spread, meV/Å; inf takes all.",
)
@output_option("Extended XYZ of the chosen ones. [default: selected_gen_NN.xyz]")
@click.option(
    "--mark",
    "marks",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set this key of the chosen rows in the database. Repeatable.",
)
@common_options
@click.pass_obj
def select_command(
    settings: Settings,
    candidates: Path | None,
    generation: int | str,
    expression: str | None,
    count: int | None,
    by: By,
    min_grade: float | None,
    max_grade: float | None,
    min_spread: float | None,
    max_spread: float | None,
    output: Path | None,
    marks: tuple[str, ...],
) -> None:
    """Choose candidates for the next generation.

    Ranks the structures of FILE (anything that ASE reads), or rows of the database. By grade: how
    far the generation's potential has to extrapolate for them; those that add most to its active
    set are chosen. By committee: how far the forces of an ensemble's members differ; the largest
    are chosen. They need no labels.
    """
    from mlip_job.dataset.database import mark_rows, parse_marks
    from mlip_job.potentials import cache_directory, require_pyace

    require_pyace()
    from mlip_job.selection import (
        Criteria,
        DatabaseCandidates,
        open_selector,
        require_free,
        writing,
    )

    if by == "committee":
        _require_unset(by, min_grade=min_grade, max_grade=max_grade)
        low, high = _limits("spread", min_spread, max_spread, _MIN_SPREAD, _BROKEN_SPREAD)
        limits = {"min_spread_mev_per_angstrom": low, "max_spread_mev_per_angstrom": high}
        criteria = Criteria(by=by, count=count, min_grade=None, **limits)
    else:
        _require_unset(by, min_spread=min_spread, max_spread=max_spread)
        low, high = _limits("grade", min_grade, max_grade, _MIN_GRADE, _BROKEN)
        criteria = Criteria(count=count, min_grade=low, max_grade=high)
    pairs = parse_marks(marks)
    config = settings.config()
    registry = settings.registry(config)
    manifest = registry.get(resolve_generation(generation, registry))
    source = _source(config, manifest.generation, candidates, expression)
    if pairs and not isinstance(source, DatabaseCandidates):
        raise ConfigError("--mark is for rows of the database, not for a FILE")
    path = output or Path(f"selected_{generation_name(manifest.generation)}.xyz")
    require_free(path)
    report = Reporter(settings).message
    selector = open_selector(registry, manifest, cache_directory(), criteria, report)
    selection, rows = selector.run(source, registry.family, manifest.generation)
    with ExitStack() as finished:
        if rows:
            finished.enter_context(writing(path, selection, rows, source.id_name))
            if pairs and isinstance(source, DatabaseCandidates):
                mark_rows(source.config, [row.id for row in rows], pairs)
    document = selection.model_dump(mode="json") | {
        "file": str(path) if rows else None,
        "marked": pairs if rows else {},
    }
    emit(settings, document, lambda: _show(selection, source.id_name))
    report(_outcome(selection, path, marks))


def _limits(
    name: str, low: float | None, high: float | None, lowest: float, highest: float
) -> tuple[float, float | None]:
    """Return the limits with their defaults; the upper one is None if there is none."""
    low = lowest if low is None else low
    if high is None:
        high = highest if low < highest else math.inf
    if high <= low:
        raise ConfigError(f"--max-{name} {high:g} is not above --min-{name} {low:g}")
    return low, high if math.isfinite(high) else None


def _require_unset(by: By, **limits: float | None) -> None:
    for name, value in limits.items():
        if value is not None:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} has no effect with --by {by}: remove it")


def _source(
    config: JobConfig, generation: int, file: Path | None, expression: str | None
) -> CandidateSource:
    from mlip_job.selection import DatabaseCandidates, FileCandidates

    if file is not None:
        if expression is not None:
            raise ConfigError("give a FILE or --select, not both")
        return FileCandidates(file)
    select = _DEFAULT_SELECT if expression is None else expression
    database = config.database.model_copy(update={"select": select})
    return DatabaseCandidates(database.for_generation(generation))


def _show(selection: Selection, id_name: str) -> None:
    """Show the chosen ones and the first few of the others."""
    by_grade = selection.criteria.by == "grade"
    headings = ("grade", "new environments") if by_grade else ("F spread", "E spread")
    others = [c for c in selection.candidates if not c.chosen]
    shown = {c.id for c in (*selection.chosen, *others[:_SHOWN_OTHERS])}
    rows = [
        [
            str(rank),
            str(c.id),
            c.formula,
            str(c.atoms),
            *(
                (fixed(c.extrapolation_grade, 2), str(c.new_environments))
                if by_grade
                else (
                    fixed(c.force_spread_mev_per_angstrom, 1),
                    fixed(c.energy_spread_mev_per_atom, 2),
                )
            ),
            "*" if c.chosen else "",
        ]
        for rank, c in enumerate(selection.candidates, start=1)
        if c.id in shown
    ]
    print_table(("rank", id_name, "formula", "atoms", *headings, "chosen"), rows)
    if not by_grade:
        click.echo("F spread in meV/Å, the largest of the atoms; E spread in meV/atom")
    if hidden := len(selection.candidates) - len(rows):
        click.echo(f"and {hidden} more; --json has them all")


def _outcome(selection: Selection, path: Path, marks: tuple[str, ...]) -> str:
    lines = [f"skipped {len(ids)}: {reason}" for reason, ids in selection.skipped.items()]
    by_grade = selection.criteria.by == "grade"
    (low, high), name = selection.criteria.limits, "grade" if by_grade else "spread"
    unit = "" if by_grade else " meV/Å"
    if above := selection.above:
        lines.append(
            f"left out {above} with a {name} above {high:g}{unit}: look at some of them, most are "
            f"broken structures; --max-{name} inf takes all"
        )
    ranked, chosen = len(selection.candidates), len(selection.chosen)
    admitted = f"{selection.admitted} of {ranked} candidates have a {name} above {low:g}"
    if math.isfinite(high):
        admitted += f" and up to {high:g}"
    admitted += unit
    if not chosen:
        why = "none adds to the active set, " if by_grade else ""
        return "\n".join([*lines, f"{admitted}; {why}nothing is written"])
    marked = f", marked {', '.join(marks)}" if marks else ""
    return "\n".join([*lines, f"{admitted}; {chosen} chosen: {path}{marked}"])
