"""Cancelling leaves a run the time for its checkpoint."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from mlip_job.errors import ConflictError
from mlip_job.schedulers.base import JobState
from tests.servers.node import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
    from tests.servers.node import Node


def test_cancelling_waits_for_the_pod(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """The pod is told to stop and gets its grace period; the Job is there until it has gone."""
    plan = scheduler.plan(request_for())
    handle = scheduler.submit(plan)
    pod = node.pod(namespace, handle.name)
    node.start(pod)
    cancelling = threading.Thread(target=scheduler.cancel, args=(handle,), daemon=True)
    cancelling.start()
    name = pod.metadata.name
    read = node.core.read_namespaced_pod
    stopped = wait_for(
        lambda: (p := read(name, namespace)).metadata.deletion_timestamp and p, "a stopped pod"
    )
    assert stopped.metadata.deletion_grace_period_seconds == 60
    status = scheduler.status(handle)
    assert (status.state, status.native) == (JobState.RUNNING, "Terminating")
    with pytest.raises(ConflictError, match="being cancelled"):
        scheduler.submit(plan)
    assert cancelling.is_alive()
    node.end(pod, 75)
    node.remove(pod)
    cancelling.join(30)
    assert not cancelling.is_alive()
    assert scheduler.status(handle).state is JobState.UNKNOWN
    assert scheduler.find("cu-ni", 4) is None
    scheduler.cancel(handle)  # once more changes nothing


def test_a_job_that_has_ended_is_kept(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """With its pod and the log in it."""
    handle = scheduler.submit(scheduler.plan(request_for()))
    node.end(node.pod(namespace, handle.name), 0)
    wait_for(lambda: scheduler.status(handle).state.ended, "the end")
    scheduler.cancel(handle)
    assert scheduler.status(handle).state is JobState.SUCCEEDED
