"""Many fits, killed anywhere, with a stand-in that replays a real run: see `make faults-long`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING

from mlip_job.pipeline import attempt
from mlip_job.training import process, programs
from tests.faults import jobs, standin
from tests.plain_evaluations import make_evaluation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.config import JobConfig
    from tests.faults.jobs import Job
    from tests.faults.tally import Tally

POINTS = int(os.environ.get("MLIP_JOB_TEST_FAULT_POINTS", "60"))
_KILLED_AGAIN = 0.3  # the fraction of killed jobs whose next attempt is killed too


def test_killed_anywhere(
    make_config: Callable[..., JobConfig],
    tmp_path: Path,
    tally: Tally,
) -> None:
    """From its first to its last moment, with either signal, again and again."""
    rng = random.Random(20260101)
    programs_directory = _programs(tmp_path)
    config = make_config(
        {"functions_per_element": 15, "max_iter": 8, "ladder_step": 5},
        run={
            "checkpoint_interval": 0.05,
            "heartbeat_interval": 0.2,
            "retry_timeout": 5,
            "stop_timeout": 5,
        },
    )

    def at_speed() -> None:
        process._POLL_SECONDS = 0.02
        find = process.find_program = lambda name: programs_directory / name  # type: ignore[assignment]
        programs.find_program = find
        # What is replayed was fitted to other data.
        attempt.evaluate_generation = lambda *_: make_evaluation()

    done, longest = 0, 0.0
    while done < POINTS:
        killed: list[Job] = []
        while longest and (not killed or rng.random() < _KILLED_AGAIN):
            job = jobs.start_job(config, tmp_path, fault=at_speed)
            time.sleep(rng.uniform(0, longest))
            job.send(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            job.wait()
            _require_sound(config, job, tally)
            killed.append(job)
            if job.code == 0:
                break
            done += 1
        started = time.monotonic()
        last = jobs.run_job(config, tmp_path, fault=at_speed)
        longest = longest or time.monotonic() - started
        assert last.code == 0, last.text()
        manifest = jobs.require_complete(config)
        assert manifest.headline.iterations == 24
        tally.count_end([job.text() for job in (*killed, last)], 24)
        for folder in ("store", "work"):
            shutil.rmtree(tmp_path / folder)
        for job in (*killed, last):
            job.log.unlink()


def _require_sound(config: JobConfig, job: Job, tally: Tally) -> None:
    assert job.code in (0, 75, -signal.SIGKILL, -signal.SIGTERM), job.text()
    assert "Traceback" not in job.text()
    jobs.require_whole_or_nothing(config)
    if job.code != 0:
        tally.kill_points += 1
        reached, safe = jobs.iterations_reached(config), jobs.iterations_safe(config)
        tally.iterations_lost += max(0, reached - safe)


def _programs(directory: Path) -> Path:
    """Make programs of pacemaker's names that run the stand-in."""
    folder = directory / "programs"
    folder.mkdir()
    for name in ("pacemaker", "pace_yaml2yace"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} "$@"\n')
        program.chmod(0o755)
    return folder
