"""What fails only for now is tried again: for a while, with pauses, and said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from mlip_job import retries
from mlip_job.errors import DataError, StoreError
from mlip_job.retries import retrying

if TYPE_CHECKING:
    from collections.abc import Callable


class _Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("tenacity.nap.time.sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """Replace the clock that retries go by."""
    return _Clock(monkeypatch)


def _failing(clock: _Clock, times: int, *, takes: float = 0.0) -> Callable[[], str]:
    """Return a call that fails so many times and takes so many seconds each time."""
    left = [times]

    def call() -> str:
        clock.now += takes
        if left[0] == 0:
            return "done"
        left[0] -= 1
        raise StoreError("the network is away", transient=True)

    return call


def test_a_passing_failure_is_waited_out_and_logged(
    clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """With pauses that grow, and a line for each that says why and how long."""
    with caplog.at_level(logging.WARNING, logger=retries.__name__):
        assert retrying(_failing(clock, 4), 300) == "done"
    assert len(clock.sleeps) == 4
    assert clock.sleeps == sorted(clock.sleeps)
    assert clock.sleeps[-1] > 3 * clock.sleeps[0]
    assert [record.getMessage() for record in caplog.records] == [
        f"the network is away; trying again in {pause:.1f} s" for pause in clock.sleeps
    ]


def test_patience_ends(clock: _Clock) -> None:
    """The last error is raised within the time, and pauses stay short enough to notice a return."""
    with pytest.raises(StoreError, match="the network is away"):
        retrying(_failing(clock, 10_000), 300)
    assert 200 < sum(clock.sleeps) < 300
    assert max(clock.sleeps) < 31


def test_time_counts_from_the_first_failure(clock: _Clock) -> None:
    """An export that ran for an hour before the server went away is tried again."""
    assert retrying(_failing(clock, 1, takes=3600.0), 300) == "done"


@pytest.mark.parametrize(
    "error", [StoreError("access denied"), DataError("a row is damaged"), ValueError("a bug")]
)
def test_what_stays_wrong_fails_at_once(clock: _Clock, error: Exception) -> None:
    """No pause hides a mistake."""

    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        retrying(call, 300)
    assert clock.sleeps == []


def test_no_patience_is_one_try(clock: _Clock) -> None:
    """As at a terminal, where a person decides."""
    with pytest.raises(StoreError):
        retrying(_failing(clock, 1), 0)
    assert clock.sleeps == []
