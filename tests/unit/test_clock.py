"""The time of a run's stages."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlip_job.generation.context import StageClock
from mlip_job.registry import AttemptPart, Timings
from mlip_job.training.pacemaker.log import LogParser


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


def test_a_checkpoint_includes_the_time_of_the_current_stage() -> None:
    """Otherwise it would be lost if the run were killed now."""
    clock = StageClock(age_s=10.0)
    with clock.stage("fit"):
        clock.phases.start(LogParser().state.phase_seconds)
        time.sleep(0.02)
        during = clock.timings()
        assert during.stages_s["fit"] >= 0.02
        assert during.phases_s["starting"] >= 0.02
        clock.phases.end()
    after = clock.timings()
    assert after.stages_s["fit"] >= during.stages_s["fit"]
    assert after.to_trainer_s == during.to_trainer_s is not None
    assert after.to_trainer_s >= 10.0


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
