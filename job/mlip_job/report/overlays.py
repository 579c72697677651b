"""Curves of several generations over each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mlip_job.evaluation.results import DimerCheck, EnergyVolumeCheck
from mlip_job.naming import generation_name
from mlip_job.report.chart import Axis, Chart
from mlip_job.report.error_tables import ENERGY, FORCE
from mlip_job.report.figures import (
    Figure,
    LegendEntry,
    dimer_chart,
    energy_volume_chart,
    has_curve,
    histogram,
)
from mlip_job.report.learning import QUANTITIES, curves
from mlip_job.report.scales import linear_scale, log_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlip_job.evaluation.results import PhysicsCheck, SetEvaluation
    from mlip_job.report.model import TrainingReport

C = TypeVar("C", DimerCheck, EnergyVolumeCheck)

MOST_GENERATIONS = 6
"""So many colours can be told apart."""

_HISTOGRAMS = (
    (
        "Energy errors on the test set",
        ENERGY,
        "energy_error_histogram_mev_per_atom",
    ),
    (
        "Force errors on the test set",
        FORCE,
        "force_error_histogram_mev_per_angstrom",
    ),
)


def learning_overlays(reports: Sequence[TrainingReport]) -> Iterator[Figure]:
    """Return the learning curves of the second set, or of the training set where one lacks it."""
    second = " or ".join(sorted({report.fit.second_set for report in reports}))
    for key, title, label in QUANTITIES[1:]:
        found = {css: curves(report, key) for css, report in _series(reports).items()}
        side = "test" if all(curve["test"] for curve in found.values()) else "train"
        lines = {css: curve[side] for css, curve in found.items() if curve[side]}
        points = [point for line in lines.values() for point in line]
        if not points:
            continue
        of_set = f"{title}, {second if side == 'test' else side} set"
        chart = Chart(
            f"{of_set}, over the iterations of the fit, logarithmic",
            Axis("iteration", linear_scale([0.0, *(x for x, _ in points)])),
            Axis(label, log_scale(y for _, y in points)),
        )
        for css, line in lines.items():
            chart.line(line, css)
        yield Figure(of_set, chart.svg(), legend=_legend(reports))


def error_overlays(reports: Sequence[TrainingReport]) -> Iterator[Figure]:
    """Return the error histograms of the test sets."""
    for title, unit, key in _HISTOGRAMS:
        found = {css: getattr(test, key) for css, test in _test_sets(reports).items()}
        if found:
            yield histogram(title, "predicted − reference", unit, found, _legend(reports, found))


def physics_overlays(reports: Sequence[TrainingReport]) -> Iterator[Figure]:
    """Return the curves of every pair and every element that is in any of the reports."""
    checks = {
        css: report.evaluation.physics
        for css, report in _series(reports).items()
        if report.evaluation is not None
    }
    for pair, dimers in _by_subject(checks, DimerCheck, lambda c: "–".join(c.elements)).items():
        svg = dimer_chart(pair, dimers).svg()
        yield Figure(f"Dimer {pair}", svg, legend=_legend(reports, dimers))
    for element, volumes in _by_subject(checks, EnergyVolumeCheck, lambda c: c.element).items():
        svg = energy_volume_chart(element, volumes).svg()
        yield Figure(f"Energy over volume, {element}", svg, legend=_legend(reports, volumes))


def _series(reports: Sequence[TrainingReport]) -> dict[str, TrainingReport]:
    return {f"series-{number}": report for number, report in enumerate(reports)}


def _test_sets(reports: Sequence[TrainingReport]) -> dict[str, SetEvaluation]:
    return {
        css: report.evaluation.test
        for css, report in _series(reports).items()
        if report.evaluation is not None and report.evaluation.test is not None
    }


def _legend(
    reports: Sequence[TrainingReport], shown: Iterable[str] | None = None
) -> tuple[LegendEntry, ...]:
    series = _series(reports)
    return tuple(
        LegendEntry(css, generation_name(series[css].generation))
        for css in (series if shown is None else shown)
    )


def _by_subject(
    checks: Mapping[str, Sequence[PhysicsCheck]], kind: type[C], name: Callable[[C], str]
) -> dict[str, dict[str, C]]:
    found: dict[str, dict[str, C]] = {}
    for css, group in checks.items():
        for check in group:
            if isinstance(check, kind) and has_curve(check):
                found.setdefault(name(check), {})[css] = check
    return found
