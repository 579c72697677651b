"""Scales of an axis: where a value stands between its ends, and which values are labelled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlip_job.report.numbers import power_of_ten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FACTORS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8))  # of a decade, the first that are enough
_ENOUGH = 3  # labels
_SMALLEST, _LARGEST = 1e-30, 1e30  # beyond them nothing was measured, but something overflowed
_LABEL_HEIGHT = 0.065  # as a fraction of the axis
_PLAIN_DECADES = range(-4, 5)  # 0.0001 to 10000 are written out


@dataclass(frozen=True)
class Tick:
    """A labelled value."""

    value: float
    label: str


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`.

    Attributes
    ----------
    low, high
        Values at the ends.
    ticks
        The labelled values, all between the ends.
    transform
        What is linear along the axis.
    """

    low: float
    high: float
    ticks: tuple[Tick, ...]
    transform: Callable[[float], float]

    def fraction(self, value: float) -> float:
        """Return where a value stands: 0 at the low end, 1 at the high one."""
        low, high = self.transform(self.low), self.transform(self.high)
        return (self.transform(value) - low) / (high - low)


def linear_scale(values: Iterable[float], *, padding: float = 0.0, ticks: int = 5) -> Scale:
    """Return a scale over all values, with a margin of so many of their range on each side."""
    low, high = _range(values)
    margin = padding * (high - low)
    low, high = low - margin, high + margin
    step = _nice_step((high - low) / ticks)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    marks = (Tick(n * step, _plain(n * step, digits)) for n in range(first, last + 1))
    return Scale(low, high, tuple(marks), float)


def log_scale(values: Iterable[float]) -> Scale:
    """Return a logarithmic scale over all positive values."""
    low, high = _range(value for value in values if value >= _SMALLEST)
    low, high = max(low, high / 1e12) / 1.1, high * 1.1
    ticks = next(
        (found for factors in _FACTORS if len(found := _decades(low, high, factors)) >= _ENOUGH),
        linear_scale([low, high], ticks=4).ticks,
    )
    return Scale(low, high, ticks, math.log10)


def _decades(low: float, high: float, factors: tuple[int, ...]) -> tuple[Tick, ...]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, math.ceil(math.log10(high / low) / 6))
    marks = (
        Tick(factor * 10.0**exponent, _power(factor, exponent))
        for exponent in exponents
        for factor in factors
        if exponent % stride == 0
    )
    return _within(marks, low, high)


def signed_log_scale(values: Iterable[float], *, linear_within: float = 1.0) -> Scale:
    """Return a scale that is linear about 0 and logarithmic far from it, on both sides."""
    low, high = _range([*values, 0.0])
    low, high = 1.15 * low, 1.15 * high
    top = math.ceil(math.log10(max(-low, high, linear_within)))
    stride = max(1, math.ceil(top / 3))
    marks = [Tick(0.0, "0")]
    for exponent in range(math.floor(math.log10(linear_within)), top + 1):
        size = 10.0**exponent
        if exponent % stride == 0:
            marks += [Tick(size, _power(1, exponent)), Tick(-size, "−" + _power(1, exponent))]
    scale = Scale(low, high, _within(marks, low, high), lambda v: math.asinh(v / linear_within))
    return replace(scale, ticks=_apart(scale))


def _range(values: Iterable[float]) -> tuple[float, float]:
    known = [value for value in values if abs(value) <= _LARGEST]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), _SMALLEST):
        half = abs(low) / 2 or 0.5
        return low - half, high + half
    return low, high


def _within(marks: Iterable[Tick], low: float, high: float) -> tuple[Tick, ...]:
    return tuple(sorted((t for t in marks if low <= t.value <= high), key=lambda t: t.value))


def _apart(scale: Scale) -> tuple[Tick, ...]:
    """Keep ticks whose labels don't touch: 0 first, then those farthest from it."""
    kept: list[Tick] = []
    for tick in sorted(scale.ticks, key=lambda t: (t.value != 0, -abs(t.value))):
        place = scale.fraction(tick.value)
        if all(abs(place - scale.fraction(k.value)) >= _LABEL_HEIGHT for k in kept):
            kept.append(tick)
    return tuple(sorted(kept, key=lambda t: t.value))


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(n for n in (1, 2, 5, 10) if n * power >= rough * (1 - 1e-9))


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _power(factor: int, exponent: int) -> str:
    if exponent in _PLAIN_DECADES:
        return f"{factor * 10.0**exponent:.{max(0, -exponent)}f}"
    return power_of_ten(exponent) if factor == 1 else f"{factor}·{power_of_ten(exponent)}"
