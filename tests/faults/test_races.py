"""Concurrent jobs for one generation: exactly one publishes it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mlip_job.config import JobConfig
from mlip_job.store.open import open_store
from tests.faults import jobs
from tests.faults.jobs import Job, MakeConfig
from tests.faults.replay import REPLAYED, both, replayed_pacemaker
from tests.faults.tally import Tally


@pytest.fixture(params=["directory", "s3"])
def config(request: pytest.FixtureRequest, make_config: MakeConfig) -> JobConfig:
    sections = {}
    if request.param == "s3":
        sections["storage"] = request.getfixturevalue("s3_bucket").model_dump()
    return make_config(REPLAYED, **sections)


def test_one_of_many_concurrent_jobs_publishes(
    config: JobConfig, tmp_path: Path, tally: Tally
) -> None:
    """The others name the running attempt, and end with 73 before they train."""
    slow = replayed_pacemaker(tmp_path, iteration_s=0.2)
    running = [jobs.start_job(config, tmp_path / str(n), fault=slow) for n in range(5)]
    codes = [job.wait() for job in running]
    assert sorted(codes) == [0, 73, 73, 73, 73], [job.text() for job in running]
    manifest = jobs.require_complete(config)
    tally.races += len(running)
    tally.count_end([job.text() for job in running], manifest.headline.iterations)
    for job in running:
        if job.code == 73:
            assert f"is being trained by attempt {manifest.attempt}" in job.text()
            assert "training in" not in job.text()
    jobs.require_repeatable(config, tmp_path)


def test_without_claims_still_one_publishes(
    config: JobConfig, tmp_path: Path, tally: Tally
) -> None:
    """A claim avoids duplicate work; the manifest decides which attempt publishes."""

    def ignore_claims() -> None:
        from mlip_job.registry import claim

        claim._require_abandoned = lambda *_: None  # type: ignore[assignment]

    fault = both(replayed_pacemaker(tmp_path, iteration_s=0.1), ignore_claims)
    running = [jobs.start_job(config, tmp_path / str(n), fault=fault) for n in range(4)]
    codes = [job.wait() for job in running]
    assert sorted(codes) == [0, 73, 73, 73], [job.text() for job in running]
    manifest = jobs.require_complete(config)
    tally.races += 4
    tally.count_end([job.text() for job in running], manifest.headline.iterations)


def test_a_suspended_job_loses_its_claim_and_ends(
    config: JobConfig, tmp_path: Path, tally: Tally
) -> None:
    """After a suspension longer than the claim's lifetime, the job notices and stops training."""
    run = config.run.model_copy(update={"heartbeat_interval": 0.2, "checkpoint_interval": 0.1})
    config = config.model_copy(update={"run": run})
    slow = replayed_pacemaker(tmp_path, iteration_s=1.0)
    first = jobs.start_job(config, tmp_path / "first", fault=slow)
    _wait_for_checkpoint(first, config)
    _freeze(first, config)
    time.sleep(4)  # ten missed beats, and the rounding of the store's clock
    second = jobs.run_job(config, tmp_path / "second", fault=replayed_pacemaker(tmp_path))
    assert second.code == 0, second.text()
    assert "taking over from attempt" in second.text()
    assert "which gave no sign of life for" in second.text()
    assert "resuming from iteration" in second.text()
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 73, first.text()
    manifest = jobs.require_complete(config)
    assert len(manifest.attempts) == 2
    tally.races += 2
    tally.count_end([first.text(), second.text()], manifest.headline.iterations)


def _wait_for_checkpoint(job: Job, config: JobConfig) -> None:
    checkpoints = jobs.registry_of(config).checkpoints(1)
    while not checkpoints.found():
        assert job.poll() is None, job.text()
        time.sleep(0.1)


def _freeze(job: Job, config: JobConfig) -> None:
    """Suspend a job, but not while it holds the lock of a directory store: all would wait."""
    lock = Path(config.storage.url) / ".lock"
    while True:
        os.kill(job.pid, signal.SIGSTOP)
        time.sleep(0.05)  # until it is suspended
        if not lock.is_file():
            return
        with lock.open("ab") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        os.kill(job.pid, signal.SIGCONT)
        time.sleep(0.05)


def test_clocks_may_differ(config: JobConfig, tmp_path: Path) -> None:
    """A live claim is not taken over by a machine whose clock is a year off."""
    registry = jobs.registry_of(config)
    held = registry.claim(1, "first", stale_after_s=60)

    def in_another_year() -> None:
        now = time.time
        time.time = lambda: now() + 365 * 86400

    job = jobs.run_job(config, tmp_path, fault=in_another_year)
    assert job.code != 0
    if job.code == 69:  # S3 itself rejects such a clock
        assert "clock" in job.text()
    else:
        assert job.code == 73, job.text()
    held.beat()
    assert held.lost_to is None
    assert open_store(config.storage).get("cu/generations/gen_01/claim.json")
