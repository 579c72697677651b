"""Generations that share one GPU through a real Kueue, on a real node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.kubernetes.families import Family
    from tests.servers.kueue import Kueue

pytestmark = pytest.mark.pacemaker


def test_a_generation_of_higher_priority_preempts(family: Family, kueue: Kueue) -> None:
    """Status names the quota that the pending one waits for, and why the other was evicted."""
    queue = kueue.make_queue(family.namespace, gpus=1)
    kueue.make_priority("urgent", 1000)
    family.configure(training={"functions_per_element": 8, "max_iter": 100_000}, queue=queue)
    family.submit(1)
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

    family.configure(priority_class="urgent")
    family.submit(2)
    family.wait_for("an eviction", lambda: "evicted" in str(family.status(1)["reason"]))
    evicted = family.status(1)
    assert "Preempted to accommodate a workload" in evicted["reason"]
