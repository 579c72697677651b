"""How test errors change from generation to generation, in a few characters of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.reporting.numbers import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.registry import Headline

_BLOCKS = "▁▂▃▄▅▆▇█"
_SAME_PERCENT = 2


def gate_word(headline: Headline) -> str:
    """Return whether a generation was accepted."""
    return "✓ accepted" if headline.accepted else "✗ rejected"


def change_since(old: float | None, new: float | None) -> str:
    """Return ``↓ 12%`` where an error fell by 12 %, ``=`` where it is much the same."""
    if old is None or new is None or old <= 0:
        return UNKNOWN
    percent = round(100 * (new / old - 1))
    if abs(percent) <= _SAME_PERCENT:
        return "="
    return f"{'↓' if percent < 0 else '↑'} {abs(percent)}%"


def sparkline(values: Sequence[float | None]) -> str:
    """Return a column for each value, from 0 to the largest; none for what is not known."""
    largest = max((value for value in values if value is not None), default=0.0) or 1.0
    return "".join(
        " " if value is None else _BLOCKS[round((len(_BLOCKS) - 1) * value / largest)]
        for value in values
    )
