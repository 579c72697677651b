"""Submissions to a real API server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import yaml

from mlip_job.config import JobConfig
from mlip_job.errors import ConfigError, ConflictError, UnavailableError
from mlip_job.schedulers.base import JobRequest, JobState
from mlip_job.schedulers.kubernetes.manifest import from_yaml
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from tests.integration.kubernetes.conftest import Submit
from tests.servers.kubernetes import ControlPlane
from tests.servers.node import Node, wait_for


def test_a_submission_is_a_job_that_owns_its_configuration(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    """Its pod meets the restricted level: it is created and scheduled."""
    handle = submit()
    assert handle.id == f"{namespace}/{handle.name}"
    job = node.batch.read_namespaced_job(handle.name, namespace)
    config_map = node.core.read_namespaced_config_map(handle.name, namespace)
    (owner,) = config_map.metadata.owner_references
    assert (owner.kind, owner.uid) == ("Job", job.metadata.uid)
    assert "s3://mlip/potentials" in config_map.data["mlip-job.yaml"]
    pod = node.pod(namespace, handle.name)
    assert pod.spec.containers[0].args[:3] == ["--config", "/etc/mlip-job/mlip-job.yaml", "run"]
    assert scheduler.status(handle).state is JobState.PENDING
    node.start(pod)
    assert scheduler.status(handle).state is JobState.RUNNING
    assert scheduler.find("cu-ni", 4) == handle


def test_the_same_submission_again_is_the_same_job(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """However often it is repeated; a lost ConfigMap is created again."""
    plan = scheduler.plan(request_for())
    first = scheduler.submit(plan)
    node.core.delete_namespaced_config_map(first.name, namespace)
    assert scheduler.submit(plan) == first
    assert len(node.batch.list_namespaced_job(namespace).items) == 1
    node.core.read_namespaced_config_map(first.name, namespace)


def test_a_failed_job_makes_room_for_the_same_submission(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """Its ConfigMap is owned by the new Job, so that the garbage collector keeps it."""
    plan = scheduler.plan(request_for())
    first = scheduler.submit(plan)
    uid = node.batch.read_namespaced_job(first.name, namespace).metadata.uid
    node.end(node.pod(namespace, first.name), 71)
    wait_for(lambda: scheduler.status(first).state is JobState.FAILED, "failed Job")
    again = scheduler.submit(plan)
    assert again == first
    job = node.batch.read_namespaced_job(again.name, namespace)
    assert job.metadata.uid != uid
    config_map = node.core.read_namespaced_config_map(again.name, namespace)
    assert config_map.metadata.owner_references[0].uid == job.metadata.uid


def test_a_job_of_another_user_is_not_changed(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    plan = scheduler.plan(request_for())
    pod = {"restartPolicy": "Never", "containers": [{"name": "other", "image": "other"}]}
    node.batch.create_namespaced_job(
        namespace, {"metadata": {"name": plan.name}, "spec": {"template": {"spec": pod}}}
    )
    with pytest.raises(ConflictError, match="not mlip-job's"):
        scheduler.submit(plan)
    assert node.batch.read_namespaced_job(plan.name, namespace).metadata.deletion_timestamp is None


@pytest.mark.parametrize("change", ["ttl", "delete"])
def test_nothing_is_left_of_a_job(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str, change: str
) -> None:
    """The controllers remove Job, pod and ConfigMap after its TTL or its deletion."""
    handle = submit(ttl_days=2 / 86400)
    pod = node.pod(namespace, handle.name)
    if change == "ttl":
        node.end(pod, 0)
    else:
        options = {"propagationPolicy": "Background"}
        node.batch.delete_namespaced_job(handle.name, namespace, body=options)
        node.remove(pod)

    def left() -> list[Any]:
        found = [
            *node.batch.list_namespaced_job(namespace).items,
            *node.core.list_namespaced_pod(namespace).items,
            *node.core.list_namespaced_config_map(namespace).items,
        ]
        return [one for one in found if one.metadata.name != "kube-root-ca.crt"]

    wait_for(lambda: not left(), "an empty namespace")
    assert scheduler.status(handle).state is JobState.GONE


def test_the_restricted_level_is_enforced(
    scheduler: KubernetesScheduler, submit: Submit, namespace: str
) -> None:
    volume = {"name": "host", "hostPath": {"path": "/"}}
    handle = submit(volumes=[volume])
    status = wait_for(
        lambda: (s := scheduler.status(handle)).native == "FailedCreate" and s, "a refused pod"
    )
    assert status.state is JobState.PENDING
    assert "hostPath" in status.reason


def test_a_pod_with_all_settings_meets_the_restricted_level(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """All settings together are valid, and don't make the pod less restricted."""
    node.core.create_namespaced_service_account(namespace, {"metadata": {"name": "trainer"}})
    handle = scheduler.submit(
        scheduler.plan(
            request_for(
                image_pull_secrets=["registry"],
                secrets=["database", "s3"],
                env={"TF_CPP_MIN_LOG_LEVEL": "2", "NOT_EXPANDED": "$(HOME)"},
                claims=[{"claim": "data", "mount_path": "/data", "read_only": True}],
                volumes=[{"name": "more", "emptyDir": {}}],
                volume_mounts=[{"name": "more", "mountPath": "/more"}],
                service_account="trainer",
                node_selector={"pool": "gpu"},
                tolerations=[{"key": "spot", "operator": "Exists"}],
                affinity={"nodeAffinity": {}},
                labels={"team": "alloys"},
                annotations={"example.com/cost-centre": "4711"},
                active_deadline_seconds=3600,
                run_as_user=None,
            )
        )
    )
    selector = f"batch.kubernetes.io/job-name={handle.name}"
    pods = lambda: node.core.list_namespaced_pod(namespace, label_selector=selector).items  # noqa: E731
    (pod,) = wait_for(pods, "a pod")
    assert pod.metadata.labels["team"] == "alloys"
    assert pod.spec.security_context.run_as_non_root


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"namespace": "absent"}, "not allowed to list jobs.batch in namespace absent"),
        ({"affinity": {"nodeAfinity": {}}}, 'unknown field "spec.template.spec.affinity.nodeAf'),
        ({"tolerations": [{"operator": "Sometimes"}]}, "tolerations"),
        ({"labels": {"team": "not valid!"}}, "labels"),
        ({"volume_mounts": [{"name": "absent", "mountPath": "/more"}]}, "absent"),
    ],
)
def test_a_rejection_by_the_cluster_is_shown(
    configure: Callable[..., JobConfig],
    request_for: Callable[..., JobRequest],
    settings: dict[str, Any],
    words: str,
    node: Node,
    namespace: str,
) -> None:
    scheduler = KubernetesScheduler(configure(**settings).submit.kubernetes, poll_seconds=0.1)
    with pytest.raises(ConfigError) as refused:
        scheduler.submit(scheduler.plan(request_for(**settings)))
    assert words in refused.value.message
    assert refused.value.hint
    assert not node.batch.list_namespaced_job(namespace).items


