"""Status of a Job on a real API server, from its first pod to its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlip_job.schedulers.base import JobHandle, JobRequest, JobState, JobStatus
from mlip_job.schedulers.kubernetes.manifest import from_yaml
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from tests.cli import Cli
from tests.integration.kubernetes.conftest import Submit
from tests.servers.kubernetes import ControlPlane
from tests.servers.node import GPUS, Node, wait_for


def until(
    scheduler: KubernetesScheduler, handle: JobHandle, condition: Callable[[JobStatus], Any]
) -> JobStatus:
    seen = []

    def look() -> JobStatus | None:
        seen.append(scheduler.status(handle))
        return seen[-1] if condition(seen[-1]) else None

    try:
        found: JobStatus = wait_for(look, "that status")
    except BaseException:
        print(seen[-1])  # noqa: T201 - shown where the test fails
        raise
    return found


# -- waiting --------------------------------------------------------------------------------------


def test_no_node_fits(scheduler: KubernetesScheduler, submit: Submit) -> None:
    handle = submit(gpus=GPUS + 1)
    status = until(scheduler, handle, lambda s: s.native == "Unschedulable")
    assert status.state is JobState.PENDING
    assert "Insufficient nvidia.com/gpu" in str(status.reason)
    assert "submit.kubernetes.gpus" in str(status.hint)


def test_a_volume_is_missing(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    handle = submit()
    pod = node.pod(namespace, handle.name)
    node.keep_waiting(pod, "ContainerCreating")
    node.core.create_namespaced_event(
        namespace,
        {
            "metadata": {"generateName": "mount-"},
            "involvedObject": {"kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
                               "namespace": namespace},
            "type": "Warning",
            "reason": "FailedMount",
            "message": 'configmap "mlip" not found',
        },
    )  # fmt: skip
    status = scheduler.status(handle)
    assert (status.state, status.native) == (JobState.PENDING, "FailedMount")
    assert 'configmap "mlip" not found' in str(status.reason)
    assert "same submission again" in str(status.hint)


def test_a_quota_is_used_up(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    node.core.create_namespaced_resource_quota(
        namespace,
        {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1"}}},
    )
    wait_for(
        lambda: node.core.read_namespaced_resource_quota("gpus", namespace).status.hard, "quota"
    )
    status = until(scheduler, submit(gpus=2), lambda s: s.native == "FailedCreate")
    assert status.state is JobState.PENDING
    assert "exceeded quota: gpus" in str(status.reason)
    assert "requests.nvidia.com/gpu=2" in str(status.reason)


def test_a_quota_on_what_pods_do_not_state(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    """The setting is named; with it, the pod is created within the quota."""
    hard = {"limits.cpu": "8", "limits.ephemeral-storage": "100Gi"}
    node.core.create_namespaced_resource_quota(
        namespace, {"metadata": {"name": "limits"}, "spec": {"hard": hard}}
    )
    wait_for(
        lambda: node.core.read_namespaced_resource_quota("limits", namespace).status.hard, "quota"
    )
    handle = submit()
    status = until(scheduler, handle, lambda s: s.native == "FailedCreate")
    assert status.state is JobState.PENDING
    assert "must specify limits.cpu" in str(status.reason)
    assert "set submit.kubernetes.cpu_limit, and submit it again" in str(status.hint)
    scheduler.cancel(handle)
    submit(cpu_limit=4, ephemeral_storage_limit="30Gi")
    (pod,) = wait_for(lambda: node.core.list_namespaced_pod(namespace).items, "the pod")
    limits = pod.spec.containers[0].resources.limits
    assert (limits["cpu"], limits["ephemeral-storage"]) == ("4", "30Gi")


# -- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_code", "words"), [(64, "configuration"), (70, "training failed"), (127, "not found")]
)
def test_a_permanent_failure_ends_the_job(
    scheduler: KubernetesScheduler,
    submit: Submit,
    node: Node,
    namespace: str,
    exit_code: int,
    words: str,
) -> None:
    """Immediately, although three retries are allowed, with the message of the run."""
    handle = submit(backoff_limit=3)
    said = json.dumps({"exit_code": exit_code, "message": "its own words", "hint": "its hint"})
    node.end(node.pod(namespace, handle.name), exit_code, message=said)
    status = until(scheduler, handle, lambda s: s.state.ended)
    assert (status.state, status.native) == (JobState.FAILED, "PodFailurePolicy")
    assert status.exit_code == exit_code
    assert words in str(status.reason)
    assert str(status.reason).endswith(": its own words")
    assert status.hint == "its hint"
    assert len(node.core.list_namespaced_pod(namespace).items) == 1


def test_no_node_is_of_the_architecture(scheduler: KubernetesScheduler, submit: Submit) -> None:
    handle = submit(node_selector={"kubernetes.io/arch": "arm64"})
    status = until(scheduler, handle, lambda s: s.native == "Unschedulable")
    assert "didn't match Pod's node affinity/selector" in str(status.reason)


def test_a_transient_failure_is_retried(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    """As often as configured; the final status names the last cause."""
    handle = submit(backoff_limit=0)
    node.end(node.pod(namespace, handle.name), 69, message="error: no route to host")
    status = until(scheduler, handle, lambda s: s.state.ended)
    assert (status.state, status.exit_code) == (JobState.FAILED, 69)
    assert status.native == "BackoffLimitExceeded"
    assert "backoff limit; last, exit code 69" in str(status.reason)
    assert "no route to host" in str(status.reason)


def test_a_restart_after_an_interruption_is_no_retry(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    """Exit code 75 resumes in another pod of the same Job, even without retries."""
    handle = submit(backoff_limit=0)
    first = node.pod(namespace, handle.name)
    node.start(first)
    node.end(first, 75)
    second = node.pod(namespace, handle.name, number=2)
    assert second.metadata.name != first.metadata.name
    status = scheduler.status(handle)
    assert status.state is JobState.PENDING
    assert "attempt 1 ended, exit code 75" in str(status.reason)
    node.start(second)
    assert scheduler.status(handle).state is JobState.RUNNING
    node.end(second, 0)
    assert until(scheduler, handle, lambda s: s.state.ended).state is JobState.SUCCEEDED


def test_a_disruption_does_not_count(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    """Even if the run reported the loss of its pacemaker as a failed training."""
    handle = submit(backoff_limit=0)
    first = node.pod(namespace, handle.name)
    node.start(first)
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    node.end(first, 70, conditions=[disrupted])
    node.start(node.pod(namespace, handle.name, number=2))
    status = scheduler.status(handle)
    assert status.state is JobState.RUNNING
    assert "attempt 1 ended, it was disrupted: PreemptionByScheduler" in str(status.reason)


# -- other containers ------------------------------------------------------------------------------


@pytest.fixture
def with_proxy(
    scheduler: KubernetesScheduler, request_for: Callable[..., JobRequest]
) -> Callable[[], JobHandle]:
    """Return a function that submits a Job into whose pod a service mesh injects a container."""

    def submit() -> JobHandle:
        plan = scheduler.plan(request_for(backoff_limit=3))
        manifests = from_yaml(plan.text)
        containers = manifests["Job"]["spec"]["template"]["spec"]["containers"]
        own = {key: containers[0][key] for key in ("image", "securityContext")}
        containers.append({"name": "istio-proxy", **own})
        return scheduler.submit(replace(plan, text=yaml.safe_dump_all(manifests.values())))

    return submit


def keep(node: Node, pod: Any, exit_code: int, message: str = "") -> None:
    fields = {"image": "", "imageID": "", "restartCount": 0}
    ended = {"exitCode": exit_code, "reason": "Error", "message": message}
    statuses = [
        {"name": "mlip-job", "ready": False, "state": {"terminated": ended}, **fields},
        {"name": "istio-proxy", "ready": True, "state": {"running": {}}, **fields},
    ]
    node.report(pod, phase="Running", state={}, containerStatuses=statuses)


@pytest.mark.parametrize(
    ("exit_code", "state", "reason"),
    [
        (0, JobState.SUCCEEDED, "exit code 0: published"),
        (70, JobState.FAILED, "exit code 70: the training failed: published"),
        (75, JobState.RUNNING, "exit code 75: it was stopped, its checkpoint is saved: published"),
    ],
)
def test_a_container_that_outlives_the_run_is_named(
    scheduler: KubernetesScheduler,
    with_proxy: Callable[[], JobHandle],
    config_file: Path,
    cli: Cli,
    node: Node,
    namespace: str,
    exit_code: int,
    state: JobState,
    reason: str,
) -> None:
    """With the exit code of the run; the Job continues until it is cancelled."""
    handle = with_proxy()
    pod = node.pod(namespace, handle.name)
    node.start(pod)
    node.log(pod).say("a line")
    keep(node, pod, exit_code, "published")
    status = scheduler.status(handle)
    assert (status.state, status.native, status.exit_code) == (state, "NotReady", exit_code)
    reason = f"the run has ended, {reason}; the container istio-proxy still runs and keeps the pod"
    assert status.reason == reason
    assert scheduler.active("cu-ni", 4) == [handle]
    shown = cli("-c", config_file, "status", "-g", 4)
    assert shown.code == 0
    assert reason in shown.out
    assert "mlip-job cancel deletes the Job" in shown.out
    node.log(pod).end()
    if state.ended:
        assert list(scheduler.logs(handle, follow=True)) == ["a line"]
    assert cli("-c", config_file, "cancel", "-g", 4, "--no-wait").code == 0
    node.remove(pod)
    wait_for(lambda: scheduler.find("cu-ni", 4) is None, "the end of a cancelled Job")


# -- ensembles ------------------------------------------------------------------------------------


def test_an_ensemble_counts_its_members(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    handle = submit(ensemble=3)
    job = node.batch.read_namespaced_job(handle.name, namespace)
    assert (job.spec.completion_mode, job.spec.completions) == ("Indexed", 3)

    def alive() -> list[Any]:
        pods = node.core.list_namespaced_pod(namespace).items
        return [p for p in pods if p.spec.node_name and p.status.phase == "Pending"]

    members = wait_for(lambda: len(found := alive()) == 3 and found, "three pods")
    index = "batch.kubernetes.io/job-completion-index"
    members.sort(key=lambda pod: pod.metadata.annotations[index])
    environment = {one.name: one.value_from for one in members[0].spec.containers[0].env}
    assert environment["JOB_COMPLETION_INDEX"] is not None
    node.start(members[0])
    node.end(members[1], 70)
    status = until(scheduler, handle, lambda s: "failed" in str(s.reason))
    assert status.state is JobState.RUNNING
    assert status.reason == "of 3 members 1 running, 1 pending, 1 failed"
    node.end(members[0], 0)
    node.end(members[2], 0)
    status = until(scheduler, handle, lambda s: s.state.ended)
    assert (status.state, status.native) == (JobState.FAILED, "FailedIndexes")
    assert "failed indexes; last, exit code 70" in str(status.reason)


# -- what can't be read ----------------------------------------------------------------------------


def test_without_the_stores_credentials_the_jobs_are_shown(
    submit: Submit,
    scheduler: KubernetesScheduler,
    config_file: Path,
    cli: Cli,
    node: Node,
    namespace: str,
) -> None:
    """They are in a Secret of the cluster, which the submitter may be unable to read."""
    handle = submit()
    pod = node.pod(namespace, handle.name)
    verbs = ("-c", config_file)
    shown = cli(*verbs, "status", "-g", 4)
    assert (shown.code, shown.out.splitlines()[0]) == (0, f"gen_04 pending (Job {handle.id})")
    note = "note: the store can't be read: can't read cu-ni/generations/gen_04/manifest.json in "
    assert shown.err == f"{note}s3://mlip/potentials: no credentials\n"
    logs = cli(*verbs, "logs", "-g", 4)
    assert (logs.code, logs.out) == (0, "")
    assert f"note: Job {handle.id} is pending and has printed nothing: " in logs.err
    node.start(pod)
    node.log(pod).say("a line")
    every = json.loads(cli(*verbs, "status", "--json").out)
    (view,) = every["generations"]
    assert (view["generation"], view["state"], view["job"]["id"]) == (4, "running", handle.id)
    assert "no credentials" in every["unread"]["store"]
    assert cli(*verbs, "logs", "-g", 4).out == "a line\n"
    node.end(pod, 70, message="its own words")
    until(scheduler, handle, lambda s: s.state.ended)
    shown = cli(*verbs, "status", "-g", 4)
    assert (shown.code, "its own words" in shown.out) == (0, True)
    unknown = cli(*verbs, "status", "-g", 5)
    assert (unknown.code, unknown.out) == (0, "gen_05 unknown\n")


def test_without_permission_nothing_is_reported_absent(
    control_plane: ControlPlane, config_file: Path, cli: Cli
) -> None:
    namespace = control_plane.new_namespace()
    verbs = ("-c", config_file, "--set", f"submit.kubernetes.namespace={namespace}", "--set")
    store = f"storage.url={config_file.parent / 'store'}"
    one = cli(*verbs, store, "status", "-g", 1)
    assert (one.code, one.out) == (0, "gen_01 unknown\n")
    assert "note: the scheduler can't be read: can't list Jobs: not allowed to list jobs" in one.err
    every = cli(*verbs, store, "status")
    assert every.out == "nothing is known of any generation of cu-ni, with the scheduler unread\n"
    neither = cli("-c", config_file, *verbs[2:4], "status")
    assert neither.code == 69
    assert "neither store nor scheduler" in neither.err
