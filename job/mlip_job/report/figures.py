"""The figures of a page, drawn by matplotlib as inline SVG.

Texts stay texts and colours are variables of the page's style sheet, so that figures follow its
theme. Equal reports give equal figures: the SVG has no date and no random ids.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np
from markupsafe import Markup, escape

from mlip_job.evaluation.results import DimerCheck, EnergyVolumeCheck
from mlip_job.paths import generation_name
from mlip_job.report.texts import ENERGY, FORCE, STRESS, count, fixed, power_of_ten, significant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from mlip_job.evaluation.results import Evaluation, Histogram, Parity, PhysicsCheck
    from mlip_job.report.model import TrainingReport
    from mlip_job.training.summary import CurvePoint, RunSummary

T = TypeVar("T")
Point = tuple[float, float]
Legend = dict[str, str]
"""Labels by their colours: variables of the style sheet."""

MAX_GENERATIONS = 6
"""Maximum number of distinguishable colours."""
MAX_LABELLED_STEPS = 10

_WIDTH, _HEIGHT, _SQUARE = 380, 270, 340  # CSS pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 24, 40
_SMALLEST, _LARGEST = 1e-30, 1e30  # beyond them nothing was measured, but something overflowed
_DIMER_LINEAR_WITHIN_EV = 0.3
_DASHED, _DOTTED = (0, (4, 3)), (0, (2, 3))
_PLAIN_DECADES = range(-4, 5)  # 0.0001 to 10000 are written out

_SERIES = tuple(f"series-{number}" for number in range(MAX_GENERATIONS))
_VARIABLES = ("text", "quiet", "grid", "axis", "shade", "attempt", "train", "test", *_SERIES)


def _colour(variable: str) -> str:
    """Return a colour that `_to_svg` replaces by a variable of the style sheet."""
    return f"#0c0a{_VARIABLES.index(variable):02x}"


_STYLE = {
    "font.size": 12,
    "font.family": "DejaVu Sans",  # comes with matplotlib; the page chooses its own
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": _colour("axis"),
    "axes.labelcolor": _colour("text"),
    "axes.labelpad": 8,
    "axes.titlecolor": _colour("text"),
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _colour("grid"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.labelcolor": _colour("quiet"),
    "ytick.labelcolor": _colour("quiet"),
    "xaxis.labellocation": "right",
    "lines.linewidth": 1,
    "path.simplify_threshold": 0.5,  # pixels: a curve of 100,000 points stays small
    "svg.fonttype": "none",
    "svg.hashsalt": "mlip-job",
}
_CLEANED = (
    (r"<metadata>.*?</metadata>|<!--.*?-->", ""),
    (r"<style.*?</style>", ""),  # a style would apply to the whole page
    (r'(<svg [^>]*?) width="[^"]*"', r"\1"),
    (r' height="[^"]*pt"', ""),
    (r'<g id="(line|dots|bars)">', r'<g class="\1">'),
    (r'<g id="[^"]*">', "<g>"),  # not unique on a page with several figures
    (r'font: [^"]*?; text-anchor', "text-anchor"),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\d\.\d)\d+(?=[ \"])", r"\1"),  # of a pixel
    (r"M (\S+ \S+) ?\nL \1(?=\s)", r"M\1h0"),
    (r"\s*\n\s*", "\n"),
)


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and legend; `verdict` is that of the check it belongs to."""

    title: str
    svg: Markup
    caption: str = ""
    legend: Legend = field(default_factory=dict)
    verdict: str | None = None


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib import style  # noqa: PLC0415 - takes half a second, and only pages need it

    with style.context(_STYLE, after_reset=True):  # whatever the user's matplotlibrc says
        yield


# -- learning curves -----------------------------------------------------------------------------


class CurveQuantity(NamedTuple):
    """A quantity of a learning curve: its field, and its names on a page."""

    key: str
    title: str
    label: str
    value_of: Callable[[CurvePoint], float | None]