def test_an_absent_namespace_is_named_if_permitted(
    control_plane: ControlPlane,
    configure: Callable[..., JobConfig],
    request_for: Callable[..., JobRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the permission the cluster only says that access is forbidden."""
    request = request_for(namespace="absent")
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig("admin")))
    scheduler = KubernetesScheduler(request.config.submit.kubernetes)
    with pytest.raises(ConfigError, match="no namespace absent"):
        scheduler.submit(scheduler.plan(request))


def test_a_job_without_its_configuration_is_deleted(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """A submission that fails halfway leaves nothing that stays pending."""
    plan = scheduler.plan(request_for())
    manifests = from_yaml(plan.text)
    manifests["ConfigMap"]["data"] = {"not a key": ""}
    with pytest.raises(ConfigError, match="ConfigMap"):
        scheduler.submit(replace(plan, text=yaml.safe_dump_all(manifests.values())))
    jobs = node.batch.list_namespaced_job(namespace).items
    assert all(job.metadata.deletion_timestamp for job in jobs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server": "https://127.0.0.1:1"}, "does not answer"),
        ({"certificate-authority": "/etc/ssl/certs/ca-certificates.crt"}, "certificate"),
    ],
)
def test_an_unavailable_cluster_is_an_error(
    control_plane: ControlPlane,
    request_for: Callable[..., JobRequest],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    words: str,
) -> None:
    request = request_for()
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig("submitter", **changes)))
    scheduler = KubernetesScheduler(request.config.submit.kubernetes)
    with pytest.raises(UnavailableError, match=words) as away:
        scheduler.submit(scheduler.plan(request))
    assert away.value.hint


def test_wrong_credentials_are_an_error(
    control_plane: ControlPlane,
    request_for: Callable[..., JobRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = request_for()
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig("nobody")))
    scheduler = KubernetesScheduler(request.config.submit.kubernetes)
    with pytest.raises(UnavailableError, match="does not accept these credentials"):
        scheduler.submit(scheduler.plan(request))


def test_concurrent_submissions_make_one_job(
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    plan = scheduler.plan(request_for())
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: scheduler.submit(plan), range(8)))
    assert len(set(handles)) == 1
    assert len(node.batch.list_namespaced_job(namespace).items) == 1
