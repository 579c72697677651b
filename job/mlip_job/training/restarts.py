"""Pacemaker's own restarts within a step.

Out of GPU memory, it goes on from where it was with smaller batches. It adds to the same tables
then, but counts iterations from 0 again, on the training set and on the test set alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Place(NamedTuple):
    """Where in a start of pacemaker a row of a table is, as the table says it."""

    ladder_step: int
    cycle: int
    iteration: int


def count_on(places: Iterable[Place]) -> list[int]:
    """Return the iterations of ``metrics.txt`` numbered on over all restarts.

    The first row after a restart gets the number of the last one before it, which it repeats.
    """
    return [start + place.iteration for place, start in _with_starts(places)]


def count_on_like(metrics: Iterable[Place], places: Sequence[Place]) -> list[int]:
    """Return the iterations of another table numbered on.

    Parameters
    ----------
    metrics
        The rows of ``metrics.txt``, which tells where each start began: it has a row for every
        iteration.
    places
        The rows of the other table.
    """
    begun: dict[tuple[int, int], dict[int, None]] = {}
    for place, start in _with_starts(metrics):
        begun.setdefault(place[:2], {})[start] = None
    numbers: dict[int, int] = {}
    for key, starts in begun.items():
        rows = [n for n, place in enumerate(places) if place[:2] == key]
        numbers |= dict(zip(rows, _fit_in([places[n] for n in rows], list(starts)), strict=True))
    return [numbers.get(n, place.iteration) for n, place in enumerate(places)]


def _fit_in(places: Sequence[Place], starts: Sequence[int]) -> Iterator[int]:
    """Yield the numbers of one step's rows, given how many iterations came before each start.

    A start that ran out of memory at once may or may not have left a row.
    """
    indices = _start_indices(places)
    surplus = max(0, max(indices, default=0) + 1 - len(starts))
    for place, index in zip(places, indices, strict=True):
        yield starts[max(0, index - surplus)] + place.iteration


def _start_indices(places: Sequence[Place]) -> list[int]:
    indices: list[int] = []
    for n, place in enumerate(places):
        again = n > 0 and place.iteration <= places[n - 1].iteration
        indices.append((indices[-1] if indices else 0) + again)
    return indices


def _with_starts(places: Iterable[Place]) -> Iterator[tuple[Place, int]]:
    """Yield each row with the number of iterations before its start."""
    before: Place | None = None
    start = 0
    for place in places:
        if before is None or place[:2] != before[:2]:
            start = 0
        elif place.iteration <= before.iteration:
            start += before.iteration
        before = place
        yield place, start
