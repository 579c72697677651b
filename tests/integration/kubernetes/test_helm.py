"""Releases of the chart on a real API server, in namespaces that enforce the restricted level."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlip_job.schedulers.base import JobRequest, JobState
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from tests.cli import Cli
from tests.servers.helm import CHART, VALUES, Helm
from tests.servers.kubernetes import ADMIN, ControlPlane
from tests.servers.node import Node, wait_for
from tests.unit.kubernetes.chart_values import same_job, values_for

# Fields that the API server adds, or that differ between two equal Jobs.
CONTROLLER_LABELS = (
    *("batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"),
    *("controller-uid", "job-name"),
)


@pytest.fixture
def helm_in(helm: Helm, control_plane: ControlPlane) -> Callable[..., Any]:
    def run(
        namespace: str, *arguments: object, fails: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        kubeconfig = str(control_plane.kubeconfig(ADMIN, namespace=namespace))
        done = helm.run(*arguments, KUBECONFIG=kubeconfig, **options)
        assert bool(done.returncode) is fails, done.stdout + done.stderr
        return done

    return run


def job_on_server(node: Node, namespace: str, name: str) -> dict[str, Any]:
    job = node.batch.read_namespaced_job(name, namespace)
    manifest: dict[str, Any] = node.batch.api_client.sanitize_for_serialization(job)
    own = ("name", "namespace", "labels", "annotations")
    metadata = {key: value for key, value in manifest["metadata"].items() if key in own}
    for annotation in ("meta.helm.sh/release-name", "meta.helm.sh/release-namespace"):
        metadata["annotations"].pop(annotation, None)
    spec = copy.deepcopy(manifest["spec"])
    del spec["selector"]
    for label in CONTROLLER_LABELS:
        del spec["template"]["metadata"]["labels"][label]
    return {"metadata": metadata, "spec": spec}


def test_submitted_and_installed_jobs_are_equal_on_the_server(
    helm_in: Callable[..., Any],
    control_plane: ControlPlane,
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """The same Job with the server's defaults, and pods that meet the restricted level."""
    request = request_for(claims=[{"claim": "data", "mount_path": "/data", "read_only": True}])
    submitted = scheduler.submit(scheduler.plan(request))
    other = control_plane.new_namespace()
    helm_in(other, "install", "gen-04", CHART, values=values_for(request))
    one = job_on_server(node, namespace, submitted.name)
    two = job_on_server(node, other, "mlip-cu-ni-gen-04")
    assert same_job(one) == same_job(two)
    for where, name in ((namespace, submitted.name), (other, "mlip-cu-ni-gen-04")):
        pods = wait_for(lambda w=where: node.core.list_namespaced_pod(w).items, "a pod")  # type: ignore[misc]
        assert [pod.metadata.labels["job-name"] for pod in pods] == [name]


def test_a_release_is_a_generation(
    helm_in: Callable[..., Any],
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
) -> None:
    """It ends with the Job; mlip-job finds it; no other release can have the same generation."""
    values = values_for(request_for())
    said = helm_in(namespace, "install", "gen-04", CHART, values=values).stdout
    assert "gen_04 of cu-ni is job/mlip-cu-ni-gen-04." in said
    assert f"kubectl logs --namespace {namespace} --follow job/mlip-cu-ni-gen-04" in said
    assert f"helm test gen-04 --namespace {namespace} --logs" in said
    handle = scheduler.find("cu-ni", 4)
    assert handle is not None
    assert handle.name == "mlip-cu-ni-gen-04"
    pod = node.pod(namespace, handle.name)
    node.start(pod)
    assert scheduler.status(handle).state is JobState.RUNNING
    helm_in(namespace, "upgrade", "gen-04", CHART, values=values)
    again = helm_in(namespace, "install", "more", CHART, values=values, fails=True).stderr
    assert "cannot be imported into the current release" in again
    node.end(pod, 75)
    pod = node.pod(namespace, handle.name, number=2)
    node.end(pod, 0)
    wait_for(lambda: scheduler.status(handle).state is JobState.SUCCEEDED, "the end")
    helm_in(namespace, "uninstall", "gen-04")
    assert (
        node.core.list_namespaced_config_map(namespace, label_selector="mlip-job/family").items
        == []
    )


