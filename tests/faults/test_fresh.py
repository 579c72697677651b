"""``run --fresh``, interrupted and repeated: kept and removed state."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlip_job.config import JobConfig
from mlip_job.registry import Registry
from tests.faults import jobs
from tests.faults.jobs import MakeConfig
from tests.faults.replay import REPLAYED, both, replayed_pacemaker
from tests.faults.test_kills import kill_at

RUN = {"checkpoint_interval": 0.1, "heartbeat_interval": 0.3, "retry_timeout": 20}
HAND: dict[str, str] = {}
POD = {"MLIP_JOB_KUBERNETES_JOB": "mlip-cu-gen-01", "MLIP_JOB_KUBERNETES_JOB_UID": "0b7c"}
RECREATED = POD | {"MLIP_JOB_KUBERNETES_JOB_UID": "d41d"}
SLURM = {"SLURM_JOB_ID": "4711"}
REQUEUED = SLURM | {"SLURM_RESTART_COUNT": "1"}


def _within(variables: dict[str, str]) -> Callable[[], None]:
    return lambda: os.environ.update(variables)


def _stopped(config: JobConfig, directory: Path, variables: dict[str, str], *options: str) -> str:
    """Run a job until it has stored a checkpoint, and stop it; return the attempt's name."""
    checkpoints = jobs.registry_of(config).checkpoints(1)
    before = {found.attempt for found in checkpoints.found()}
    slow = replayed_pacemaker(directory, iteration_s=0.5)
    job = jobs.start_job(config, directory, *options, fault=both(slow, _within(variables)))
    end = time.monotonic() + 300
    while not (new := [c.attempt for c in checkpoints.found() if c.attempt not in before]):
        assert job.poll() is None, job.text()
        assert time.monotonic() < end, job.text()
        time.sleep(0.1)
    job.send(signal.SIGTERM)
    assert job.wait() == 75, job.text()
    return new[0]


def _ended(
    config: JobConfig, directory: Path, variables: dict[str, str]
) -> tuple[jobs.Job, list[str]]:
    """Run a job with ``--fresh`` to its end; return the attempts of the published generation."""
    replay = replayed_pacemaker(directory)
    job = jobs.run_job(config, directory, "--fresh", fault=both(replay, _within(variables)))
    assert job.code == 0, job.text()
    return job, [part.attempt for part in jobs.require_complete(config).attempts]


@pytest.mark.parametrize(
    ("first", "second", "resumes"),
    [
        pytest.param(HAND, HAND, False, id="by hand"),
        pytest.param(POD, POD, True, id="a pod that replaces another"),
        pytest.param(POD, RECREATED, False, id="a Job of the same name"),
        pytest.param(SLURM, REQUEUED, True, id="a requeued job"),
        pytest.param(SLURM, SLURM, False, id="twice in an allocation"),
    ],
)
def test_only_state_of_the_same_job_is_kept(
    make_config: MakeConfig,
    tmp_path: Path,
    first: dict[str, str],
    second: dict[str, str],
    *,
    resumes: bool,
) -> None:
    config = make_config(REPLAYED, run=RUN)
    _stopped(config, tmp_path, HAND)
    own = _stopped(config, tmp_path, first, "--fresh")
    assert {found.attempt for found in jobs.registry_of(config).checkpoints(1).found()} == {own}
    job, attempts = _ended(config, tmp_path, second)
    assert (attempts[0] == own) is resumes
    assert len(attempts) == 1 + resumes
    assert ("resuming from" in job.text()) is resumes


@pytest.mark.parametrize(("first", "second"), [(POD, POD), (SLURM, REQUEUED)])
def test_a_job_killed_before_it_removed_old_state_removes_it_later(
    make_config: MakeConfig, tmp_path: Path, first: dict[str, str], second: dict[str, str]
) -> None:
    """It held the claim and stored nothing: all state belongs to another run."""
    config = make_config(REPLAYED, run=RUN)
    _stopped(config, tmp_path, HAND)
    die = kill_at(Registry, "claim", "after", signal.SIGKILL)
    killed = jobs.run_job(config, tmp_path, "--fresh", fault=both(_within(first), die))
    assert killed.code == -signal.SIGKILL, killed.text()
    job, attempts = _ended(config, tmp_path, second)
    assert len(attempts) == 1
    assert "resuming from" not in job.text()
