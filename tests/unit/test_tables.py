"""Pacemaker's tables are read as far as they can be, and nothing is made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlip_job.training.pacemaker.tables import TableFollower, read_table

DATA = Path(__file__).parent.parent / "data" / "pacemaker"
LADDER = DATA / "c_ladder" / "metrics.txt"
HEADER = "ladder_step cycle_step iter_num loss rmse_epa rmse_f_comp nfuncs\n"


def test_a_real_table_is_read_whole() -> None:
    """Three ladder steps of eight iterations each; figures as they stand in the file."""
    table = read_table(LADDER)
    assert table.dropped == 0
    assert len(table.rows) == 27
    last = table.rows[-1]
    assert (last.ladder_step, last.cycle_step, last.iter_num) == (2, 0, 8)
    assert last.loss == 0.12029631222181905
    assert last.rmse_energy_ev_per_atom == 0.1794237685800807
    assert last.rmse_force_ev_per_angstrom == 0.3295808357139409
    assert (last.nfuncs, last.ncoefs) == (15, 66)


def test_columns_that_are_missing_are_not_known() -> None:
    """The cycle tables have no iteration."""
    row = read_table(DATA / "c_ladder" / "cycle_metrics.txt").rows[0]
    assert row.iter_num is None
    assert row.cycle_step == 0


def test_absent_and_empty_tables_have_no_rows(tmp_path: Path) -> None:
    """Pacemaker writes the header before there is anything to say."""
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
    """Cut short, merged, too long, no numbers: left out, and the reader knows."""
    path = tmp_path / "metrics.txt"
    path.write_text(HEADER + line, encoding="latin-1")
    table = read_table(path)
    assert (len(table.rows), table.dropped) == (rows, dropped)


def test_what_is_no_finite_number_is_not_known(tmp_path: Path) -> None:
    """A diverged fit has no RMSE, rather than one of nan."""
    path = tmp_path / "metrics.txt"
    path.write_text(HEADER + "0 0 1 nan inf 0.2 15\n")
    row = read_table(path).rows[0]
    assert row.loss is None
    assert row.rmse_energy_ev_per_atom is None
    assert row.rmse_force_ev_per_angstrom == 0.2


def test_columns_may_stand_in_another_order(tmp_path: Path) -> None:
    """They are found by name; unknown ones are passed over."""
    path = tmp_path / "metrics.txt"
    path.write_text("new_column loss iter_num\n7 0.5 3\n")
    row = read_table(path).rows[0]
    assert (row.loss, row.iter_num) == (0.5, 3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 900), max_size=60))
def test_following_a_growing_table_gives_the_same_rows(tmp_path: Path, steps: list[int]) -> None:
    """However the writes fall, no row is lost, halved or seen twice."""
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


def test_a_table_that_is_begun_anew_is_followed_from_its_start(tmp_path: Path) -> None:
    """Every start of pacemaker overwrites its tables."""
    path = tmp_path / "metrics.txt"
    follower = TableFollower(path)
    path.write_text(HEADER + "0 0 0 9 1 1 15\n0 0 1 8 1 1 15\n")
    assert len(follower.poll()) == 2
    path.write_text(HEADER + "0 0 0 7 1 1 15\n")
    assert [row.loss for row in follower.poll()] == [7.0]