_RMSE = "RMSE per component"
QUANTITIES = (
    CurveQuantity("loss", "Loss", "loss", lambda p: p.loss),
    CurveQuantity("rmse_energy_mev_per_atom", "Energy", f"RMSE ({ENERGY})", lambda p: p.rmse[0]),
    CurveQuantity(
        "rmse_force_mev_per_angstrom", "Forces", f"{_RMSE} ({FORCE})", lambda p: p.rmse[1]
    ),
    CurveQuantity("rmse_stress_gpa", "Stress", f"{_RMSE} ({STRESS})", lambda p: p.rmse[2]),
)


@_style()
def learning_figures(report: TrainingReport) -> tuple[Figure, ...]:
    """Return loss and RMSEs over the iterations, on logarithmic scales."""
    found = []
    for quantity in QUANTITIES:
        train, test = learning_curves(report.fit, quantity.value_of)
        if train:
            axes = _learning_axes(quantity.label, {"train": train, "test": test})
            _mark_steps(axes, report)
            svg = _to_svg(axes, f"{quantity.title} over the iterations of the fit, logarithmic")
            legend = {"train": "train"} | ({"test": report.fit.second_set} if test else {})
            found.append(Figure(quantity.title, svg, legend=legend))
    return tuple(found)


@_style()
def learning_overlays(reports: Sequence[TrainingReport]) -> tuple[Figure, ...]:
    """Return learning curves of the second set, or of the training set where a fit lacks it."""
    second = " or ".join(sorted({report.fit.second_set for report in reports}))
    found, names = [], _names(reports)
    for quantity in QUANTITIES[1:]:
        curves = {
            css: curve
            for css, report in _series(reports).items()
            if any(curve := learning_curves(report.fit, quantity.value_of))
        }
        if curves:
            tested = all(test for _, test in curves.values())
            lines = {css: test if tested else train for css, (train, test) in curves.items()}
            title = f"{quantity.title}, {second if tested else 'train'} set"
            axes = _learning_axes(quantity.label, lines)
            svg = _to_svg(axes, f"{title}, over the iterations of the fit, logarithmic")
            found.append(Figure(title, svg, legend={css: names[css] for css in lines}))
    return tuple(found)


def learning_curves(
    fit: RunSummary, value_of: Callable[[CurvePoint], float | None]
) -> tuple[list[Point], list[Point]]:
    """Return a quantity over all iterations of a fit, for the training set and the second set."""
    before = accumulate((cycle.iterations for cycle in fit.cycles), initial=0)
    spans = {
        (cycle.ladder_step, cycle.cycle): (start, cycle.iterations)
        for cycle, start in zip(fit.cycles, before, strict=False)
    }

    def points(rows: Iterable[CurvePoint]) -> Iterator[Point]:
        for row in rows:
            value = value_of(row)
            if value is not None and value >= _SMALLEST:
                begin, length = spans.get(row.step, (0, row.iteration))
                # The last row of the test set counts one iteration too many.
                yield begin + min(row.iteration, length), value

    return list(points(fit.train_curve)), list(points(fit.test_curve))


