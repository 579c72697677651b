"""Positions of a fit are sorted from its beginning to its end, and said in words."""

from __future__ import annotations

import random

from mlip_job.training.checkpoint import FitPosition


def _at(step: int, iteration: int, *, done: bool = False, finished: bool = False) -> FitPosition:
    return FitPosition(
        ladder_step=step, iteration=iteration, step_done=done, last_step=False, finished=finished
    )


def test_positions_sort_from_beginning_to_end() -> None:
    """The end of a step is behind all its iterations: it may have been stopped early."""
    expected = [
        _at(0, 1),
        _at(0, 9),
        _at(0, 7, done=True),
        _at(1, 2),
        _at(1, 2, done=True),
        _at(0, 8, done=True, finished=True),
    ]
    shuffled = random.Random(3).sample(expected, len(expected))
    assert sorted(shuffled, key=FitPosition.order) == expected


def test_positions_are_said_in_words() -> None:
    """Steps of a ladder count from 1, unlike pacemaker's; the first one goes without saying."""
    assert str(_at(0, 12)) == "iteration 12"
    assert str(_at(3, 12, done=True)) == "ladder step 4, iteration 12"
    assert str(_at(3, 12, done=True, finished=True)) == "the end of the fit"
