"""Generations that share one GPU through a real Kueue, on a real node."""

from __future__ import annotations

import json

import pytest

from tests.integration.kubernetes.families import Family
from tests.servers.containers import CPU_IMAGE
from tests.servers.kueue import Kueue

pytestmark = pytest.mark.pacemaker

# Long enough to be preempted midway.
LONG = {"functions_per_element": 8, "max_iter": 15, "start_from": "none"}


def test_a_generation_of_higher_priority_preempts(family: Family, kueue: Kueue) -> None:
    """The evicted one stores a checkpoint, waits for quota, resumes; both are published once.

    Status names the quota that the pending one waits for, and why the other was evicted.
    """
    queue = kueue.make_queue(family.namespace, gpus=1)
    kueue.make_priority("urgent", 1000)
    family.configure(training=LONG, queue=queue)
    low = family.submit(1)
    family.wait_for_checkpoint()
    assert family.status(1)["native_state"] == "Running"

    family.submit(2)
    family.wait_for("no quota", lambda: "no quota" in str(family.status(2)["reason"]))
    held = family.status(2)
    assert (held["state"], held["native_state"]) == ("pending", "Suspended")
    assert "insufficient unused quota for nvidia.com/gpu" in held["reason"]
    assert "submit.kubernetes.priority_class" in held["remedy"]
    cancelled = family.run("cancel", "-g", "2")
    assert cancelled.code == 0, cancelled.err

    family.configure(training={"max_iter": 1}, priority_class="urgent")
    urgent = family.submit(2)
    family.wait_for("an eviction", lambda: "evicted" in str(family.status(1)["reason"]))
    evicted = family.status(1)
    assert "Preempted to accommodate a workload" in evicted["reason"]
    status = family.wait_for_end(urgent, 2)
    assert status["state"] == "published", status

    status = family.wait_for_end(low)
    assert status["state"] == "published", status
    assert family.registry.numbers() == [1, 2]
    for number, attempts, job in ((1, 2, low), (2, 1, urgent)):
        manifest = family.registry.get(number)
        assert family.registry.verify(manifest) == []
        assert len(manifest.attempts) == attempts
        assert sum(part.iterations for part in manifest.attempts) == manifest.headline.iterations
        assert manifest.environment.scheduler is not None
        assert manifest.environment.scheduler.id == f"{family.namespace}/{job}"
        assert manifest.environment.image == CPU_IMAGE
    logs = family.run("logs", "-g", "1").out
    assert "resuming from iteration" in logs
    assert "published gen_01 in s3://" in logs
    container, *_ = family.node.pods(family.namespace, low)[-1].status.container_statuses
    assert json.loads(container.state.terminated.message)["message"].startswith("published gen_01")