def test_a_release_and_a_submission_know_of_each_other(
    helm_in: Callable[..., Any],
    scheduler: KubernetesScheduler,
    request_for: Callable[..., JobRequest],
    config_file: Path,
    cli: Cli,
    node: Node,
    namespace: str,
) -> None:
    """Status shows Jobs that helm can't see, and cancel ends them; others continue."""
    neighbours = [request_for(5), request_for(family="cu-ni-2")]
    spared = {scheduler.submit(scheduler.plan(request)).name for request in neighbours}
    submitted = scheduler.submit(scheduler.plan(request_for()))
    helm_in(namespace, "install", "four", CHART, values=values_for(request_for()))
    installed = "mlip-cu-ni-gen-04"
    both = [submitted.name, installed]
    verbs = ("-c", config_file)

    assert {job.name: job.release for job in scheduler.active("cu-ni", 4)} == {
        submitted.name: None,
        installed: "four",
    }
    shown = cli(*verbs, "status", "-g", 4)
    assert all(f"Job {namespace}/{name}" in shown.out for name in both)
    assert "is pending or running too" in shown.out
    assert "mlip-job cancel -g 4 ends all of them" in shown.out
    again = cli(*verbs, "submit", "-g", 4)
    assert again.code == 73
    assert "installed with Helm, as release four: Job mlip-cu-ni-gen-04" in again.err
    assert f"helm uninstall four --namespace {namespace}" in again.err

    pods = [node.pod(namespace, name) for name in both]
    ended = cli(*verbs, "cancel", "-g", 4, "--no-wait", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert {job["name"]: job["release"] for job in document["jobs"]} == {
        submitted.name: None,
        installed: "four",
    }
    assert "note: the Helm release four still exists" in ended.err
    for pod in pods:
        node.remove(pod)
    wait_for(lambda: not scheduler.active("cu-ni", 4), "the end of both")
    jobs = node.batch.list_namespaced_job(namespace).items
    assert {job.metadata.name for job in jobs} == spared
    assert all(job.metadata.deletion_timestamp is None for job in jobs)
    helm_in(namespace, "uninstall", "four")


@pytest.mark.parametrize("exit_code", [0, 69])
def test_helm_test_ends_like_the_check(
    helm_in: Callable[..., Any],
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
    exit_code: int,
) -> None:
    helm_in(namespace, "install", "gen-04", CHART, values=values_for(request_for()))
    with ThreadPoolExecutor() as pool:
        command = ("test", "gen-04", "--logs", "--timeout", "60s")
        testing = pool.submit(helm_in, namespace, *command, fails=bool(exit_code))

        def scheduled() -> Any:
            pods = node.core.list_namespaced_pod(
                namespace, label_selector="app.kubernetes.io/component=test"
            ).items
            return next((pod for pod in pods if pod.spec.node_name), None)

        pod = wait_for(scheduled, "the pod of the check")
        assert pod.spec.containers[0].args[2] == "check"
        node.log(pod).say("ok    database")
        node.end(pod, exit_code)
        done = testing.result()
    assert "ok    database" in done.stdout
    assert ("Succeeded" in done.stdout) is (exit_code == 0)


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_all_that_is_installed_is_accepted(
    helm_in: Callable[..., Any], control_plane: ControlPlane, node: Node, values: Path
) -> None:
    """Every object by the API server, every pod by the restricted level, without a warning."""
    _install_classes(node)
    namespace = control_plane.new_namespace()
    done = helm_in(namespace, "install", "release", CHART, "--values", values)
    assert "warning" not in done.stderr.lower()
    manifests = yaml.safe_load_all(helm_in(namespace, "get", "manifest", "release").stdout)
    hooks = yaml.safe_load_all(helm_in(namespace, "get", "hooks", "release").stdout)
    templates = {one["kind"]: one for one in (*manifests, *hooks)}
    job = templates["Job"]
    for pod in (job["spec"]["template"], templates["Pod"]):
        metadata = {"name": "probe", "labels": pod["metadata"]["labels"]}
        made = node.core.create_namespaced_pod(
            namespace, {"metadata": metadata, "spec": pod["spec"]}, dry_run="All"
        )
        assert made.spec.automount_service_account_token is False
        assert [volume.name for volume in made.spec.volumes if "token" in volume.name] == []
    privileged = copy.deepcopy(job["spec"]["template"]["spec"])
    privileged["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    from kubernetes.client import ApiException

    with pytest.raises(ApiException, match="violates PodSecurity"):
        node.core.create_namespaced_pod(
            namespace, {"metadata": {"name": "probe"}, "spec": privileged}, dry_run="All"
        )


def _install_classes(node: Node) -> None:
    """Create the objects of ci/everything-values.yaml that an administrator has to provide."""
    from kubernetes import client

    scheduling = client.SchedulingV1Api(node.core.api_client)
    if any(one.metadata.name == "batch" for one in scheduling.list_priority_class().items):
        return
    scheduling.create_priority_class({"metadata": {"name": "batch"}, "value": 1000})
    client.NodeV1Api(node.core.api_client).create_runtime_class(
        {"metadata": {"name": "rocm"}, "handler": "rocm"}
    )
