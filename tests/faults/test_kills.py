"""A job killed at any moment leaves no incomplete object, and the next run resumes."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import JobConfig
from mlip_job.generation import prepare, publish
from mlip_job.generation.fit import CheckpointWriter
from mlip_job.registry import Registry
from mlip_job.training.pacemaker.process import PacemakerWrapper
from tests.faults import jobs
from tests.faults.jobs import Job, MakeConfig
from tests.faults.replay import REPLAYED, both, replayed_pacemaker
from tests.faults.tally import Tally

KILL, TERM = signal.SIGKILL, signal.SIGTERM

_SLACK = timedelta(seconds=30)  # for storing a checkpoint on a busy machine

STAGES = {
    "claim": (Registry, "claim"),
    "export": (prepare, "find_or_build_dataset"),
    "publish dataset": (Registry, "publish_dataset"),
    "fit": (PacemakerWrapper, "fit"),
    "ship the end": (CheckpointWriter, "save_end"),
    "convert": (PacemakerWrapper, "export"),
    "evaluate": (publish, "evaluate_generation"),
    "report": (publish, "make_report"),
    "publish": (Registry, "publish"),
    "roll forward": (Registry, "roll_forward"),
    "move the pointer": (Registry, "_advance_latest"),
}


def kill_at(owner: Any, name: str, when: str, number: signal.Signals, call: int = 1) -> Any:
    """Return a fault: a signal right before or after the n-th call of a function."""

    def install() -> None:
        original = getattr(owner, name)
        calls = 0

        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and when == "before":
                os.kill(os.getpid(), number)
            result = original(*arguments, **options)
            if calls == call and when == "after":
                os.kill(os.getpid(), number)
            return result

        setattr(owner, name, wrapper)

    return install


def require_survived(
    config: JobConfig, directory: Path, killed: list[Job], tally: Tally, **options: Any
) -> None:
    for job in killed:
        assert job.code in (0, -KILL, 75), job.text()
        assert "Traceback" not in job.text()
    last = jobs.run_job(config, directory, **options)
    assert last.code == 0, last.text()
    manifest = jobs.require_complete(config)
    texts = [job.text() for job in (*killed, last)]
    tally.count_end(texts, manifest.headline.iterations)
    assert sum(text.count("published gen_01 in ") for text in texts) <= 1


def kill(job: Job, number: signal.Signals, config: JobConfig, tally: Tally) -> None:
    """Send a signal to a job, wait for its end, check the store, count lost iterations."""
    job.send(number)
    moment = datetime.now(UTC)
    job.wait()
    settle(job, config, tally)
    if job.code != 0 and (saved := registry_saved(config)) is not None:
        assert moment - saved < timedelta(seconds=config.run.checkpoint_interval) + _SLACK


def registry_saved(config: JobConfig) -> datetime | None:
    found = jobs.registry_of(config).checkpoints(1).found()
    return found[0].saved if found else None


def settle(job: Job, config: JobConfig, tally: Tally) -> None:
    jobs.require_whole_or_nothing(config)
    lost = jobs.iterations_reached(config) - jobs.iterations_safe(config)
    tally.kill_points += 1
    tally.iterations_lost += max(0, lost)


@pytest.mark.parametrize(
    ("stage", "when", "number"),
    [
        *((stage, "before", KILL) for stage in STAGES),
        *((stage, "after", TERM) for stage in ("publish dataset", "fit", "evaluate", "publish")),
    ],
)
def test_killed_at_a_stage_boundary(
    make_config: MakeConfig,
    tmp_path: Path,
    tally: Tally,
    stage: str,
    when: str,
    number: signal.Signals,
) -> None:
    """Finished stages are not repeated. The end of a stage is the start of the next."""
    config, replay = make_config(REPLAYED), replayed_pacemaker(tmp_path)
    fault = both(replay, kill_at(*STAGES[stage], when, number))
    job = jobs.run_job(config, tmp_path, fault=fault)
    assert job.code != 0 or number == TERM, job.text()
    settle(job, config, tally)
    require_survived(config, tmp_path, [job], tally, fault=replay)


@pytest.mark.pacemaker
@pytest.mark.parametrize(
    ("stage", "when", "number"), [("ship the end", "after", TERM), ("publish", "before", KILL)]
)
def test_killed_at_a_stage_boundary_of_a_real_fit(
    make_config: MakeConfig,
    tmp_path: Path,
    tally: Tally,
    stage: str,
    when: str,
    number: signal.Signals,
) -> None:
    config = make_config()
    job = jobs.run_job(config, tmp_path, fault=kill_at(*STAGES[stage], when, number))
    assert job.code != 0 or number == TERM, job.text()
    settle(job, config, tally)
    require_survived(config, tmp_path, [job], tally)


@pytest.mark.pacemaker
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_of_a_fit(
    make_config: MakeConfig, tmp_path: Path, tally: Tally, seed: int
) -> None:
    """Twice, with either signal, with and without a ladder: the published curve is continuous."""
    rng = random.Random(seed)
    ladder = (
        {"ladder_step": 3, "overrides": {"fit": {"ladder_type": "power_order"}}} if seed % 2 else {}
    )
    config = make_config({"functions_per_element": 6, "max_iter": 8, **ladder})
    killed = []
    for _ in range(2):
        job = jobs.start_job(config, tmp_path)
        job.wait_for_iteration()
        time.sleep(rng.uniform(0, 2))
        kill(job, rng.choice([KILL, TERM]), config, tally)
        killed.append(job)
    require_survived(config, tmp_path, killed, tally)
    jobs.require_repeatable(config, tmp_path)
