"""Pages about generations, self-contained HTML files, and what compares generations.

A comparison has their figures, settings, and errors on the same structures.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlip_job import __version__
from mlip_job.config.job import verdict_word
from mlip_job.paths import generation_name
from mlip_job.report import figures, tables, texts
from mlip_job.report.tables import QUANTITIES, count_verdicts
from mlip_job.report.texts import (
    Cell,
    Column,
    Table,
    count,
    fit_settings,
    fixed,
    percent,
    settings_table,
)
from mlip_job.training.summary import describe_shares

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.evaluation.results import Evaluation, ParentComparison
    from mlip_job.registry import Manifest
    from mlip_job.report.model import Facts, TrainingReport


def render_report(facts: Facts, parent: TrainingReport | None) -> str:
    """Return the page about one generation; `parent` is the report of its predecessor, if known."""
    report, evaluation = facts.report, facts.report.evaluation
    name = generation_name(report.generation)
    measured: tuple[object, ...] = ()
    if evaluation is not None:
        statistics = tables.error_statistics(evaluation)
        drawn = figures.error_figures(evaluation)
        measured = tuple(found for found in zip(drawn, statistics, strict=True) if any(found))
    checks = evaluation.physics if evaluation is not None else ()
    return _render(
        "report.html.j2",
        facts=facts,
        name=name,
        title=f"{report.family} {name}",
        verdict=verdict(evaluation),
        summary=summary(report),
        parent=parent,
        verdicts=tables.count_verdicts(checks),
        checks=checks,
        learning=figures.learning_figures(report),
        learning_caption=learning_caption(report),
        attempts=tables.attempts_table(report),
        measured=measured,
        error_tables=tables.error_tables(evaluation, name) if evaluation else (),
        physics_table=tables.physics_table(checks) if checks else None,
        physics_figures=figures.physics_figures(checks),
        worst=tuple(tables.worst_tables(evaluation)),
        dataset_tables=tables.dataset_tables(facts.dataset, report),
        settings=fit_settings(facts.manifest),
        times=tables.time_table(report),
    )


def render_comparison(reports: Sequence[TrainingReport], manifests: Sequence[Manifest] = ()) -> str:
    """Return the page that compares generations, in the order given."""
    names = [generation_name(report.generation) for report in reports]
    found = (steps_table(reports), figures_table(reports), settings_table(manifests))
    return _render(
        "comparison.html.j2",
        title=f"{reports[0].family} {', '.join(names)}",
        family=reports[0].family,
        names=names,
        verdicts=[verdict(report.evaluation) for report in reports],
        summaries=[summary(report) for report in reports],
        tables=[table for table in found if table is not None],
        learning=figures.learning_overlays(reports),
        errors=figures.error_overlays(reports),
        physics=figures.physics_overlays(reports),
    )


def _render(template: str, **content: object) -> str:
    return _environment().get_template(template).render(version=__version__, **content)


@cache
def _environment() -> Environment:
    loader = PackageLoader("mlip_job.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, _, _ = loader.get_source(environment, "style.css")
    environment.globals["style"] = Markup(style)  # noqa: S704 - our own file
    environment.filters |= {
        "counted": texts.count,
        "percent": texts.percent,
        "subject": tables.subject,
        "fixed": texts.fixed,
        "generation": generation_name,
        "row_ids": texts.row_ids,
        "shares": describe_shares,
        "significant": texts.significant,
    }
    return environment


def summary(report: TrainingReport) -> str:
    """Summarise model and data of the fit in a sentence."""
    tested = "nothing was held out to test it."
    if report.dataset.test:
        tested = f"tested on {count(report.dataset.test, 'structure')} that the fit did not see."
    return (
        f"{count(report.fit.functions, 'basis function')} for {', '.join(report.elements)}, fitted "
        f"from {started_from(report)} to {count(report.dataset.train, 'structure')} in "
        f"{count(report.fit.iterations, 'iteration')}; {tested}"
    )


def learning_caption(report: TrainingReport) -> str:
    """Explain the marks in the learning curve; empty without marks."""
    parts = []
    if (steps := len(report.fit.cycles)) > 1:
        parts.append(f"{steps} ladder steps or cycles, started at the dotted lines")
        if steps <= figures.MAX_LABELLED_STEPS:
            parts[0] += ", with their numbers of functions above"
    if (attempts := len(report.attempts)) > 1:
        parts.append(f"{count(attempts, 'attempt')}, started at the dashed lines")
    return "; ".join(parts)


# -- comparison ----------------------------------------------------------------------------------

_SIDES = ("train", "test")
_KEYS = ("energy_mev_per_atom", "force_mev_per_angstrom", "stress_gpa")


class Verdict(NamedTuple):
    """The verdict of the gate as text, its reasons, and its CSS class."""

    css: str
    word: str
    reasons: tuple[str, ...]


def verdict(evaluation: Evaluation | None) -> Verdict:
    """Return the gate's verdict as text."""
    if evaluation is None:
        return Verdict("skipped", "Not evaluated", ("The published potential was not evaluated.",))
    gate = evaluation.gate
    word = verdict_word(
        accepted=gate.accepted, limits_set=gate.limits_set, unchecked=bool(gate.unchecked)
    ).capitalize()
    passed = "passed" if gate.limits_set and not gate.unchecked else "skipped"
    unchecked = (f"Physics check {reason}" for reason in gate.unchecked)
    return Verdict(passed if gate.accepted else "failed", word, (*gate.reasons, *unchecked))


class Figure(NamedTuple):
    """A number of a generation: its key in JSON, its heading in tables, and its decimals there."""

    key: str
    heading: str
    digits: int
    value: float | None


