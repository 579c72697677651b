"""Pages about generations: one HTML file each, with nothing that has to be loaded."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlip_job import __version__
from mlip_job.naming import generation_name
from mlip_job.report import error_tables, headline, physics, provenance
from mlip_job.report.comparison import figures_table, steps_table
from mlip_job.report.facts import predecessor
from mlip_job.report.figures import energy_figures, force_figures
from mlip_job.report.learning import learning_caption, learning_figures
from mlip_job.report.overlays import error_overlays, learning_overlays, physics_overlays
from mlip_job.report.settings import fit_settings, settings_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.evaluation.results import Evaluation
    from mlip_job.registry import Manifest
    from mlip_job.report.facts import Facts
    from mlip_job.report.model import TrainingReport
    from mlip_job.report.table import Table


def render_report(facts: Facts, parent: TrainingReport | None) -> str:
    """Return the page about one generation.

    Parameters
    ----------
    facts
        What is known of it.
    parent
        The report of the generation that it is held against, see `predecessor`.
    """
    report = facts.report
    return _render(
        "report.html.j2",
        facts=facts,
        name=generation_name(report.generation),
        title=f"{report.family} {generation_name(report.generation)}",
        verdict=headline.verdict(report.evaluation),
        summary=headline.summary(report),
        cards=headline.cards(report, parent),
        learning=learning_figures(report),
        learning_caption=learning_caption(report),
        attempts=provenance.attempts(report),
        accuracy=_accuracy(report),
        physics=_physics(report.evaluation),
        worst=_worst(report.evaluation),
        composition=_known(
            provenance.element_composition(facts.dataset, report),
            provenance.config_type_composition(facts.dataset),
            provenance.rejections(facts.dataset),
        ),
        dataset=tuple(provenance.dataset_entries(facts.dataset, facts.manifest)),
        notes=report.dataset.notes,
        lineage=tuple(provenance.lineage_entries(facts)),
        fit=(*provenance.fit_entries(report), *fit_settings(facts.manifest)),
        timings=provenance.timings(report),
        environment=tuple(provenance.environment_entries(facts.manifest)),
    )


def render_comparison(reports: Sequence[TrainingReport], manifests: Sequence[Manifest] = ()) -> str:
    """Return the page that holds generations against each other, in the order given."""
    family = reports[0].family
    names = [generation_name(report.generation) for report in reports]
    return _render(
        "comparison.html.j2",
        title=f"{family} {', '.join(names)}",
        family=family,
        names=names,
        verdicts=[headline.verdict(report.evaluation) for report in reports],
        summaries=[headline.summary(report) for report in reports],
        tables=_known(steps_table(reports), figures_table(reports), settings_table(manifests)),
        learning=tuple(learning_overlays(reports)),
        errors=tuple(error_overlays(reports)),
        physics=tuple(physics_overlays(reports)),
    )


def _accuracy(report: TrainingReport) -> Mapping[str, Sequence[object]]:
    """Return the rows of figures, each with its statistics, and the tables below them."""
    evaluation = report.evaluation
    if evaluation is None:
        return {"rows": (), "tables": (error_tables.pacemaker_table(report.fit),)}
    train, test = evaluation.train, evaluation.test
    statistics = error_tables.statistics_table
    energy = (train.energy_mev_per_atom, test.energy_mev_per_atom if test else None)
    force = (train.force_mev_per_angstrom, test.force_mev_per_angstrom if test else None)
    before = predecessor(report)
    return {
        "rows": (
            (
                energy_figures(train, test),
                statistics("Energy errors in numbers", error_tables.ENERGY, 2, *energy),
            ),
            (
                force_figures(train, test),
                statistics("Force errors per component", error_tables.FORCE, 1, *force),
            ),
        ),
        "tables": _known(
            error_tables.parent_table(
                evaluation,
                generation_name(report.generation),
                generation_name(before) if before is not None else "",
            ),
            statistics(
                "Stress errors per component",
                error_tables.STRESS,
                3,
                train.stress_gpa,
                test.stress_gpa if test else None,
            ),
            error_tables.config_type_table(evaluation),
            error_tables.element_table(evaluation),
            error_tables.grade_table(evaluation),
            error_tables.agreement_table(evaluation),
        ),
    }


def _physics(evaluation: Evaluation | None) -> Mapping[str, object] | None:
    if evaluation is None or not evaluation.physics:
        return None
    return {
        "table": physics.physics_table(evaluation.physics),
        "figures": physics.physics_figures(evaluation.physics),
    }


def _worst(evaluation: Evaluation | None) -> Sequence[Table]:
    if evaluation is None:
        return ()
    sides = {"test": evaluation.test, "train": evaluation.train}
    return tuple(
        error_tables.worst_table(name, side)
        for name, side in sides.items()
        if side is not None and side.worst
    )


def _known(*tables: Table | None) -> Sequence[Table]:
    return tuple(table for table in tables if table is not None)


def _render(template: str, **content: object) -> str:
    environment = _environment()
    return environment.get_template(template).render(version=__version__, **content)


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
    return environment
