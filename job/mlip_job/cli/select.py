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
    from mlip_job.selection import CandidateSource, Selection

_DEFAULT_SELECT = "status=candidate"
_SHOWN_OTHERS = 5
_BROKEN = 25.0
"""Grade above which a structure is rarely one that a simulation should have reached; runs of LAMMPS
with ``pair_style pace/extrapolation`` are usually stopped there."""


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
    "--min-grade",
    type=float,
    default=1.0,
    show_default=True,
    help="Only candidates with a higher extrapolation grade.",
)
@click.option(
    "--max-grade",
    type=float,
    show_default=f"{_BROKEN:g}, if --min-grade is lower",
    help="Leave out candidates with a higher grade, most of which are broken structures; inf "
    "takes all.",
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
    min_grade: float,
    max_grade: float | None,
    output: Path | None,
    marks: tuple[str, ...],
) -> None:
    """Choose candidates for the next generation.

    Grades the structures of FILE (anything that ASE reads), or rows of the database, by how far
    the generation's potential has to extrapolate for them, and chooses those that add most to its
    active set. They need no labels.
    """
    from mlip_job.dataset.database import mark_rows, parse_marks
    from mlip_job.potentials import cache_directory, require_pyace

    require_pyace()
    from mlip_job.selection import (
        CandidateSelector,
        Criteria,
        DatabaseCandidates,
        open_grader,
        require_free,
        writing,
    )

    if max_grade is None:
        max_grade = _BROKEN if min_grade < _BROKEN else math.inf
    if max_grade <= min_grade:
        raise ConfigError(f"--max-grade {max_grade:g} is not above --min-grade {min_grade:g}")
    pairs = parse_marks(marks)
    config = settings.config()
    registry = settings.registry(config)
    manifest = registry.get(resolve_generation(generation, registry))
    source = _source(config, manifest.generation, candidates, expression)
    if pairs and not isinstance(source, DatabaseCandidates):
        raise ConfigError("--mark is for rows of the database, not for a FILE")
    path = output or Path(f"selected_{generation_name(manifest.generation)}.xyz")
    require_free(path)
    selector = CandidateSelector(
        open_grader(registry, manifest, cache_directory()),
        Criteria(
            count=count,
            min_grade=min_grade,
            max_grade=max_grade if math.isfinite(max_grade) else None,
        ),
        Reporter(settings).message,
    )
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
    Reporter(settings).message(_outcome(selection, path, marks))


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
    others = [c for c in selection.candidates if not c.chosen]
    shown = {c.id for c in (*selection.chosen, *others[:_SHOWN_OTHERS])}
    rows = [
        [
            str(rank),
            str(c.id),
            c.formula,
            str(c.atoms),
            fixed(c.extrapolation_grade, 2),
            str(c.new_environments),
            "*" if c.chosen else "",
        ]
        for rank, c in enumerate(selection.candidates, start=1)
        if c.id in shown
    ]
    columns = ("rank", id_name, "formula", "atoms", "grade", "new environments", "chosen")
    print_table(columns, rows)
    if hidden := len(selection.candidates) - len(rows):
        click.echo(f"and {hidden} more; --json has them all")


def _outcome(selection: Selection, path: Path, marks: tuple[str, ...]) -> str:
    lines = [f"skipped {len(ids)}: {reason}" for reason, ids in selection.skipped.items()]
    if above := selection.above:
        lines.append(
            f"left out {above} with a grade above {selection.criteria.max_grade:g}: look at some "
            "of them, most are broken structures; --max-grade inf takes all"
        )
    graded, chosen = len(selection.candidates), len(selection.chosen)
    admitted = f"{selection.admitted} of {graded} candidates have a grade above "
    admitted += f"{selection.criteria.min_grade:g}"
    if selection.criteria.max_grade is not None:
        admitted += f" and up to {selection.criteria.max_grade:g}"
    if not chosen:
        return "\n".join([*lines, f"{admitted}; none adds to the active set, nothing is written"])
    marked = f", marked {', '.join(marks)}" if marks else ""
    return "\n".join([*lines, f"{admitted}; {chosen} chosen: {path}{marked}"])