def _learning_axes(label: str, lines: Mapping[str, list[Point]]) -> Axes:
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415 - see _style

    axes = _axes("iteration", label)
    axes.set_yscale("log")
    for css, points in lines.items():
        _line(axes, points, css) if len(points) > 1 else _dots(axes, points, css)
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    labels = next(
        subs for least, subs in ((3, [1]), (1.5, [1, 3]), (0, [1, 2, 5])) if decades >= least
    )
    axes.yaxis.set_major_locator(LogLocator(subs=labels, numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_label)
    axes.set_xlim(left=0)
    return axes


def _mark_steps(axes: Axes, report: TrainingReport) -> None:
    """Mark where ladder steps, cycles and attempts begin."""
    cycles, begin = report.fit.cycles, 0
    for number, cycle in enumerate(cycles):
        if number:
            axes.axvline(begin, color=_colour("axis"), linestyle=_DOTTED)
        if 1 < len(cycles) <= MAX_LABELLED_STEPS:
            _note(axes, begin + cycle.iterations / 2, str(cycle.functions or ""), "quiet")
        begin += cycle.iterations
    done = accumulate(part.iterations for part in report.attempts[:-1])
    for number, place in enumerate(done, start=2):
        _mark(axes, place, "attempt", f"attempt {number}", row=1 + number % 2)


# -- errors --------------------------------------------------------------------------------------


_DRAWN = (
    ("Energy", "energy (eV/atom)", "structure", "Energy errors", ENERGY),
    ("Forces", "component (eV/Å)", "component", "Force errors", FORCE),
    ("Stress", "component (GPa)", "component", "Stress errors", STRESS),
)
"""Titles and labels by quantity."""


@_style()
def error_figures(evaluation: Evaluation) -> tuple[tuple[Figure, ...], ...]:
    """Return parity plot and histogram of the errors by quantity, where there are any.

    A report of an older version has none of stresses.
    """
    sides = {"train": evaluation.train, "test": evaluation.test}
    known = {side: found for side, found in sides.items() if found is not None}
    found = []
    for number, (name, label, noun, title, unit) in enumerate(_DRAWN):
        parities = _measured({side: e.parities[number] for side, e in known.items()})
        errors = _measured({side: e.histograms[number] for side, e in known.items()})
        drawn: tuple[Figure, ...] = ()
        if parities and errors:
            legend = {side: side for side in errors}
            drawn = (_parity(name, label, parities, noun), _histogram(title, unit, errors, legend))
        found.append(drawn)
    return tuple(found)


@_style()
def error_overlays(reports: Sequence[TrainingReport]) -> tuple[Figure, ...]:
    """Return the error histograms of the test sets."""
    evaluations = ((css, report.evaluation) for css, report in _series(reports).items())
    tests = {css: found.test for css, found in evaluations if found and found.test}
    names, found = _names(reports), []
    for number, (*_, title, unit) in enumerate(_DRAWN):
        errors = _measured({css: test.histograms[number] for css, test in tests.items()})
        if errors:
            legend = {css: names[css] for css in errors}
            found.append(_histogram(f"{title} on the test set", unit, errors, legend))
    return tuple(found)


def _measured(found: Mapping[str, T | None]) -> dict[str, T]:
    return {css: one for css, one in found.items() if one is not None}


def _parity(name: str, quantity: str, sides: Mapping[str, Parity], noun: str) -> Figure:
    axes = _axes(f"reference {quantity}", f"predicted {quantity}", _SQUARE)
    for css, parity in sides.items():
        _dots(axes, zip(parity.reference, parity.predicted, strict=True), css)
    limits = (*axes.get_xlim(), *axes.get_ylim())
    ends = min(limits), max(limits)
    axes.set(xlim=ends, ylim=ends)
    axes.plot(ends, ends, color=_colour("axis"), linestyle=_DASHED)
    shown = ", ".join(
        ("" if (n := len(parity.reference)) == parity.sampled_from else f"{fixed(n, 0)} of ")
        + count(parity.sampled_from, f"{side} {noun}")
        for side, parity in sides.items()
    )
    title = f"{name}, predicted against reference"
    svg = _to_svg(axes, f"{title}: {shown}")
    return Figure(title, svg, f"{shown}.", {side: side for side in sides})


def _histogram(
    title: str, unit: str, histograms: Mapping[str, Histogram], legend: Legend
) -> Figure:
    """Draw each as shares of its own values per unit of the error: bins may differ in width."""
    axes = _axes(f"predicted − reference ({unit})", f"share of values (% per {unit})", _SQUARE)
    axes.axvline(0.0, color=_colour("axis"), linestyle=_DASHED)
    for css, histogram in histograms.items():
        total = sum(histogram.counts) or 1
        bins = zip(histogram.counts, pairwise(histogram.edges), strict=True)
        shares = [100 * number / total / (right - left) for number, (left, right) in bins]
        bars = axes.stairs(shares, histogram.edges, fill=True, gid="bars", linewidth=1.75)
        bars.set(facecolor=(_colour(css), 0.14), edgecolor=_colour(css))
    axes.set_ylim(bottom=0)
    svg = _to_svg(axes, f"{title}: histograms of {' and '.join(legend.values())}")
    return Figure(title, svg, "The outermost bins also hold what lies beyond them.", legend)


# -- physics -------------------------------------------------------------------------------------


@_style()
def physics_figures(checks: Sequence[PhysicsCheck]) -> tuple[Figure, ...]:
    """Return the curves of all dimers, then of all crystals."""
    return _physics({"test": checks}, {})


@_style()
def physics_overlays(reports: Sequence[TrainingReport]) -> tuple[Figure, ...]:
    """Return the curves of every pair and every element that is in any of the reports."""
    evaluations = ((css, report.evaluation) for css, report in _series(reports).items())
    return _physics({css: e.physics for css, e in evaluations if e}, _names(reports))


def _physics(checks: Mapping[str, Sequence[PhysicsCheck]], names: Legend) -> tuple[Figure, ...]:
    dimers: dict[str, dict[str, DimerCheck]] = defaultdict(dict)
    crystals: dict[str, dict[str, EnergyVolumeCheck]] = defaultdict(dict)
    for css, group in checks.items():
        for check in group:
            if isinstance(check, DimerCheck) and check.distances_angstrom:
                dimers["–".join(check.elements)][css] = check
            elif isinstance(check, EnergyVolumeCheck) and check.volumes_angstrom3_per_atom:
                crystals[check.element][css] = check

    def figure(title: str, svg: Markup, found: Mapping[str, PhysicsCheck]) -> Figure:
        if names:
            return Figure(title, svg, legend={css: names[css] for css in found})
        return Figure(title, svg, found["test"].message, verdict=found["test"].verdict)

    return (
        *(figure(f"Dimer {pair}", _dimer(pair, found), found) for pair, found in dimers.items()),
        *(
            figure(f"Energy over volume, {element}", _crystal(element, found), found)
            for element, found in crystals.items()
        ),
    )


def _dimer(pair: str, checks: Mapping[str, DimerCheck]) -> Markup:
    """Draw the energy of two atoms over their distance."""
    from matplotlib.ticker import AsinhLocator  # noqa: PLC0415 - see _style

    axes = _axes("distance (Å)", f"energy (eV), logarithmic beyond ±{_DIMER_LINEAR_WITHIN_EV}")
    axes.set_yscale("asinh", linear_width=_DIMER_LINEAR_WITHIN_EV)
    axes.yaxis.set_major_locator(AsinhLocator(_DIMER_LINEAR_WITHIN_EV, numticks=7))
    axes.yaxis.set_major_formatter(_label)
    found = (check.shortest_in_data_angstrom for check in checks.values())
    shortest = min((distance for distance in found if distance is not None), default=None)
    axes.axhline(0.0, color=_colour("axis"), linestyle=_DASHED)
    for css, check in checks.items():
        _line(axes, zip(check.distances_angstrom, check.energies_ev, strict=True), css)
    if shortest is not None:
        start = min(d for check in checks.values() for d in check.distances_angstrom)
        axes.axvspan(start, max(start, shortest), color=_colour("shade"), linewidth=0)
        _mark(axes, shortest, "axis", f"shortest in the data {fixed(shortest, 2)} Å")
    return _to_svg(axes, f"Energy of the dimer {pair} over its distance")


def _crystal(element: str, checks: Mapping[str, EnergyVolumeCheck]) -> Markup:
    """Draw the energy of a crystal over its volume, relative to the lowest one."""
    axes = _axes("volume (Å³/atom)", "energy above the lowest (meV/atom)")
    for css, check in checks.items():
        lowest = min(check.energies_ev_per_atom, default=0.0)
        energies = [1000 * (energy - lowest) for energy in check.energies_ev_per_atom]
        points = list(zip(check.volumes_angstrom3_per_atom, energies, strict=True))
        _line(axes, points, css)
        _dots(axes, points, css)
    for row, (css, check) in enumerate(checks.items()):
        if (minimum := check.minimum_angstrom3_per_atom) is not None:
            _mark(axes, minimum, css, f"V₀ = {significant(minimum)} Å³/atom", row=row)
    return _to_svg(axes, f"Energy of a crystal of {element} over its volume")


def _series(reports: Sequence[TrainingReport]) -> dict[str, TrainingReport]:
    return dict(zip(_SERIES, reports, strict=False))


def _names(reports: Sequence[TrainingReport]) -> Legend:
    return {css: generation_name(found.generation) for css, found in _series(reports).items()}


# -- matplotlib ----------------------------------------------------------------------------------


def _axes(x: str, y: str, height: int = _HEIGHT) -> Axes:
    """Return empty axes; the label of y is above them, as horizontal text."""
    from matplotlib import figure  # noqa: PLC0415 - see _style

    canvas = figure.Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
    width, depth = _WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    box = (_LEFT / _WIDTH, _BOTTOM / height, width / _WIDTH, depth / height)
    axes = canvas.add_axes(box, xlabel=x)
    axes.set_title(y, x=(4 - _LEFT) / width, y=1 + 11 / depth, pad=0, verticalalignment="baseline")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_label)
    axes.locator_params(nbins=6, steps=(1, 2, 5, 10))
    return axes


