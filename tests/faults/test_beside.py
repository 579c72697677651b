"""The process beside a fit ends with its job, however that ends, and holds nothing up."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults import jobs
from tests.faults.speed import REPLAYED, REPLAYED_ITERATIONS, stand_in_for_pacemaker

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.config import JobConfig

_SECONDS_TO_STOP = 20.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_killed_while_the_test_set_is_measured_beside(
    make_config: Callable[..., JobConfig], tmp_path: Path, number: signal.Signals
) -> None:
    """No process is left, and the next attempt finishes the fit; here without a test set."""
    at_speed = stand_in_for_pacemaker(tmp_path, first="sleep 3")
    config = make_config(REPLAYED | {"test_evaluation": "beside", "validation_fraction": 0})
    job = jobs.start_job(config, tmp_path, fault=at_speed)
    job.wait_for_file("train.log") if number == signal.SIGKILL else job.wait_for_iteration()
    job.send(number)
    started = time.monotonic()
    job.wait()
    assert job.code in (-signal.SIGKILL, 75), job.text()
    assert "test set was not measured" not in job.text()
    while _session(job.pid):
        assert time.monotonic() - started < _SECONDS_TO_STOP, _session(job.pid)
        time.sleep(0.05)
    end = make_config(REPLAYED | {"test_evaluation": "end", "validation_fraction": 0})
    last = jobs.run_job(end, tmp_path, fault=at_speed)
    assert last.code == 0, last.text()
    manifest = jobs.require_complete(end)
    assert manifest.headline.iterations == REPLAYED_ITERATIONS


def _session(session: int) -> list[str]:
    """Return the living processes of a session (proc(5), stat)."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state, *rest = (directory / "stat").read_text().rpartition(")")[2].split()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(rest[2]) == session and state not in "ZX":
            found.append(command)
    return found
