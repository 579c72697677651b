"""Pacemaker's tables: read as far as possible, numbered across restarts, joined over starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlip_job.training.pacemaker.tables import (
    Offset,
    Place,
    TableFollower,
    count_on,
    count_on_like,
    join_tables,
    read_table,
)
from mlip_job.training.trainer import FitPosition

DATA = Path(__file__).parent.parent / "data" / "pacemaker"
LADDER = DATA / "c_ladder" / "metrics.txt"
HEADER = "ladder_step cycle_step iter_num loss rmse_epa rmse_f_comp nfuncs\n"


def test_a_real_table_is_read_completely() -> None:
    """Three ladder steps of eight iterations each; values as in the file."""
    table = read_table(LADDER)
    assert table.dropped == 0
    assert len(table.rows) == 27
    last = table.rows[-1]
    assert (last.ladder_step, last.cycle_step, last.iter_num) == (2, 0, 8)
    assert last.loss == 0.12029631222181905
    assert last.rmse_energy_ev_per_atom == 0.1794237685800807
    assert last.rmse_force_ev_per_angstrom == 0.3295808357139409
    assert (last.nfuncs, last.ncoefs) == (15, 66)
    cycle = read_table(DATA / "c_ladder" / "cycle_metrics.txt").rows[0]
    assert (cycle.iter_num, cycle.cycle_step) == (None, 0)


def test_absent_and_empty_tables_have_no_rows(tmp_path: Path) -> None:
    """Pacemaker writes the header first."""
    assert read_table(tmp_path / "absent.txt").rows == ()
    (tmp_path / "empty.txt").write_text("")
    assert read_table(tmp_path / "empty.txt").rows == ()
    (tmp_path / "header.txt").write_text(HEADER)
    assert read_table(tmp_path / "header.txt") == read_table(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    ("line", "rows", "dropped"),
    [
        ("0 0 1 0.5 0.1 0.2 15\n", 1, 0),
        ("0 0 1 nan inf -inf 15\n", 1, 0),
        ("0 0 1 0.5 0.1 0.2 15", 0, 1),
        ("0 0 1 0.50.1 0.2 15\n", 0, 1),
        ("0 0 1 0.5 0.1 0.2 15 7\n", 0, 1),
        ("0 0 one 0.5 0.1 0.2 15\n", 0, 1),
        ("\x00\xff garbage\n", 0, 1),
        ("\n", 0, 0),
    ],
)
def test_unreadable_lines_are_counted_not_guessed(
    tmp_path: Path, line: str, rows: int, dropped: int
) -> None:
    """Truncated, merged, too long, no numbers: skipped and counted."""
    path = tmp_path / "metrics.txt"
    path.write_text(HEADER + line, encoding="latin-1")
    table = read_table(path)
    assert (len(table.rows), table.dropped) == (rows, dropped)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """Others are ignored; numbers that are not finite are unknown."""
    path = tmp_path / "metrics.txt"
    path.write_text("new_column loss iter_num rmse_epa rmse_f_comp\n7 nan 3 inf 0.2\n")
    row = read_table(path).rows[0]
    assert (row.loss, row.iter_num) == (None, 3)
    assert (row.rmse_energy_ev_per_atom, row.rmse_force_ev_per_angstrom) == (None, 0.2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 900), max_size=60))
def test_following_a_growing_table_gives_the_same_rows(tmp_path: Path, steps: list[int]) -> None:
    """No row is lost, split or repeated, however the writes are divided."""
    text = LADDER.read_bytes()
    path = tmp_path / "metrics.txt"
    path.unlink(missing_ok=True)
    follower = TableFollower(path)
    assert list(follower.poll()) == []
    rows, written = [], 0
    for step in [*steps, len(text)]:
        written = min(len(text), written + step)
        path.write_bytes(text[:written])
        rows += follower.poll()
    assert tuple(rows) == read_table(LADDER).rows


def test_an_overwritten_table_is_followed_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    follower = TableFollower(path)
    path.write_text(HEADER + "0 0 0 9 1 1 15\n0 0 1 8 1 1 15\n")
    assert len(follower.poll()) == 2
    path.write_text(HEADER + "0 0 0 7 1 1 15\n")
    assert [row.loss for row in follower.poll()] == [7.0]


def _places(*iterations: int, step: int = 0) -> list[Place]:
    return [Place(step, 0, n) for n in iterations]


@pytest.mark.parametrize("case", ["b_single_test", "c_ladder", "e_cycles2", "f_earlystop_pyace"])
@pytest.mark.parametrize("table", ["metrics", "test_metrics"])
def test_without_restarts_nothing_changes(case: str, table: str) -> None:
    """Ladders and cycles always count from 0."""
    metrics, rows = (
        [r.place for r in read.rows]
        for read in (read_table(DATA / case / f"{name}.txt") for name in ("metrics", table))
    )
    assert count_on_like(metrics, rows) == [row.iteration for row in rows]
    assert count_on(metrics) == [row.iteration for row in metrics]


def test_a_fit_that_ran_out_of_memory_continues_counting() -> None:
    """In its sixth iteration; the test set was evaluated in every second."""
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
def test_a_restart_repeats_the_last_row_and_continues_counting(
    iterations: list[int], expected: list[int]
) -> None:
    """Its row 0 is an evaluation of the existing potential. Each ladder step counts for itself."""
    assert count_on(_places(*iterations)) == expected
    next_step = _places(0, 1, 2, step=1)
    assert count_on([*_places(*iterations), *next_step]) == [*expected, 0, 1, 2]


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
    assert count_on_like(_places(*metrics), _places(*test)) == expected


_TABLES = st.lists(st.builds(Place, st.integers(0, 2), st.integers(0, 1), st.integers(0, 5)))


@given(_TABLES, _TABLES)
def test_damaged_tables_are_no_crash(metrics: list[Place], rows: list[Place]) -> None:
    """Whichever lines are lost, the number of each remaining row is not too small."""
    for numbers, table in ((count_on(metrics), metrics), (count_on_like(metrics, rows), rows)):
        assert len(numbers) == len(table)
        assert all(n >= place.iteration for n, place in zip(numbers, table, strict=True))


HEADER_CURVE = "ladder_step cycle_step iter_num loss nfuncs"
Rows = list[tuple[int, int, float]]
"""Ladder step, iteration and loss."""


def _write(path: Path, rows: Iterable[tuple[int, int, float]]) -> Path:
    lines = [HEADER_CURVE, *(f"{step} 0 {iteration} {loss} 5" for step, iteration, loss in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _join(
    tmp_path: Path, old: Rows, new: Rows, offset: Offset, upto: FitPosition | None = None
) -> Rows:
    text = join_tables(
        _write(tmp_path / "old", old), _write(tmp_path / "new", new), offset, upto=upto
    )
    assert text is not None
    header, *lines = text.splitlines()
    assert header.split() == HEADER_CURVE.split()
    return [(int(s), int(i), float(loss)) for s, _, i, loss, _ in map(str.split, lines)]


def test_a_start_is_numbered_from_its_beginning(tmp_path: Path) -> None:
    """Its first row repeats the last one of the start before, which is kept."""
    old = [(0, 0, 9.0), (0, 1, 8.0), (0, 2, 7.0)]
    new = [(0, 0, 7.01), (0, 1, 6.0)]
    assert _join(tmp_path, old, new, Offset(0, 2)) == [*old, (0, 3, 6.0)]


def test_only_the_first_step_of_a_start_is_moved_within_itself(tmp_path: Path) -> None:
    """The next steps of the ladder count from 0 again."""
    old = [(0, 0, 9.0), (0, 1, 8.0), (1, 0, 8.0), (1, 1, 7.0)]
    new = [(0, 0, 7.0), (0, 1, 6.0), (1, 0, 6.0), (1, 1, 5.0)]
    expected = [*old, (1, 2, 6.0), (2, 0, 6.0), (2, 1, 5.0)]
    assert _join(tmp_path, old, new, Offset(1, 1)) == expected


def test_rows_beyond_a_position_are_excluded(tmp_path: Path) -> None:
    """A checkpoint holds the rows that led to its potential only."""
    rows = [(0, 0, 9.0), (0, 1, 8.0), (1, 0, 8.0), (1, 1, 7.0), (1, 2, 6.0), (2, 0, 6.0)]

    def at(step: int, iteration: int, *, done: bool) -> Rows:
        upto = FitPosition(ladder_step=step, iteration=iteration, step_done=done, last_step=False)
        return _join(tmp_path, [], rows, Offset(), upto)

    assert at(1, 1, done=False) == rows[:4]
    assert at(0, 1, done=True) == rows[:2]
    assert at(1, 1, done=True) == rows[:5]


def test_a_row_per_step_counts_with_the_step(tmp_path: Path) -> None:
    """Tables of steps and cycles have no iterations: a row exists once the step is finished."""
    (tmp_path / "t").write_text("ladder_step cycle_step loss\n0 0 8.0\n1 0 7.0\n")

    def upto(*, done: bool) -> list[str]:
        position = FitPosition(ladder_step=1, iteration=3, step_done=done, last_step=False)
        text = join_tables(tmp_path / "none", tmp_path / "t", Offset(), upto=position)
        assert text is not None
        return [line.split()[0] for line in text.splitlines()[1:]]

    assert upto(done=False) == ["0"]
    assert upto(done=True) == ["0", "1"]
    moved = join_tables(tmp_path / "none", tmp_path / "t", Offset(2, 5))
    assert [line.split() for line in moved.splitlines()[1:]] == [
        ["2", "0", "8.0"],
        ["3", "0", "7.0"],
    ]


def test_restarts_within_a_start_are_numbered_continuously(tmp_path: Path) -> None:
    """Pacemaker ran out of GPU memory and continued with smaller batches."""
    losses = [(0, 7.0), (1, 6.0), (2, 5.0), (3, 4.0), (0, 4.0), (1, 3.0)]
    new = [(0, iteration, loss) for iteration, loss in losses]
    old = [(0, n, 9.0 - n) for n in range(3)]
    expected = [*old, (0, 3, 6.0), (0, 4, 5.0), (0, 5, 4.0), (0, 6, 3.0)]
    assert _join(tmp_path, old, new, Offset(0, 2)) == expected
    test = _write(tmp_path / "test", [(0, 0, 3.0), (0, 2, 2.5), (0, 0, 2.0), (0, 2, 1.0)])
    text = join_tables(tmp_path / "none", test, Offset(0, 2), metrics=tmp_path / "new")
    assert [line.split()[2] for line in text.splitlines()[1:]] == ["2", "4", "5", "7"]


@pytest.mark.parametrize(
    "damaged", [b"0 0 2 7.0 1", b"0 0 2 7.\xff0 15\n", b"0 0 2 7.0\n", b"\0\n"]
)
def test_a_damaged_row_is_replaced_by_a_complete_one(tmp_path: Path, damaged: bytes) -> None:
    """A kill truncates the last line; the next start writes it again."""
    old = _write(tmp_path / "old", [(0, 0, 9.0), (0, 1, 8.0)])
    old.write_bytes(old.read_bytes() + damaged)
    new = _write(tmp_path / "new", [(0, 0, 8.0), (0, 1, 7.0)])
    text = join_tables(old, new, Offset(0, 1))
    assert [line.split()[2:] for line in text.splitlines()[1:]] == [
        ["0", "9.0", "5"],
        ["1", "8.0", "5"],
        ["2", "7.0", "5"],
    ]


def test_a_table_that_is_absent_or_empty(tmp_path: Path) -> None:
    """Before pacemaker's first row there is nothing to join."""
    assert join_tables(tmp_path / "none", tmp_path / "none", Offset()) is None
    (tmp_path / "empty").touch()
    assert join_tables(tmp_path / "none", tmp_path / "empty", Offset()) is None
    rows = [(0, 0, 9.0)]
    old = _write(tmp_path / "old", rows)
    for new in ("none", "empty"):
        assert join_tables(old, tmp_path / new, Offset(0, 5)) == join_tables(
            tmp_path / "none", old, Offset()
        )