def _known(points: Iterable[Point]) -> np.ndarray:
    """Return the points that can be drawn; predictions may be out of range."""
    found = np.array(list(points), dtype=float).reshape(-1, 2)
    drawable: np.ndarray = found[(np.abs(found) <= _LARGEST).all(axis=1)]
    return drawable


def _line(axes: Axes, points: Iterable[Point], css: str) -> None:
    axes.plot(*_known(points).T, color=_colour(css), linewidth=2, gid="line")


def _dots(axes: Axes, points: Iterable[Point], css: str) -> None:
    """Draw all dots as one path of segments without length: a tenth of the size of markers."""
    from matplotlib.patches import PathPatch  # noqa: PLC0415 - see _style
    from matplotlib.path import Path  # noqa: PLC0415

    vertices = np.repeat(_known(points), 2, axis=0)
    path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(vertices) // 2))
    path.should_simplify = False
    dots = PathPatch(path, fill=False, linewidth=4.5, capstyle="round", alpha=0.65, gid="dots")
    dots.set_edgecolor(_colour(css))
    axes.add_artist(dots)
    axes.update_datalim(vertices)
    axes.autoscale_view()


def _mark(axes: Axes, x: float, css: str, label: str, *, row: int = 0) -> None:
    """Draw a vertical line with a label; labels in different rows do not overlap."""
    axes.axvline(x, color=_colour(css), linestyle=_DASHED)
    low, high = axes.get_xlim()
    side = "right" if x - low > 0.6 * (high - low) else "left"  # the label ends or starts there
    _note(axes, x, label, "quiet" if css == "axis" else css, row=row, side=side)


