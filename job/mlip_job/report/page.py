"""Pages about generations: self-contained HTML files."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlip_job import __version__
from mlip_job.paths import generation_name
from mlip_job.report import figures, tables, texts
from mlip_job.report.comparison import (
    figures_table,
    fit_settings,
    settings_table,
    started_from,
    steps_table,
    verdict,
)
from mlip_job.report.texts import count
from mlip_job.training.loss import describe_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

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
