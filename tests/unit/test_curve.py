"""The tables of all starts of pacemaker become one, without a gap and without a repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_job.training.checkpoint import FitPosition
from mlip_job.training.pacemaker.tables import MetricsRow, Offset, join_tables

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HEADER = "ladder_step cycle_step iter_num loss nfuncs"
Rows = list[tuple[int, int, float]]
"""Ladder step, iteration and loss."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder."""
    return tmp_path_factory.mktemp("tables")


def _write(path: Path, rows: Iterable[tuple[int, int, float]]) -> Path:
    lines = [HEADER, *(f"{step} 0 {iteration} {loss} 5" for step, iteration, loss in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _join(
    folder: Path, old: Rows, new: Rows, offset: Offset, upto: FitPosition | None = None
) -> Rows:
    text = join_tables(_write(folder / "old", old), _write(folder / "new", new), offset, upto=upto)
    assert text is not None
    header, *lines = text.splitlines()
    assert header.split() == HEADER.split()
    return [(int(s), int(i), float(loss)) for s, _, i, loss, _ in map(str.split, lines)]


def test_a_start_is_numbered_on_from_where_it_began(folder: Path) -> None:
    """Its first row repeats the last one of the start before, which stays."""
    old = [(0, 0, 9.0), (0, 1, 8.0), (0, 2, 7.0)]
    new = [(0, 0, 7.01), (0, 1, 6.0)]
    assert _join(folder, old, new, Offset(0, 2)) == [*old, (0, 3, 6.0)]


def test_only_the_first_step_of_a_start_is_moved_within_itself(folder: Path) -> None:
    """The next steps of the ladder count from 0 again."""
    old = [(0, 0, 9.0), (0, 1, 8.0), (1, 0, 8.0), (1, 1, 7.0)]
    new = [(0, 0, 7.0), (0, 1, 6.0), (1, 0, 6.0), (1, 1, 5.0)]
    expected = [*old, (1, 2, 6.0), (2, 0, 6.0), (2, 1, 5.0)]
    assert _join(folder, old, new, Offset(1, 1)) == expected


def test_rows_beyond_a_position_are_left_out(folder: Path) -> None:
    """A checkpoint holds the rows that led to its potential, no more."""
    rows = [(0, 0, 9.0), (0, 1, 8.0), (1, 0, 8.0), (1, 1, 7.0), (1, 2, 6.0), (2, 0, 6.0)]

    def at(step: int, iteration: int, *, done: bool) -> Rows:
        upto = FitPosition(ladder_step=step, iteration=iteration, step_done=done, last_step=False)
        return _join(folder, [], rows, Offset(), upto)

    assert at(1, 1, done=False) == rows[:4]
    assert at(0, 1, done=True) == rows[:2]
    assert at(1, 1, done=True) == rows[:5]


def test_a_row_per_step_counts_with_the_step(folder: Path) -> None:
    """Tables of steps and cycles have no iterations: a row is there when the step is done."""
    (folder / "t").write_text("ladder_step cycle_step loss\n0 0 8.0\n1 0 7.0\n")

    def upto(*, done: bool) -> list[str]:
        position = FitPosition(ladder_step=1, iteration=3, step_done=done, last_step=False)
        text = join_tables(folder / "none", folder / "t", Offset(), upto=position)
        assert text is not None
        return [line.split()[0] for line in text.splitlines()[1:]]

    assert upto(done=False) == ["0"]
    assert upto(done=True) == ["0", "1"]
    moved = join_tables(folder / "none", folder / "t", Offset(2, 5))
    assert [line.split() for line in moved.splitlines()[1:]] == [
        ["2", "0", "8.0"],
        ["3", "0", "7.0"],
    ]


def test_restarts_within_a_start_are_numbered_on(folder: Path) -> None:
    """Pacemaker ran out of GPU memory and went on with smaller batches."""
    losses = [(0, 7.0), (1, 6.0), (2, 5.0), (3, 4.0), (0, 4.0), (1, 3.0)]
    new = [(0, iteration, loss) for iteration, loss in losses]
    old = [(0, n, 9.0 - n) for n in range(3)]
    expected = [*old, (0, 3, 6.0), (0, 4, 5.0), (0, 5, 4.0), (0, 6, 3.0)]
    assert _join(folder, old, new, Offset(0, 2)) == expected
    test = _write(folder / "test", [(0, 0, 3.0), (0, 2, 2.5), (0, 0, 2.0), (0, 2, 1.0)])
    text = join_tables(folder / "none", test, Offset(0, 2), metrics=folder / "new")
    assert [line.split()[2] for line in text.splitlines()[1:]] == ["2", "4", "5", "7"]


@pytest.mark.parametrize(
    "damaged", [b"0 0 2 7.0 1", b"0 0 2 7.\xff0 15\n", b"0 0 2 7.0\n", b"\0\n"]
)
def test_a_damaged_row_leaves_its_place_to_a_whole_one(folder: Path, damaged: bytes) -> None:
    """A kill cuts the last line; the next start writes it again."""
    old = _write(folder / "old", [(0, 0, 9.0), (0, 1, 8.0)])
    old.write_bytes(old.read_bytes() + damaged)
    new = _write(folder / "new", [(0, 0, 8.0), (0, 1, 7.0)])
    text = join_tables(old, new, Offset(0, 1))
    assert [line.split()[2:] for line in text.splitlines()[1:]] == [
        ["0", "9.0", "5"],
        ["1", "8.0", "5"],
        ["2", "7.0", "5"],
    ]


def test_a_table_that_is_absent_or_empty(folder: Path) -> None:
    """Before pacemaker's first row there is nothing to join."""
    assert join_tables(folder / "none", folder / "none", Offset()) is None
    (folder / "empty").touch()
    assert join_tables(folder / "none", folder / "empty", Offset()) is None
    rows = [(0, 0, 9.0)]
    old = _write(folder / "old", rows)
    for new in ("none", "empty"):
        assert join_tables(old, folder / new, Offset(0, 5)) == join_tables(
            folder / "none", old, Offset()
        )


def test_every_digit_is_kept(folder: Path) -> None:
    """Figures are passed on as text."""
    (folder / "t").write_text(f"{HEADER}\n0 0 0 0.36493819398394491234 5\n0 0 1 nan 5\n")
    text = join_tables(folder / "none", folder / "t", Offset())
    assert "0.36493819398394491234" in text
    assert text.splitlines()[2].split() == ["0", "0", "1", "nan", "5"]


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    cut=st.integers(0, 40),
    garbage=st.binary(max_size=10).map(b"\xff".__add__),
)
def test_however_often_a_fit_is_killed_its_curve_is_one(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: int, garbage: bytes
) -> None:
    """Each start goes on from any iteration of the ones before; its table may end in garbage."""
    folder = tmp_path_factory.mktemp("tables")
    history = folder / "history"
    reached = 0
    for length in lengths:
        rows = [(0, n, 100.0 - reached - n) for n in range(length + 1)]
        table = _write(folder / "metrics", rows)
        data = table.read_bytes()
        table.write_bytes(data[: max(len(HEADER) + 1, len(data) - cut)] + garbage)
        text = join_tables(history, table, Offset(0, reached))
        assert text is not None
        history.write_text(text)
        iterations = [int(line.split()[2]) for line in text.splitlines()[1:]]
        assert iterations == list(range(len(iterations)))
        reached = max(reached, len(iterations) - 1)
    losses = [float(line.split()[3]) for line in history.read_text().splitlines()[1:]]
    assert losses == [100.0 - n for n in range(len(losses))]


def test_progress_shows_places_in_the_whole_fit() -> None:
    """Row by row, as the tables are joined."""
    offset = Offset(2, 30)
    assert offset.shift(MetricsRow(0, 0, 4)) == MetricsRow(2, 0, 34)
    assert offset.shift(MetricsRow(1, 0, 4)) == MetricsRow(3, 0, 4)
    assert offset.shift(MetricsRow(None, None, 4)) == MetricsRow(None, None, 34)
    assert Offset().shift(MetricsRow(1, 2, 3)) == MetricsRow(1, 2, 3)