def _note(
    axes: Axes, x: float, label: str, css: str, *, row: int = 0, side: str = "center"
) -> None:
    """Write near the top of the axes, at a value of x."""
    axes.annotate(
        label,
        (x, 1),
        xytext=({"left": 4, "center": 0, "right": -4}[side], -12 - 13 * row),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        horizontalalignment=side,
        color=_colour(css),
    )


def _label(value: float, _position: float) -> str:
    """Return the label of a tick: 0.0001 to 10000 written out, others as powers of ten."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if exponent in _PLAIN_DECADES:
        return f"{value:.6g}".replace("-", "−")
    factor = f"{value / 10.0**exponent:.3g}".replace("-", "−")
    power = power_of_ten(exponent)
    return power if factor == "1" else f"{factor}·{power}"


def _to_svg(axes: Axes, description: str) -> Markup:
    """Return the chart for a page; matplotlib escapes all texts in it."""
    text = io.StringIO()
    cast("Canvas", axes.figure).savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in _CLEANED:
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    svg = re.sub("#0c0a([0-9a-f]{2})", lambda m: f"var(--{_VARIABLES[int(m[1], 16)]})", svg)
    attributes = f'<svg role="img" aria-label="{escape(description)}"'
    return Markup(svg.replace("<svg", attributes, 1))  # noqa: S704 - see above