def test_every_digit_is_kept(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(f"{HEADER_CURVE}\n0 0 0 0.36493819398394491234 5\n0 0 1 nan 5\n")
    text = join_tables(tmp_path / "none", tmp_path / "t", Offset())
    assert "0.36493819398394491234" in text
    assert text.splitlines()[2].split() == ["0", "0", "1", "nan", "5"]


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    cut=st.integers(0, 40),
    garbage=st.binary(max_size=10).map(b"\xff".__add__),
)
def test_a_fit_killed_many_times_has_one_curve(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: int, garbage: bytes
) -> None:
    """Each start resumes at any earlier iteration; its table may end in garbage."""
    folder = tmp_path_factory.mktemp("tables")
    history = folder / "history"
    reached = 0
    for length in lengths:
        rows = [(0, n, 100.0 - reached - n) for n in range(length + 1)]
        table = _write(folder / "metrics", rows)
        data = table.read_bytes()
        table.write_bytes(data[: max(len(HEADER_CURVE) + 1, len(data) - cut)] + garbage)
        text = join_tables(history, table, Offset(0, reached))
        assert text is not None
        history.write_text(text)
        iterations = [int(line.split()[2]) for line in text.splitlines()[1:]]
        assert iterations == list(range(len(iterations)))
        reached = max(reached, len(iterations) - 1)
    losses = [float(line.split()[3]) for line in history.read_text().splitlines()[1:]]
    assert losses == [100.0 - n for n in range(len(losses))]
