"""Format numbers, tables and lists for a page or a terminal; unknown values are dashes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.registry import Headline

UNKNOWN = "–"
NARROW_SPACE = "\u202f"
"""Separates thousands and units without a line break."""
ENERGY, FORCE, STRESS = "meV/atom", "meV/Å", "GPa"

_TIME_UNITS = ((10, 1, "s", 1), (100, 1, "s", 0), (6000, 60, "min", 1), (math.inf, 3600, "h", 1))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LISTED_ROWS = 12
_SAME_PERCENT = 2
_GATE_WORDS = {
    "accepted": "✓ accepted",
    "accepted, stability not checked": "~ accepted",
    "rejected": "✗ rejected",
    "published, no gate set": "no gate set",
}


@dataclass(frozen=True)
class Column:
    """A column; numbers are aligned to the right."""

    name: str
    unit: str = ""
    numeric: bool = True

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Cell:
    """A text with its CSS class."""

    text: str
    css: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table with a title above and a note below."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""


def fixed(value: float | None, digits: int = 1) -> str:
    """Return a number with fixed decimals and separated thousands."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}".replace("-", "−").replace(",", NARROW_SPACE)
    return text.removeprefix("−") if not text.strip("−0.") else text


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number rounded to significant digits."""
    if value is None or not math.isfinite(value):
        return fixed(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -digits:
        mantissa = fixed(value / 10.0**magnitude, digits - 1)
        return f"{mantissa}·{power_of_ten(magnitude)}"
    return fixed(round(value, digits - 1 - magnitude), max(0, digits - 1 - magnitude))


def power_of_ten(exponent: int) -> str:
    """Return ``10⁻⁴``."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def percent(change: float | None) -> str:
    """Return a relative change with its sign."""
    if change is None:
        return UNKNOWN
    sign = "+" if change > 0 else ""
    return f"{sign}{fixed(100 * change, 0)}{NARROW_SPACE}%"


def duration(seconds: float | None) -> str:
    """Return a time in seconds, minutes or hours."""
    for limit, size, unit, digits in _TIME_UNITS:
        if seconds is not None and seconds < limit:
            return f"{fixed(seconds / size, digits)} {unit}"
    return UNKNOWN


def count(number: int | None, noun: str) -> str:
    """Return ``1 structure``, ``2 structures``."""
    return f"{fixed(number, 0)} {noun}" + ("" if number == 1 else "s")


def row_ids(rows: Sequence[int]) -> str:
    """Return the first row ids, and how many more there are."""
    shown = ", ".join(map(str, rows[:_LISTED_ROWS]))
    more = len(rows) - _LISTED_ROWS
    return f"{shown} and {more} more" if more > 0 else shown


def gate_word(headline: Headline) -> str:
    """Return the verdict of the gate in one or two words."""
    return _GATE_WORDS.get(headline.verdict, headline.verdict)


def describe_change(change: float | None) -> str:
    """Return ``↓ 12%`` for an error that fell by 12 %, ``=`` for a change of at most 2 %."""
    if change is None:
        return UNKNOWN
    rounded = round(100 * change)
    if abs(rounded) <= _SAME_PERCENT:
        return "="
    return f"{'↓' if rounded < 0 else '↑'} {abs(rounded)}%"
