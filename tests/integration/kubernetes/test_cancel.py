"""Cancelling gives a run time for its checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlip_job.errors import ConflictError
from mlip_job.schedulers.base import JobRequest, JobState
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from tests.cli import Cli
from tests.integration.kubernetes.conftest import Submit
from tests.servers.node import Node, wait_for


def test_cancelling_waits_for_the_pod(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    config_file: Path,
    cli: Cli,
    node: Node,
    namespace: str,
) -> None:
    """The pod is stopped and gets its grace period; the Job is kept until it has ended."""
    plan = scheduler.plan(request_for())
    handle = scheduler.submit(plan)
    pod = node.pod(namespace, handle.name)
    node.start(pod)
    command = [sys.executable, "-m", "mlip_job", "-c", str(config_file), "cancel", "-g", "4"]
    cancelling = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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
    assert cancelling.poll() is None
    node.end(pod, 75)
    node.remove(pod)
    printed, _ = cancelling.communicate(timeout=60)
    assert printed == f"Job {handle.id} of gen_04 is gone\n"
    assert cancelling.returncode == 0
    assert scheduler.status(handle).state is JobState.GONE
    assert scheduler.find("cu-ni", 4) is None
    scheduler.cancel(handle)  # a second time changes nothing
    again = cli("-c", config_file, "cancel", "-g", 4)
    assert (again.code, "kubernetes knows no job of gen_04" in again.err) == (64, True)


def test_cancelling_need_not_wait(
    scheduler: KubernetesScheduler,
    submit: Submit,
    config_file: Path,
    cli: Cli,
    node: Node,
    namespace: str,
) -> None:
    """It returns once the pod is being stopped; a second call has the same result."""
    handle = submit()
    pod = node.pod(namespace, handle.name)
    node.start(pod)
    for _ in range(2):
        ended = cli("-c", config_file, "cancel", "-g", 4, "--no-wait")
        assert ended.code == 0, ended.err
        assert ended.out == f"Job {handle.id} of gen_04 is being cancelled, and still running\n"
    assert node.core.read_namespaced_pod(pod.metadata.name, namespace).metadata.deletion_timestamp
    node.remove(pod)
    wait_for(lambda: scheduler.find("cu-ni", 4) is None, "the end of a cancelled Job")


def test_an_ended_job_is_kept(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    handle = submit()
    node.end(node.pod(namespace, handle.name), 0)
    wait_for(lambda: scheduler.status(handle).state.ended, "the end")
    scheduler.cancel(handle)
    assert scheduler.status(handle).state is JobState.SUCCEEDED
