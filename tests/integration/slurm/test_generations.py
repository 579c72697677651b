"""Generations trained by the real pacemaker on a real Slurm cluster, with failures of jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from mlip_job.config import load_config
from mlip_job.registry import Manifest, MemberRegistry
from tests.faults.jobs import require_complete
from tests.generations import GRACE
from tests.integration.slurm.conftest import LONG, Family

pytestmark = pytest.mark.pacemaker


def _require_published(family: Family) -> Manifest:
    """Check that one generation results: complete, once, with one learning curve."""
    manifest = require_complete(load_config(family.path, environment={}))
    assert len(manifest.attempts) > 1
    assert family.log().count("published gen_01 in ") == 1
    assert "Traceback" not in family.log()
    return manifest


def _wait_until(condition: Callable[[], bool], family: Family) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, (family.status(), family.log())
        time.sleep(0.3)


def test_a_chain_of_generations_is_published(family: Family) -> None:
    family.configure(gres="gpu:1", require_gpu=False)
    ended = family.run("submit", "-g", "1..2", "--json")
    jobs = json.loads(ended.out)["jobs"]
    assert [job["generation"] for job in jobs] == [1, 2]
    assert "gen_01 submitted as slurm job" in ended.err

    first, second = jobs[0]["id"], jobs[1]["id"]
    dependency = family.cluster.run("squeue", "-h", "-j", second, "-o", "%E").strip()
    assert dependency.startswith(f"afterok:{first}")
    _wait_for_reason(family, 2, "Dependency")
    family.wait_for("published", generation=2)
    registry = family.registry()
    assert registry.numbers() == [1, 2]
    for generation, job in ((1, first), (2, second)):
        manifest = registry.get(generation)
        assert registry.verify(manifest) == []
        assert manifest.environment.scheduler is not None
        assert manifest.environment.scheduler.id == job
    assert "training in" in family.run("logs", "-g", 2).out
    ended = family.run("submit", "-g", 1)
    assert ended.code == 73
    assert "gen_01 of cu is published already" in ended.err
    shown = family.run("status")
    assert [line.split()[:2] for line in shown.out.splitlines() if "gen_" in line] == [
        ["gen_01", "published"],
        ["gen_02", "published"],
    ]


def test_cancelled_requeued_lost_and_out_of_time(family: Family) -> None:
    """The generation is published once; ``--fresh`` removes checkpoints of other jobs only."""
    family.configure(training=LONG, warning=60, max_requeues=50)
    run = family.cluster.run
    job = family.submit()
    family.wait_for_checkpoint()
    ended = family.run("cancel", "-g", 1)
    assert (ended.code, ended.out) == (0, f"slurm job {job} of gen_01 is cancelled\n")
    assert "stopped by SIG" in family.log()
    assert "it is not requeued: Slurm is ending it" in family.wait_for_log("not requeued")
    found = family.status()
    assert (found["state"], found["native_state"]) == ("cancelled", "CANCELLED")
    assert found["iterations"] > 0
    assert found["remedy"] == "mlip-job submit -g 1 resumes from there"
    assert "had ended: cancelled" in family.run("cancel", "-g", 1).out
    checkpoints = family.registry().checkpoints(1)
    (other,) = {found.attempt for found in checkpoints.found()}

    job = family.submit("-g", 1, "--fresh")
    _wait_until(
        lambda: {found.attempt for found in checkpoints.found()} not in ({other}, set()), family
    )
    (own,) = {found.attempt for found in checkpoints.found()}
    again = family.run("submit", "-g", 1, "--fresh")
    assert again.err == f"gen_01 is pending or running already as slurm job {job}\n"
    run("scontrol", "requeue", job)
    _wait_until(lambda: family.log().count("resuming from") == 1, family)

    family.cluster.kill_node()
    try:
        family.cluster.wait_for(job, "PENDING")
        waiting = family.status()
        assert (waiting["state"], waiting["iterations"] > 0) == ("pending", True)
    finally:
        family.cluster.start_node()
    _wait_until(lambda: family.log().count("resuming from") == 2, family)
    assert "which was an earlier run of the same job" in family.log()

    family.wait_for_checkpoint(beyond=waiting["iterations"])
    run("scontrol", "update", f"jobid={job}", "endtime=now+45")
    family.wait_for_log("stopped by SIGUSR1; the checkpoint of")
    family.wait_for_log("it is requeued, and resumes from its checkpoint")
    family.cluster.wait_for(job, "PENDING")
    run("scontrol", "update", f"jobid={job}", "timelimit=60")
    family.resume_briefly(job)
    family.wait_for("published")
    assert "pacemaker failed" not in family.log()
    manifest = _require_published(family)
    assert manifest.attempts[0].attempt == own
    assert manifest.environment.scheduler is not None
    assert manifest.environment.scheduler.id == job


def test_an_array_whose_tasks_were_killed_and_cancelled_trains_an_ensemble(family: Family) -> None:
    """Resubmitted, both resume; the last to end publishes the best member as the generation."""
    family.configure(training=LONG | {"max_iter": 20})
    job = family.submit("-g", 1, "--ensemble", 2)
    registry = family.registry()
    second = MemberRegistry(registry.store, registry.family, 2)
    _wait_until(lambda: bool(second.checkpoints(1).found()), family)
    task = family.cluster.run("squeue", "-h", "-j", f"{job}_2", "-o", "%A").strip()
    family.cluster.kill_processes(task)
    assert family.run("cancel", "-g", 1).code == 0
    _wait_until(lambda: family.status()["state"] in ("failed", "cancelled"), family)
    assert registry.numbers() == []

    assert family.submit("-g", 1, "--ensemble", 2) != job
    family.wait_for("published")
    manifest = registry.get(1)
    assert registry.verify(manifest) == []
    assert registry.latest() == 1
    assert manifest.ensemble is not None
    assert [(m.number, m.seed) for m in manifest.ensemble.members] == [(1, 42), (2, 43)]
    assert len({m.test_loss for m in manifest.ensemble.members}) == 2
    assert manifest.environment.scheduler is not None
    assert manifest.environment.scheduler.kind == "slurm"
    own = second.find_own(1)
    assert own is not None
    assert len(own.attempts) == 2
    assert own.attempts[0].iterations > 0
    logs = family.run("logs", "-g", 1).out
    for member in (1, 2):
        assert f"[{member}] member {member} of 2 of gen_01 is trained" in logs
    assert "not trained yet" in logs
    assert "Traceback" not in family.log()
    assert family.run("submit", "-g", 1, "--ensemble", 2).code == 73


def test_wait_resubmits_a_job_that_slurm_does_not_requeue(family: Family) -> None:
    """A preempted job at a site without requeue: the next step is printed and done."""
    training = LONG | {"max_iter": 20}
    family.configure(training=training, partition="spare", extra=["--exclusive"])
    waiting = family.start("submit", "-g", "next", "--wait")
    family.wait_for_checkpoint()
    first = family.status()["job"]["id"]
    family.cluster.run("scontrol", "update", f"jobid={first}", "requeue=0")
    family.preempt()
    family.wait_for_log("Slurm does not requeue it; this resumes from its checkpoint:")
    assert f"-c {family.work() / 'mlip-job.yaml'} submit -g 1" in family.log()
    assert family.cluster.wait_for(first, "PREEMPTED")
    record = json.loads((family.work() / f"slurm-{first}.ended").read_text())
    assert record == {"exit_code": 75, "resubmit": True}

    second = _wait_for_another(family, first)
    out, err = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, err
    assert f"gen_01: submitted again as slurm job {second}, to resume from its checkpoint" in err
    assert err.splitlines()[-1].startswith("gen_01: published, ")
    assert "generation     gen_01 of cu" in out
    _require_published(family)


def _wait_for_reason(family: Family, generation: int, text: str) -> None:
    """Wait until the reason of a pending job is known; Slurm may show another one for a second."""
    end = time.monotonic() + 120
    while text not in (family.wait_for("pending", generation=generation)["reason"] or ""):
        assert time.monotonic() < end, family.status(generation)
        time.sleep(0.3)


def _wait_for_another(family: Family, job: str) -> str:
    end = time.monotonic() + 120
    while (found := family.status()["job"]["id"]) == job:
        assert time.monotonic() < end, family.log()
        time.sleep(0.3)
    return str(found)


def test_a_fit_of_gracemaker_is_requeued(family: Family) -> None:
    """As one of pacemaker: the generation is resumed, and published once."""
    family.values["training"] = GRACE | {"max_iter": LONG["max_iter"]}
    family.configure()
    job = family.submit()
    family.wait_for_checkpoint()
    family.cluster.run("scontrol", "requeue", job)
    family.cluster.wait_for(job, "PENDING")
    family.resume_briefly(job)
    family.wait_for("published")
    assert _require_published(family).trainer == "grace-fs"
