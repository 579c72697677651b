"""Verdicts, and how test errors changed, in a few characters of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.report.numbers import UNKNOWN

if TYPE_CHECKING:
    from mlip_job.registry import Headline

_SAME_PERCENT = 2
_SIGNS = {"accepted": "✓ ", "rejected": "✗ "}


def gate_word(headline: Headline) -> str:
    """Return whether a generation was accepted, or that nothing was asked of it."""
    word = headline.verdict
    return _SIGNS.get(word, "") + word.removeprefix("published, ")


def describe_change(change: float | None) -> str:
    """Return ``↓ 12%`` for an error that fell by 12 %, ``=`` where it is much the same."""
    if change is None:
        return UNKNOWN
    percent = round(100 * change)
    if abs(percent) <= _SAME_PERCENT:
        return "="
    return f"{'↓' if percent < 0 else '↑'} {abs(percent)}%"
