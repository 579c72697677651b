"""From a local submission to a published generation, by the command line alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mlip_job.cli.generation_status import is_outside
from mlip_job.config import load_config
from mlip_job.registry import Registry
from mlip_job.registry.checkpoints import TrainingProgress
from mlip_job.runtime.environment import ProcessIdentity, SchedulerJob
from mlip_job.schedulers.base import JobHandle, JobState, JobStatus
from mlip_job.store.open import open_store
from tests.cli import Cli
from tests.generations import Family
from tests.support import rattled, write_database


@pytest.fixture
def config(tmp_path: Path) -> Path:
    family = Family(tmp_path)
    write_database(family.database, rattled(8))
    family.configure({"max_iter": 2})
    return family.config_path


@pytest.mark.pacemaker
def test_submitted_and_waited_for(cli: Cli, config: Path) -> None:
    """The plan that was shown is run; then generation and log exist."""
    shown = cli("-c", config, "submit", "-g", "1", "--dry-run")
    assert shown.code == 0, shown.err
    ended = cli("-c", config, "submit", "-g", "1", "--wait", "--json")
    assert ended.code == 0, ended.err
    (job,) = json.loads(ended.out)["jobs"]
    assert job["scheduler"] == "local"
    assert job["manifest"]["generation"] == 1
    assert "run --generation 1" in shown.out
    assert cli("-c", config, "verify", "-g", "1").code == 0
    assert "published gen_01" in cli("-c", config, "logs", "-g", "1").out
    assert "gen_01" in cli("-c", config, "status").out
    again = cli("-c", config, "submit", "-g", "1")
    assert again.code == 73
    assert "gen_01" in again.err


def test_a_parent_that_is_not_published(cli: Cli, config: Path) -> None:
    """The submission says that the job fails unless its parent is published first."""
    ended = cli("-c", config, "submit", "-g", "2", "--wait")
    assert ended.code == 64
    note = "note: gen_02 is to start from gen_01, which is not published"
    assert note in ended.err
    family = Family(config.parent)
    family.set_training(start_from="none")
    values = yaml.safe_load(config.read_text())
    values["database"]["select"] = "status=nosuch"
    config.write_text(yaml.safe_dump(values))
    ended = cli("-c", config, "submit", "-g", "2", "--wait")
    assert (ended.code, "note: gen_02" in ended.err) == (65, False)


@pytest.fixture
def failed(cli: Cli, config: Path) -> Path:
    values = yaml.safe_load(config.read_text())
    values["database"]["select"] = "status=nosuch"
    values["submit"] = {"poll_interval": 0.5}
    config.write_text(yaml.safe_dump(values))
    assert cli("-c", config, "submit", "-g", "1", "--wait").code == 65
    return config


def test_a_run_started_by_hand_blocks_a_submission(cli: Cli, failed: Path) -> None:
    """Also after a failed job; `cancel` ends only jobs. This process has its claim."""
    registry = Registry(open_store(load_config(failed, environment={}).storage), "cu")
    claim = registry.claim(1, "20260101T000000Z-abcdef", stale_after_s=600)
    me = f"process {os.getpid()} of this machine"
    shown = json.loads(cli("-c", failed, "status", "-g", "1", "--json").out)
    assert (shown["state"], shown["job"], shown["exit_code"]) == ("running", None, None)
    assert shown["outside"] == f"attempt 20260101T000000Z-abcdef, started by hand, {me}"
    words = " ".join(cli("-c", failed, "status").out.split())  # without line breaks
    assert shown["outside"] in words

    ended = cli("-c", failed, "submit", "-g", "1")
    assert ended.code == 73
    assert "gen_01 is being trained: attempt 20260101T000000Z-abcdef, started by hand" in ended.err
    assert f"kill -TERM {os.getpid()}" in ended.err

    ended = cli("-c", failed, "cancel", "-g", "1")
    assert (ended.code, "had ended: failed" in ended.out) == (0, True)
    assert "gen_01 is being trained by no job of local: attempt 2026" in ended.err
    assert f"kill -TERM {os.getpid()} ends it, with a checkpoint" in ended.err
    ended = cli("-c", failed, "cancel", "-g", "2")
    assert (ended.code, "being trained" in ended.err) == (64, False)

    claim.release()
    shown = json.loads(cli("-c", failed, "status", "-g", "1", "--json").out)
    assert (shown["state"], shown["exit_code"], shown["outside"]) == ("failed", 65, None)
    assert "being trained" not in cli("-c", failed, "cancel", "-g", "1").err


@pytest.mark.parametrize(
    ("scheduler", "job", "state", "outside"),
    [
        (None, None, None, True),
        (None, "local 12-34", JobState.FAILED, True),
        (None, "slurm 12", JobState.PENDING, True),
        ("local 12-34", "local 12-34", JobState.RUNNING, False),
        ("local 12-34", "local 12-34", JobState.FAILED, False),
        ("slurm 12", "slurm 12;alps", JobState.FAILED, False),
        ("slurm 13", "slurm 12", JobState.FAILED, True),
        ("slurm 13", "slurm 12", JobState.RUNNING, False),
        ("kubernetes a/job/3", "kubernetes a/job", JobState.FAILED, False),
        ("kubernetes a/other", "kubernetes a/job", JobState.CANCELLED, True),
        ("slurm 13", None, None, True),
    ],
)
def test_runs_outside_a_job(
    scheduler: str | None, job: str | None, state: JobState | None, *, outside: bool
) -> None:
    """A claim that outlives its job for a while still belongs to that job."""
    kind, _, number = (scheduler or "").partition(" ")
    run = TrainingProgress(
        attempt="a1",
        live=True,
        certain=True,
        scheduler=SchedulerJob(kind=kind, id=number) if scheduler else None,
        process=ProcessIdentity.current(),
        checkpoint=None,
        seconds_per_iteration=None,
    )
    kind, _, number = (job or "").partition(" ")
    handle = JobHandle(kind, number, "name") if job is not None else None
    status = JobStatus(state, "") if state is not None else None
    assert is_outside(run, handle, status) is outside
    assert not is_outside(replace(run, live=False), handle, status)
    if job is not None:  # if the age of a claim is unknown, the scheduler decides
        assert not is_outside(replace(run, certain=False), handle, status)
    if scheduler == "slurm 13" and job is not None:  # a task of the array
        assert not is_outside(run, handle, status, member=True)


@pytest.mark.pacemaker
def test_an_ensemble_on_this_machine(cli: Cli, config: Path) -> None:
    ended = cli("-c", config, "submit", "-g", "1", "--ensemble", "2", "--wait", "--json")
    assert ended.code == 0, ended.err
    (job,) = json.loads(ended.out)["jobs"]
    committee = job["manifest"]["ensemble"]
    losses = {member["number"]: member["test_loss"] for member in committee["members"]}
    assert sorted(losses) == [1, 2]
    assert losses[committee["best"]] == min(losses.values())
    assert cli("-c", config, "logs", "-g", "1").out.count("published gen_01 in ") == 1
    assert cli("-c", config, "verify", "-g", "1").code == 0
