"""The learning curve: losses and errors over all iterations of all ladder steps and attempts."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from mlip_job.report.chart import Axis, Chart
from mlip_job.report.figures import SIDES, Figure, LegendEntry
from mlip_job.report.numbers import count
from mlip_job.report.scales import linear_scale, log_scale

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlip_job.report.chart import Point
    from mlip_job.report.model import TrainingReport
    from mlip_job.training.summary import CurvePoint, FitCycle

QUANTITIES = (
    ("loss", "Loss", "loss"),
    ("rmse_energy_mev_per_atom", "Energy", "RMSE (meV/atom)"),
    ("rmse_force_mev_per_angstrom", "Forces", "RMSE per component (meV/Å)"),
)
_LABELLED_STEPS = 10

Curve = dict[str, list["Point"]]
Spans = dict[tuple[int, int], tuple[int, int]]
"""Of each cycle of each ladder step: how many iterations came before, and its own."""


def learning_figures(report: TrainingReport) -> tuple[Figure, ...]:
    """Return loss, energy RMSE and force RMSE over the iterations, on logarithmic scales."""
    return tuple(
        _figure(report, title, axis, found)
        for quantity, title, axis in QUANTITIES
        if (found := curves(report, quantity))["train"]
    )


def curves(report: TrainingReport, quantity: str) -> Curve:
    """Return a quantity over the iterations of the whole fit, for train and the second set."""
    spans = _spans(report.fit.cycles)
    sides = {"train": report.fit.train_curve, "test": report.fit.test_curve}
    return {side: list(_points(rows, quantity, spans)) for side, rows in sides.items()}


def _points(rows: Iterable[CurvePoint], quantity: str, spans: Spans) -> Iterable[Point]:
    for row in rows:
        value = getattr(row, quantity)
        if value is not None and value > 0:
            begin, length = spans.get((row.ladder_step, row.cycle), (0, row.iteration))
            # The last row of the test set counts one iteration more than there was.
            yield begin + min(row.iteration, length), value


def _spans(cycles: Sequence[FitCycle]) -> Spans:
    before = accumulate((cycle.iterations for cycle in cycles), initial=0)
    return {
        (cycle.ladder_step, cycle.cycle): (start, cycle.iterations)
        for cycle, start in zip(cycles, before, strict=False)
    }


def _figure(report: TrainingReport, title: str, axis: str, sides: Curve) -> Figure:
    points = [point for side in sides.values() for point in side]
    chart = Chart(
        f"{title} over the iterations of the fit, logarithmic",
        Axis("iteration", linear_scale([0.0, *(x for x, _ in points)])),
        Axis(axis, log_scale(y for _, y in points)),
    )
    _mark_steps(chart, report)
    for css, side in sides.items():
        chart.line(side, css) if len(side) > 1 else chart.dots(side, css)
    legend = (SIDES[0], LegendEntry("test", report.fit.second_set))
    return Figure(title, chart.svg(), legend=legend if sides["test"] else legend[:1])


def _mark_steps(chart: Chart, report: TrainingReport) -> None:
    """Mark where ladder steps, cycles and attempts begin."""
    cycles = report.fit.cycles
    for number, (cycle, (begin, length)) in enumerate(
        zip(cycles, _spans(cycles).values(), strict=True)
    ):
        if number:
            chart.mark(begin, "step")
        if 1 < len(cycles) <= _LABELLED_STEPS:
            chart.remark(begin + length / 2, str(cycle.functions or ""))
    done = accumulate(part.iterations for part in report.attempts[:-1])
    for number, place in enumerate(done, start=2):
        chart.mark(place, "attempt", f"attempt {number}", row=1 + number % 2)


def learning_caption(report: TrainingReport) -> str:
    """Return what the marks in the learning curve mean, empty where there are none."""
    parts = []
    if (steps := len(report.fit.cycles)) > 1:
        parts.append(
            f"{steps} ladder steps or cycles, begun at the dotted lines"
            + (", with so many functions as stands above" if steps <= _LABELLED_STEPS else "")
        )
    if (attempts := len(report.attempts)) > 1:
        parts.append(f"{count(attempts, 'attempt')}, begun at the dashed lines")
    return "; ".join(parts)
