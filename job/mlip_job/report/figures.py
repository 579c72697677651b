"""The figures of a page: charts with their captions and legends."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mlip_job.report.chart import Axis, Chart
from mlip_job.report.error_tables import ENERGY, FORCE
from mlip_job.report.numbers import count, fixed, significant
from mlip_job.report.scales import linear_scale, signed_log_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from mlip_job.evaluation.results import (
        DimerCheck,
        EnergyVolumeCheck,
        Histogram,
        Parity,
        PhysicsCheck,
        SetEvaluation,
    )
    from mlip_job.report.chart import Point

_SQUARE = 340
_DIMER_LINEAR_WITHIN_EV = 0.3


@dataclass(frozen=True)
class LegendEntry:
    """What is drawn in one colour."""

    css: str
    label: str


@dataclass(frozen=True)
class Figure:
    """A chart and what is said about it.

    Attributes
    ----------
    title
        What is shown.
    svg
        The chart.
    caption
        What can be read from it.
    legend
        What is drawn how; empty where there is but one thing.
    verdict
        ``passed``, ``failed`` or ``skipped``, where the figure belongs to a check.
    """

    title: str
    svg: Markup
    caption: str = ""
    legend: tuple[LegendEntry, ...] = ()
    verdict: str | None = None


SIDES = (LegendEntry("train", "train"), LegendEntry("test", "test"))


def energy_figures(train: SetEvaluation, test: SetEvaluation | None) -> tuple[Figure, ...]:
    """Return parity plot and error histogram of the energies."""
    sides = _sides(train, test)
    return (
        _parity(
            "Energy, predicted against reference",
            ("reference energy (eV/atom)", "predicted energy (eV/atom)"),
            {side: found.energy_parity_ev_per_atom for side, found in sides.items()},
            "structure",
        ),
        histogram(
            "Energy errors",
            "predicted − reference",
            ENERGY,
            {side: found.energy_error_histogram_mev_per_atom for side, found in sides.items()},
            SIDES[: len(sides)],
        ),
    )


def force_figures(train: SetEvaluation, test: SetEvaluation | None) -> tuple[Figure, ...]:
    """Return parity plot and error histogram of the force components."""
    sides = _sides(train, test)
    return (
        _parity(
            "Forces, predicted against reference",
            ("reference component (eV/Å)", "predicted component (eV/Å)"),
            {side: found.force_parity_ev_per_angstrom for side, found in sides.items()},
            "component",
        ),
        histogram(
            "Force errors",
            "predicted − reference",
            FORCE,
            {side: found.force_error_histogram_mev_per_angstrom for side, found in sides.items()},
            SIDES[: len(sides)],
        ),
    )


def _sides(train: SetEvaluation, test: SetEvaluation | None) -> dict[str, SetEvaluation]:
    return {"train": train} if test is None else {"train": train, "test": test}


def histogram(
    title: str,
    label: str,
    unit: str,
    histograms: Mapping[str, Histogram],
    legend: tuple[LegendEntry, ...],
) -> Figure:
    """Return histograms of several sets over each other.

    Each is shown as shares of its own values per unit of the error: bins may differ in width.
    """
    shares = {css: _shares(h) for css, h in histograms.items()}
    edges = [edge for h in histograms.values() for edge in h.edges]
    heights = [share for values in shares.values() for share in values]
    chart = Chart(
        f"{title}: histograms of {' and '.join(entry.label for entry in legend)}",
        Axis(f"{label} ({unit})", linear_scale(edges)),
        Axis(
            f"share of values (% per {unit})", linear_scale([0.0, 1.08 * max(heights, default=1.0)])
        ),
        height=_SQUARE,
    )
    chart.mark(0.0, "guide")
    for css, values in histograms.items():
        chart.bars(values.edges, shares[css], css)
    caption = "The outermost bins also hold what lies beyond them." if edges else ""
    return Figure(title, chart.svg(), caption, legend)


def has_curve(check: PhysicsCheck) -> bool:
    """Return whether there is something to draw of a check."""
    return bool(
        getattr(check, "distances_angstrom", ()) or getattr(check, "volumes_angstrom3_per_atom", ())
    )


def dimer_figure(check: DimerCheck) -> Figure:
    """Return the energy of two atoms over their distance."""
    pair = "–".join(check.elements)
    chart = dimer_chart(pair, {"test": check})
    return Figure(f"Dimer {pair}", chart.svg(), check.message, verdict=check.verdict)


def dimer_chart(pair: str, checks: Mapping[str, DimerCheck]) -> Chart:
    """Return the curves of one pair, each in the colour of its class."""
    distances = [d for check in checks.values() for d in check.distances_angstrom]
    energies = [e for check in checks.values() for e in check.energies_ev]
    chart = Chart(
        f"Energy of the dimer {pair} over its distance",
        Axis("distance (Å)", linear_scale(distances)),
        Axis(
            f"energy (eV), logarithmic beyond ±{_DIMER_LINEAR_WITHIN_EV}",
            signed_log_scale(energies, linear_within=_DIMER_LINEAR_WITHIN_EV),
        ),
    )
    shortest = min(
        (s for c in checks.values() if (s := c.shortest_in_data_angstrom) is not None), default=None
    )
    if shortest is not None and distances:
        chart.shade(min(distances), shortest)
        chart.mark(shortest, "data", f"shortest in the data {fixed(shortest, 2)} Å")
    chart.level(0.0)
    for css, check in checks.items():
        chart.line(tuple(zip(check.distances_angstrom, check.energies_ev, strict=True)), css)
    return chart


def energy_volume_figure(check: EnergyVolumeCheck) -> Figure:
    """Return the energy of a crystal over its volume, relative to the lowest one."""
    chart = energy_volume_chart(check.element, {"test": check})
    title = f"Energy over volume, {check.element}"
    return Figure(title, chart.svg(), check.message, verdict=check.verdict)


def energy_volume_chart(element: str, checks: Mapping[str, EnergyVolumeCheck]) -> Chart:
    """Return the curves of one element, each in the colour of its class."""
    curves = {css: _above_lowest(check) for css, check in checks.items()}
    points = [point for curve in curves.values() for point in curve]
    chart = Chart(
        f"Energy of a crystal of {element} over its volume",
        Axis("volume (Å³/atom)", linear_scale([v for v, _ in points], padding=0.04)),
        Axis(
            "energy above the lowest (meV/atom)", linear_scale([e for _, e in points], padding=0.06)
        ),
    )
    for row, (css, check) in enumerate(checks.items()):
        if (minimum := check.minimum_angstrom3_per_atom) is not None:
            chart.mark(minimum, f"data {css}", f"V₀ = {significant(minimum)} Å³/atom", row=row)
        chart.line(curves[css], css)
        chart.dots(curves[css], css)
    return chart


def _above_lowest(check: EnergyVolumeCheck) -> tuple[Point, ...]:
    lowest = min(check.energies_ev_per_atom, default=0.0)
    energies = (1000 * (energy - lowest) for energy in check.energies_ev_per_atom)
    return tuple(zip(check.volumes_angstrom3_per_atom, energies, strict=True))


def _parity(title: str, labels: tuple[str, str], sides: Mapping[str, Parity], noun: str) -> Figure:
    values = [v for parity in sides.values() for v in (*parity.reference, *parity.predicted)]
    scale = linear_scale(values, padding=0.03)
    axes = (Axis(label, scale) for label in labels)
    chart = Chart(f"{title}: {_shown(sides, noun)}", *axes, height=_SQUARE)
    chart.diagonal()
    for css, parity in sides.items():
        chart.dots(zip(parity.reference, parity.predicted, strict=True), css)
    return Figure(title, chart.svg(), f"{_shown(sides, noun)}.", SIDES)


def _shown(sides: Mapping[str, Parity], noun: str) -> str:
    parts = []
    for side, parity in sides.items():
        total, shown = parity.sampled_from, len(parity.reference)
        sample = "" if shown == total else f"{fixed(shown, 0)} of "
        parts.append(f"{sample}{count(total, f'{side} {noun}')}")
    return ", ".join(parts)


def _shares(histogram: Histogram) -> Sequence[float]:
    total = sum(histogram.counts) or 1
    return [
        100 * number / total / (right - left)
        for number, (left, right) in zip(histogram.counts, pairwise(histogram.edges), strict=True)
    ]
