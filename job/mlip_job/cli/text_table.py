"""Tables on stdout, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH = 80
"""Columns of a terminal that every table fits."""

_NARROWEST = 16
"""Characters; a column this narrow is not narrowed further, so no number is broken."""

_UNKNOWN = "–"


def figure(value: float | None, digits: int = 1) -> str:
    """Return a number as text, and a dash for what is not known."""
    return _UNKNOWN if value is None else f"{value:.{digits}f}"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] | None = None
) -> None:
    """Print a table on stdout; numbers stand to the right.

    One that is too wide gets its headings, then its texts on several lines; where that is not
    enough it is continued below itself, with its first column again.

    `numeric` says which columns hold numbers where that can't be told from their cells.
    """
    if numeric is None:
        numeric = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    click.echo("\n".join(_lines(columns, rows, numeric)))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdigit() or text == _UNKNOWN


def _lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> Iterator[str]:
    widths, gap = _widths(columns, rows)
    if _total(widths, gap) > WIDTH and len(columns) > 2:  # noqa: PLR2004 - nothing to split
        first, cut = slice(0, 1), len(columns) // 2 + 1
        for part in (slice(1, cut), slice(cut, None)):
            yield from _lines(
                [*columns[first], *columns[part]],
                [[*row[first], *row[part]] for row in rows],
                [*numeric[first], *numeric[part]],
            )
        return
    heading = [textwrap.wrap(text, w) for text, w in zip(columns, widths, strict=True)]
    tallest = max(len(lines) for lines in heading)
    heading = [[""] * (tallest - len(lines)) + lines for lines in heading]
    cells = [[textwrap.wrap(text, w) for text, w in zip(row, widths, strict=True)] for row in rows]
    head, *body = (_row(row, widths, numeric, gap) for row in (heading, *cells))
    yield from head
    yield " " + "─" * (_total(widths, gap) - 1)
    for lines in body:
        yield from lines
    yield ""


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[int], int]:
    """Return the width of each column and of the gap between two of them."""
    inside = [max((len(row[index]) for row in rows), default=1) for index in range(len(columns))]
    widths = [max(1, cell, len(name)) for cell, name in zip(inside, columns, strict=True)]
    if _total(widths, gap := 3) <= WIDTH:
        return widths, gap
    words = [max(map(len, name.split()), default=1) for name in columns]
    widths, gap = [max(1, *pair) for pair in zip(inside, words, strict=True)], 2
    while _total(widths, gap) > WIDTH and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths, gap


def _total(widths: Sequence[int], gap: int) -> int:
    return 1 + sum(widths) + gap * (len(widths) - 1)


def _row(
    cells: Sequence[Sequence[str]], widths: Sequence[int], numeric: Sequence[bool], gap: int
) -> list[str]:
    """Return the lines of a row, whose cells have some lines each."""
    texts = []
    for number in range(max(1, *(len(lines) for lines in cells))):
        parts = [lines[number] if number < len(lines) else "" for lines in cells]
        shown = [
            part.rjust(width) if right else part.ljust(width)
            for part, width, right in zip(parts, widths, numeric, strict=True)
        ]
        texts.append(f" {(' ' * gap).join(shown)}".rstrip())
    return texts
