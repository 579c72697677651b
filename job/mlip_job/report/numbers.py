"""Numbers as texts for people. What is not known is a dash."""

from __future__ import annotations

import math

UNKNOWN = "–"
NARROW_SPACE = "\u202f"
"""Sets thousands and units apart; no line is broken there."""

_TIME_UNITS = ((10, 1, "s", 1), (100, 1, "s", 0), (6000, 60, "min", 1), (math.inf, 3600, "h", 1))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def fixed(value: float | None, digits: int = 1) -> str:
    """Return a number with so many decimals, its thousands set apart."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}".replace("-", "−").replace(",", NARROW_SPACE)
    return text.removeprefix("−") if not text.strip("−0.") else text


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number rounded to so many digits."""
    if value is None or not math.isfinite(value):
        return fixed(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -digits:
        mantissa = fixed(value / 10.0**magnitude, digits - 1)
        return f"{mantissa}·{power_of_ten(magnitude)}"
    return fixed(round(value, digits - 1 - magnitude), max(0, digits - 1 - magnitude))


def percent(change: float | None) -> str:
    """Return a relative change with its sign."""
    if change is None:
        return UNKNOWN
    sign = "+" if change > 0 else ""
    return f"{sign}{fixed(100 * change, 0)}{NARROW_SPACE}%"


def duration(seconds: float) -> str:
    """Return a time as people say it: in seconds, minutes or hours."""
    for limit, size, unit, digits in _TIME_UNITS:
        if seconds < limit:
            return f"{fixed(seconds / size, digits)} {unit}"
    return UNKNOWN


def power_of_ten(exponent: int) -> str:
    """Return ``10⁻⁴``."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def count(number: int | None, noun: str) -> str:
    """Return ``1 structure``, ``2 structures``."""
    return f"{fixed(number, 0)} {noun}" + ("" if number == 1 else "s")
