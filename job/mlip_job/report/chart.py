"""A chart as inline SVG. Its colours are CSS classes of the page's, so that they follow its theme.

Own code rather than a plotting library: matplotlib would fix the colours, draw letters as outlines
that no screen reader reads, write ten times the bytes, and take a second to be imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mlip_job.report.scales import Scale

Point = tuple[float, float]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 380, 50, 12, 24, 40
_THIN_COLUMNS = 300


@dataclass(frozen=True)
class Axis:
    """A scale and what it shows, with its unit."""

    label: str
    scale: Scale


class Chart:
    """Two axes, and what is drawn between them.

    Parameters
    ----------
    description
        What is to be seen, for those who can't see it.
    x, y
        The axes.
    height
        Of the whole, where its width is 380.
    """

    def __init__(self, description: str, x: Axis, y: Axis, *, height: int = 270) -> None:
        self._x, self._y = x.scale, y.scale
        self._plot_width = _WIDTH - _LEFT - _RIGHT
        self._plot_height = height - _TOP - _BOTTOM
        self._svg = ET.Element(
            "svg",
            {"viewBox": f"0 0 {_WIDTH} {height}", "role": "img", "aria-label": description},
        )
        self._draw_axes(x, y, height)
        # A nested <svg> cuts off what lies beyond the axes, without ids that have to be unique.
        box = _box(_LEFT, _TOP, self._plot_width, self._plot_height)
        self._plot = ET.SubElement(self._svg, "svg", box)

    def line(self, points: Sequence[Point], css: str) -> None:
        """Join points by a line."""
        _path(self._plot, f"line {css}", _polyline(_thin(list(self._placed(points)))))

    def dots(self, points: Iterable[Point], css: str) -> None:
        """Draw a dot at each point: all as one path of strokes without length."""
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in self._placed(points))
        _path(self._plot, f"dots {css}", path)

    def bars(self, edges: Sequence[float], heights: Sequence[float], css: str) -> None:
        """Draw the outline of a histogram, filled down to 0."""
        outline = [(edges[0], 0.0)]
        for (left, right), height in zip(pairwise(edges), heights, strict=True):
            outline += [(left, height), (right, height)]
        outline.append((edges[-1], 0.0))
        _path(self._plot, f"bars {css}", _polyline(map(self._place, outline)))

    def diagonal(self) -> None:
        """Draw where both axes say the same."""
        ends = (self._x.low, self._x.high)
        _path(self._plot, "guide", _polyline(self._place((v, v)) for v in ends))

    def mark(self, value: float, css: str, label: str = "", *, row: int = 0) -> None:
        """Draw a vertical line at a value of x; labels in different rows don't collide."""
        x = self._place((value, self._y.low))[0]
        _path(self._plot, f"mark {css}", f"M{x:.1f} 0V{self._plot_height}")
        if label:
            at_left = x > 0.6 * self._plot_width
            side, shift = ("before", -4) if at_left else ("behind", 4)
            _text(self._plot, f"callout {side} {css}", label, x + shift, 12 + 13 * row)

    def remark(self, x: float, label: str) -> None:
        """Write at the top, centred at a value of x."""
        place = self._place((x, self._y.low))[0]
        _text(self._plot, "callout centred", label, place, 12)

    def shade(self, start: float, end: float) -> None:
        """Shade what lies between two values of x."""
        left, right = (self._place((v, self._y.low))[0] for v in (start, end))
        box = _box(left, 0, max(0.0, right - left), self._plot_height)
        ET.SubElement(self._plot, "rect", {"class": "shade", **box})

    def level(self, value: float) -> None:
        """Draw a horizontal line at a value of y."""
        y = self._place((self._x.low, value))[1]
        _path(self._plot, "guide", f"M0 {y:.1f}H{self._plot_width}")

    def svg(self) -> Markup:
        """Return the chart for a page; all texts in it are escaped."""
        return Markup(ET.tostring(self._svg, encoding="unicode"))  # noqa: S704 - escaped by ET

    def _placed(self, points: Iterable[Point]) -> Iterator[Point]:
        return (self._place(point) for point in points if all(map(math.isfinite, point)))

    def _place(self, point: Point) -> Point:
        x, y = self._x.fraction(point[0]), self._y.fraction(point[1])
        return x * self._plot_width, (1 - y) * self._plot_height

    def _draw_axes(self, x: Axis, y: Axis, height: int) -> None:
        bottom, right = height - _BOTTOM, _WIDTH - _RIGHT
        for tick in x.scale.ticks:
            at = _LEFT + x.scale.fraction(tick.value) * self._plot_width
            _path(self._svg, "grid", f"M{at:.1f} {_TOP}V{bottom}")
            _text(self._svg, "tick x", tick.label, at, bottom + 15)
        for tick in y.scale.ticks:
            at = bottom - y.scale.fraction(tick.value) * self._plot_height
            _path(self._svg, "grid", f"M{_LEFT} {at:.1f}H{right}")
            _text(self._svg, "tick y", tick.label, _LEFT - 6, at + 4)
        _path(self._svg, "axis", f"M{_LEFT} {_TOP}V{bottom}H{right}")
        _text(self._svg, "label y", y.label, 4, 13)
        _text(self._svg, "label x", x.label, right, height - 6)


def _path(parent: ET.Element, css: str, d: str) -> None:
    ET.SubElement(parent, "path", {"class": css, "d": d})


def _text(parent: ET.Element, css: str, text: str, x: float, y: float) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}"}
    ET.SubElement(parent, "text", {"class": css, **place}).text = text


def _box(x: float, y: float, width: float, height: float) -> dict[str, str]:
    box = {"x": x, "y": y, "width": width, "height": height}
    return {name: f"{value:.1f}" for name, value in box.items()}


def _polyline(points: Iterable[Point]) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f"M{path}" if path else ""


def _thin(points: list[Point]) -> list[Point]:
    """Keep of each column of the screen the first, lowest, highest and last point."""
    if len(points) <= 4 * _THIN_COLUMNS:
        return points
    width = (points[-1][0] - points[0][0]) / _THIN_COLUMNS or 1.0
    columns: dict[int, list[Point]] = {}
    for point in points:
        columns.setdefault(int((point[0] - points[0][0]) / width), []).append(point)
    kept: list[Point] = []
    for column in columns.values():
        ends = (column[0], min(column, key=lambda p: p[1]), max(column, key=lambda p: p[1]))
        kept += sorted({*ends, column[-1]})
    return kept