def numbers(report: TrainingReport) -> tuple[Figure, ...]:
    """Return the numbers to compare, in a fixed order for all reports."""
    found = report.evaluation
    grade = found.test.extrapolation_grade if found and found.test else None
    checks = count_verdicts(found.physics) if found and found.physics else None
    speed = found.speed.evaluator_us_per_atom if found and found.speed else None
    return (
        Figure("train_structures", "train (structures)", 0, report.dataset.train),
        Figure("test_structures", "test (structures)", 0, report.dataset.test),
        Figure("functions", "basis functions", 0, report.fit.functions),
        Figure("iterations", "iterations", 0, report.fit.iterations),
        *_errors(report),
        Figure("largest_test_grade", "largest grade, test", 2, grade.max if grade else None),
        Figure("checks_passed", "physics checks passed", 0, checks["passed"] if checks else None),
        Figure("checks_failed", "physics checks failed", 0, checks["failed"] if checks else None),
        Figure("evaluator_us_per_atom", "evaluator (µs/atom)", 1, speed),
        Figure("fit_seconds", "fit (s)", 0, report.timings_s.get("fit")),
    )


def _errors(report: TrainingReport) -> Iterator[Figure]:
    """Yield RMSE, MAE and largest error of energies, forces and stresses on both sides."""
    train, test = report.errors("train"), report.errors("test")
    kinds = (
        ("rmse", "RMSE", train.rmse, test.rmse),
        ("mae", "MAE", train.mae, test.mae),
        ("max", "largest", train.max, test.max),
    )
    for kind, heading, of_train, of_test in kinds:
        for key, quantity, *values in zip(_KEYS, QUANTITIES, of_train, of_test, strict=True):
            for side, value in zip(_SIDES, values, strict=True):
                name = f"{heading} {quantity.symbol} {side} ({quantity.unit})"
                yield Figure(f"{kind}_{side}_{key}", name, quantity.digits, value)


def comparison_document(reports: Sequence[TrainingReport]) -> dict[str, Any]:
    """Return the comparison as JSON."""
    return {
        "family": reports[0].family,
        "generations": [
            {
                "generation": report.generation,
                "started_from": report.parent.generation if report.parent is not None else None,
                "accepted": report.evaluation.gate.accepted if report.evaluation else None,
                "limits_set": report.evaluation.gate.limits_set if report.evaluation else None,
                **{figure.key: figure.value for figure in numbers(report)},
            }
            for report in reports
        ],
        "on_the_same_structures": [
            {
                "old": compared.generation,
                "new": report.generation,
                "structures": compared.structures,
                **{
                    key: rmse and {"old": rmse.old, "new": rmse.new, "change": rmse.relative}
                    for key, rmse in zip(_KEYS, compared.rmse, strict=True)
                },
            }
            for report, compared in _steps(reports)
        ],
    }


def figures_table(reports: Sequence[TrainingReport]) -> Table:
    """Return the figures, a column for each generation."""
    verdicts = [verdict(report.evaluation) for report in reports]
    rows: list[tuple[str | Cell, ...]] = [
        ("verdict", *(Cell(found.word.lower(), found.css) for found in verdicts)),
        ("started from", *(started_from(report) for report in reports)),
    ]
    for row in zip(*map(numbers, reports), strict=True):
        if any(figure.value is not None for figure in row):
            heading, digits = row[0].heading, row[0].digits
            rows.append((heading, *(fixed(figure.value, digits) for figure in row)))
    return Table(
        "Figures",
        (Column("", numeric=False), *(Column(generation_name(r.generation)) for r in reports)),
        tuple(rows),
        "Errors are each on the generation's own sets; those of forces are per component.",
    )


def started_from(report: TrainingReport) -> str:
    """Describe the start of a fit: a parent, a linear fit or scratch."""
    if report.parent is not None:
        return generation_name(report.parent.generation)
    return "a linear fit" if report.linear_start is not None else "nothing"


def _steps(
    reports: Sequence[TrainingReport],
) -> Iterator[tuple[TrainingReport, ParentComparison]]:
    """Yield the comparisons among these generations on the same structures."""
    numbers = {report.generation for report in reports}
    for report in reports:
        compared = report.evaluation.parent if report.evaluation is not None else None
        if compared is not None and compared.generation in numbers:
            yield report, compared


def steps_table(reports: Sequence[TrainingReport]) -> Table | None:
    """Return the comparisons on the same structures, or None without any."""
    steps = list(_steps(reports))
    if not steps:
        return None
    columns = [Column("generations", numeric=False), Column("structures")]
    rows: list[list[str | Cell]] = []
    for report, compared in steps:
        names = map(generation_name, (compared.generation, report.generation))
        rows.append([" → ".join(names), str(compared.structures)])
    by_quantity = zip(*(compared.rmse for _, compared in steps), strict=True)
    for quantity, pairs in zip(QUANTITIES, by_quantity, strict=True):
        if not any(pairs):
            continue
        columns.append(Column(f"RMSE {quantity.symbol} before", quantity.unit))
        columns += [Column("after", quantity.unit), Column("change")]
        for row, pair in zip(rows, pairs, strict=True):
            old, new, change = (*pair, pair.relative) if pair else (None, None, None)
            css = "" if not change else "worse" if change > 0 else "better"
            row += [fixed(found, quantity.digits) for found in (old, new)]
            row.append(Cell(percent(change), css))
    note = "Structures that are in neither training set."
    return Table("On the same structures", tuple(columns), tuple(map(tuple, rows)), note)
