"""The time that pacemaker's phases take, by the stamps of its log."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mlip_job.training.pacemaker.log import LogParser
from mlip_job.training.process import read_lines
from mlip_job.training.trainer import PhaseClock, added

DATA = Path(__file__).parent.parent / "data" / "pacemaker"


def _followed(case: str) -> LogParser:
    parser = LogParser()
    for line in read_lines(DATA / case / "train.log"):
        parser.feed(line)
    return parser


def test_graphs_of_all_ladder_steps_add_up() -> None:
    """Each of the three steps builds both anew; by hand from the stamps in the log."""
    seconds = _followed("c_ladder").state.phase_seconds()
    assert seconds["building_graph"] == pytest.approx(21.153 + 15.639 + 19.769, abs=0.002)
    assert seconds["building_test_graph"] == pytest.approx(8.277 + 8.509 + 18.913, abs=0.002)
    assert seconds["fitting"] == pytest.approx(1.079 + 1.092 + 2.098, abs=0.002)
    assert list(seconds) == [
        "starting", "loading_data", "building_graph", "building_test_graph", "fitting", "finished",
        "predicting",
    ]  # fmt: skip


def test_a_process_starts_before_its_first_line_and_ends_after_its_last() -> None:
    """Its imports take seconds."""
    state = _followed("c_ladder").state
    (_, first), last = state.phases[0], state.last_time
    assert last is not None
    alone = state.phase_seconds()
    whole = state.phase_seconds(first - timedelta(seconds=5), last + timedelta(seconds=2))
    assert whole["starting"] == pytest.approx(alone["starting"] + 5)
    assert whole["predicting"] == pytest.approx(alone["predicting"] + 2)
    assert sum(whole.values()) == pytest.approx((last - first).total_seconds() + 7)


def test_a_log_without_a_stamp_has_no_phases() -> None:
    """Unless it is known when its process was started."""
    now = datetime.now()  # noqa: DTZ005
    state = LogParser().state
    assert state.phase_seconds() == {}
    assert state.phase_seconds(now - timedelta(seconds=3), now) == {"starting": 3.0}


def _line(ago_s: float, message: str) -> str:
    stamp = datetime.now() - timedelta(seconds=ago_s)  # noqa: DTZ005
    return f"{stamp:%Y-%m-%d %H:%M:%S},{stamp.microsecond // 1000:03d} I - {message}"


def test_starts_add_up_also_while_one_is_running() -> None:
    """A fit that goes on from within a ladder's step has two of them in one attempt."""
    clock = PhaseClock()
    assert (clock.first_start, clock.seconds()) == (None, {})
    for start in (1, 2):
        log = LogParser()
        clock.start(lambda *times, log=log: log.state.phase_seconds(*times))
        if start == 1:
            first = clock.first_start
        log.feed(_line(60.0, "Start pacemaker"))
        log.feed(_line(50.0, "Running fit backend"))
        running = clock.seconds()["building_graph"]
        assert running == pytest.approx(50.0 * start, abs=5.0)
        clock.end()
    ended = clock.seconds()
    assert ended["building_graph"] == pytest.approx(100.0, abs=5.0)
    assert clock.first_start == first is not None
    assert clock.seconds() == ended


def test_sums_keep_the_order_of_what_came_first() -> None:
    """Stages are shown in the order in which they ran."""
    assert list(added({"b": 1.0, "a": 2.0}, {"c": 1.0, "a": 0.5}).items()) == [
        ("b", 1.0),
        ("a", 2.5),
        ("c", 1.0),
    ]
