"""Calls in the background of a run, and the time of its stages."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlip_job.errors import StoreError
from mlip_job.generation.context import StageClock, every, within
from mlip_job.registry import AttemptPart, Timings


class _Calls:
    """Counts calls; the first ones raise the given errors."""

    def __init__(self, *errors: Exception) -> None:
        self.count = 0
        self._errors = list(errors)
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()
        if self._errors:
            raise self._errors.pop(0)

    def wait_for(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.count >= count, 30)


def test_it_is_called_again_and_again_until_the_end() -> None:
    calls = _Calls()
    with every(0.01, calls, "beating"):
        assert calls.wait_for(3)
    time.sleep(0.05)  # a call that had begun
    count = calls.count
    time.sleep(0.1)
    assert calls.count == count


@pytest.mark.parametrize(
    "error",
    [
        StoreError("the store is away"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        KeyError("a bug"),
    ],
    ids=["ours", "full disk", "bug"],
)
def test_an_error_is_logged_and_the_next_call_tries_again(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Otherwise a single failure would end all heartbeats, and the claim would be lost."""
    calls = _Calls(error)
    with every(0.01, calls, "beating"):
        assert calls.wait_for(3)
    (record,) = caplog.records
    assert record.getMessage().startswith("beating failed")
    assert str(error) in caplog.text
    assert (record.levelno == logging.ERROR) == isinstance(error, KeyError)


@pytest.mark.parametrize("error", [None, StoreError("the store is away"), OSError("full")])
def test_within_returns_whether_it_succeeded(error: Exception | None) -> None:
    calls = _Calls(*([error] if error else []))
    assert within(30, calls, "storing") == (error is None)
    assert calls.count == 1


def test_within_has_a_time_limit(
    caplog: pytest.LogCaptureFixture, release: Callable[[], None]
) -> None:
    started = time.monotonic()
    assert not within(0.1, release, "storing")
    assert time.monotonic() - started < 30
    assert "storing did not end within 0 s" in caplog.text


@pytest.fixture
def release() -> Iterator[Callable[[], None]]:
    event = threading.Event()
    yield lambda: event.wait(60) and None
    event.set()


def _fail_in(clock: StageClock) -> None:
    with clock.stage("fetch"):
        time.sleep(0.02)
        Path("/nowhere/at/all").stat()


def test_stages_add_up_from_the_start_of_the_job() -> None:
    """The time before the first stage is a stage too; failed stages count as well."""
    clock = StageClock(age_s=100.0)
    with clock.stage("checks"):
        time.sleep(0.02)
    with pytest.raises(FileNotFoundError):
        _fail_in(clock)
    with clock.stage("fetch"):
        time.sleep(0.02)
    seconds = clock.timings().stages_s
    assert list(seconds) == ["start_up", "checks", "fetch"]
    assert seconds["start_up"] >= 100.0
    assert seconds["fetch"] >= 0.04


def test_imports_of_the_process_count() -> None:
    """The kernel knows when a process was started; Python's clocks begin later."""
    code = (
        "import time; begun = time.monotonic(); time.sleep(0.3)\n"
        "from mlip_job.runtime.environment import process_age_s\n"
        "age = process_age_s(); print(age, time.monotonic() - begun)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outside = time.monotonic() - started
    age, inside = map(float, done.stdout.split())
    tick = 0.02
    assert inside - tick <= age <= outside + tick


def test_records_without_times_are_read() -> None:
    """Manifests and checkpoints of earlier versions have no times."""
    part = {"attempt": "a", "started": datetime.now(UTC), "iterations": 3}
    assert AttemptPart.model_validate(part).timings == Timings()
    assert Timings().to_trainer_s is None
