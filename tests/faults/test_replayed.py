"""Many replayed fits, killed at any moment: see `make faults-long`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from mlip_job.config import JobConfig
from tests.faults import jobs
from tests.faults.jobs import Job, MakeConfig
from tests.faults.replay import REPLAYED, REPLAYED_ITERATIONS, replayed_pacemaker
from tests.faults.tally import Tally

POINTS = int(os.environ.get("MLIP_JOB_TEST_FAULT_POINTS", "10"))
_KILLED_AGAIN = 0.3  # fraction of killed jobs whose next attempt is killed too


def test_killed_anywhere(make_config: MakeConfig, tmp_path: Path, tally: Tally) -> None:
    """From the first to the last moment, with either signal, repeatedly."""
    rng = random.Random(20260101)
    replay = replayed_pacemaker(tmp_path)
    config = make_config(
        REPLAYED,
        run={
            "checkpoint_interval": 0.05,
            "heartbeat_interval": 0.2,
            "retry_timeout": 5,
            "stop_timeout": 5,
        },
    )

    done, longest = 0, 0.0
    while done < POINTS:
        killed: list[Job] = []
        while longest and (not killed or rng.random() < _KILLED_AGAIN):
            job = jobs.start_job(config, tmp_path, fault=replay)
            time.sleep(rng.uniform(0, longest))
            job.send(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            job.wait()
            _require_sound(config, job, tally)
            killed.append(job)
            if job.code == 0:
                break
            done += 1
        started = time.monotonic()
        last = jobs.run_job(config, tmp_path, fault=replay)
        longest = longest or time.monotonic() - started
        assert last.code == 0, last.text()
        manifest = jobs.require_complete(config)
        assert manifest.headline.iterations == REPLAYED_ITERATIONS
        tally.count_end([job.text() for job in (*killed, last)], REPLAYED_ITERATIONS)
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
