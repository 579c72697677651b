"""Signals of schedulers stop a run in an orderly way, once."""

from __future__ import annotations

import os
import signal

import pytest

from mlip_job.errors import InterruptedRunError
from mlip_job.runtime.signals import STOP_SIGNALS, StopRequest


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_raises_the_error_to_end_with(number: signal.Signals) -> None:
    """Exit code 75: a scheduler shall start it again."""
    with (
        pytest.raises(InterruptedRunError, match=f"stopped by {number.name}") as caught,
        StopRequest(),
    ):
        _send(number)
    assert caught.value.exit_code == 75


def test_all_signals_of_schedulers_are_known() -> None:
    """Slurm's --signal=USR1, Kubernetes' TERM, a terminal's INT."""
    assert {s.name for s in STOP_SIGNALS} == {"SIGTERM", "SIGINT", "SIGUSR1"}


def test_the_second_signal_does_not_disturb_the_clean_up() -> None:
    """Slurm sends USR1 first and TERM later, while the checkpoint is stored."""
    cleaned = False

    def run() -> None:
        nonlocal cleaned
        try:
            _send(signal.SIGUSR1)
        finally:
            _send(signal.SIGTERM)
            _send(signal.SIGINT)
            cleaned = True

    with pytest.raises(InterruptedRunError, match="SIGUSR1"), StopRequest():
        run()
    assert cleaned


def test_a_deferred_signal_waits_to_be_asked_for() -> None:
    """While pacemaker runs, whoever follows it looks."""
    with StopRequest() as stop:
        assert stop.error() is None
        with stop.deferred():
            _send(signal.SIGTERM)
            error = stop.error()
        assert isinstance(error, InterruptedRunError)
        assert "SIGTERM" in error.message
        assert stop.received == signal.SIGTERM


def test_deferring_ends_where_it_began() -> None:
    """Also after an error within; the next signal raises again."""
    with StopRequest() as stop:
        with pytest.raises(ValueError, match="x"), stop.deferred():
            raise ValueError("x")
        with pytest.raises(InterruptedRunError):
            _send(signal.SIGTERM)


def test_handlers_are_put_back() -> None:
    """Whatever they were: a library must not change its caller."""
    heard: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    others = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGUSR1) is not others[signal.SIGUSR1]
        assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == others
        _send(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, previous)
