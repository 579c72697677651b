"""``run --fresh`` that is stopped and started again: which state it keeps, and which it removes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.registry import Registry
from tests.faults import jobs
from tests.faults.test_kills import kill_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.config import JobConfig

pytestmark = pytest.mark.pacemaker

HAND: dict[str, str] = {}
POD = {"MLIP_JOB_KUBERNETES_JOB": "mlip-cu-gen-01", "MLIP_JOB_KUBERNETES_JOB_UID": "0b7c"}
MADE_ANEW = POD | {"MLIP_JOB_KUBERNETES_JOB_UID": "d41d"}
SLURM = {"SLURM_JOB_ID": "4711"}
REQUEUED = SLURM | {"SLURM_RESTART_COUNT": "1"}


def _stopped(config: JobConfig, directory: Path, variables: dict[str, str], *options: str) -> str:
    """Run a job until it has stored a checkpoint, and stop it; return the attempt's name."""
    checkpoints = jobs.registry_of(config).checkpoints(1)
    before = {found.attempt for found in checkpoints.found()}
    job = jobs.start_job(config, directory, *options, fault=lambda: os.environ.update(variables))
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
    """Run a job with ``--fresh`` to its end; return the attempts at what it has published."""
    job = jobs.run_job(config, directory, "--fresh", fault=lambda: os.environ.update(variables))
    assert job.code == 0, job.text()
    return job, [part.attempt for part in jobs.require_complete(config).attempts]


@pytest.mark.parametrize(
    ("first", "second", "goes_on"),
    [
        pytest.param(HAND, HAND, False, id="by hand"),
        pytest.param(POD, POD, True, id="a pod that replaces another"),
        pytest.param(POD, MADE_ANEW, False, id="a Job of the same name"),
        pytest.param(SLURM, REQUEUED, True, id="a requeued job"),
        pytest.param(SLURM, SLURM, False, id="twice in an allocation"),
    ],
)
def test_only_what_the_same_job_did_is_kept(
    make_config: Callable[..., JobConfig],
    tmp_path: Path,
    first: dict[str, str],
    second: dict[str, str],
    *,
    goes_on: bool,
) -> None:
    """What somebody else left is gone either way."""
    endless: Any = {"functions_per_element": 8, "max_iter": 100_000}
    config = make_config(endless)
    _stopped(config, tmp_path, HAND)
    own = _stopped(config, tmp_path, first, "--fresh")
    assert {found.attempt for found in jobs.registry_of(config).checkpoints(1).found()} == {own}
    job, attempts = _ended(make_config(endless | {"max_iter": 3}), tmp_path, second)
    assert (attempts[0] == own) is goes_on
    assert len(attempts) == 1 + goes_on
    assert ("going on from" in job.text()) is goes_on


@pytest.mark.parametrize(("first", "second"), [(POD, POD), (SLURM, REQUEUED)])
def test_a_job_that_died_before_it_started_over_still_does(
    make_config: Callable[..., JobConfig],
    tmp_path: Path,
    first: dict[str, str],
    second: dict[str, str],
) -> None:
    """It has held the claim and left no more; what it finds is another's."""
    endless: Any = {"functions_per_element": 8, "max_iter": 100_000}
    config = make_config(endless)
    _stopped(config, tmp_path, HAND)
    die = kill_at(Registry, "claim", "after", signal.SIGKILL)

    def fault() -> None:
        os.environ.update(first)
        die()

    killed = jobs.run_job(config, tmp_path, "--fresh", fault=fault)
    assert killed.code == -signal.SIGKILL, killed.text()
    job, attempts = _ended(make_config(endless | {"max_iter": 3}), tmp_path, second)
    assert len(attempts) == 1
    assert "going on from" not in job.text()
