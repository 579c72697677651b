"""Iterations are numbered on where pacemaker began anew within a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.training.pacemaker.tables import Place, count_on, count_on_like, read_table

DATA = Path(__file__).parents[1] / "data" / "pacemaker"


def _places(*iterations: int, step: int = 0) -> list[Place]:
    return [Place(step, 0, n) for n in iterations]


@pytest.mark.parametrize("case", ["b_single_test", "c_ladder", "e_cycles2", "f_earlystop_pyace"])
@pytest.mark.parametrize("table", ["metrics", "test_metrics"])
def test_without_restarts_nothing_changes(case: str, table: str) -> None:
    """Ladders and cycles count from 0 of their own accord."""
    metrics, rows = (
        [r.place for r in read.rows]
        for read in (read_table(DATA / case / f"{name}.txt") for name in ("metrics", table))
    )
    assert count_on_like(metrics, rows) == [row.iteration for row in rows]
    assert count_on(metrics) == [row.iteration for row in metrics]


def test_a_fit_that_ran_out_of_memory_counts_on() -> None:
    """As pacemaker left it, in its sixth iteration; the test set was evaluated in every second."""
    metrics, test = (
        [r.place for r in read.rows]
        for read in (
            read_table(DATA / "oom_healed" / f"{name}.txt") for name in ("metrics", "test_metrics")
        )
    )
    assert count_on(metrics) == [*range(6), *range(5, 14)]
    assert count_on_like(metrics, test) == [0, 2, 4, 5, 7, 9, 11, 13, 14]


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        ([0, 1, 2, 0, 1], [0, 1, 2, 2, 3]),
        ([0, 0, 1, 2], [0, 0, 1, 2]),
        ([0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 2, 2, 2, 3, 3, 4]),
        ([], []),
    ],
    ids=["in between", "at once", "again and again", "nothing"],
)
def test_a_restart_repeats_the_last_row_and_counts_on(
    iterations: list[int], expected: list[int]
) -> None:
    """Its row 0 is an evaluation of the potential that was there before."""
    assert count_on(_places(*iterations)) == expected


def test_each_step_counts_for_itself() -> None:
    """A restart in one step of a ladder moves no other."""
    places = [*_places(0, 1, 0, 1), *_places(0, 1, 2, step=1), *_places(0, 0, 1, step=2)]
    assert count_on(places) == [0, 1, 1, 2, 0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize(
    ("metrics", "test", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 0, 1, 2], [0, 2, 4, 0, 2, 3], [0, 2, 4, 5, 7, 8]),
        ([0, 1, 2, 3, 0, 1, 2], [0, 0], [0, 3]),
        ([0, 0, 1, 2], [0, 2, 3], [0, 2, 3]),
        ([0, 0, 1, 2], [0, 0, 2, 3], [0, 0, 2, 3]),
        ([0, 1, 2, 3, 0], [0, 2], [0, 2]),
        ([0, 1, 2, 3, 0], [0, 2, 0], [0, 2, 3]),
        ([0, 0, 1, 2, 0, 1], [0, 0, 2, 0, 2], [0, 0, 2, 2, 4]),
        ([0, 1, 2], [], []),
    ],
    ids=["both", "seldom", "at once", "at once, tested", "building", "built", "thrice", "nothing"],
)
def test_the_test_set_follows_the_training_set(
    metrics: list[int], test: list[int], expected: list[int]
) -> None:
    """Its own rows are too few to tell where a start began."""
    assert count_on_like(_places(*metrics), _places(*test)) == expected


_TABLES = st.lists(st.builds(Place, st.integers(0, 2), st.integers(0, 1), st.integers(0, 5)))


@given(_TABLES, _TABLES)
def test_damaged_tables_are_no_crash(metrics: list[Place], rows: list[Place]) -> None:
    """Whatever lines were lost, each row that is left gets a number that is not too small."""
    for numbers, table in ((count_on(metrics), metrics), (count_on_like(metrics, rows), rows)):
        assert len(numbers) == len(table)
        assert all(n >= place.iteration for n, place in zip(numbers, table, strict=True))
