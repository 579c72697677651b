"""Split runs on a real API server: what follows waits, is started once, and by whom."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import yaml

from mlip_job.config.kubernetes import KubernetesConfig
from mlip_job.errors import ConfigError, ConflictError
from mlip_job.schedulers.base import JobHandle, JobState, Stage, stages
from mlip_job.schedulers.kubernetes import connection
from mlip_job.schedulers.kubernetes.cluster import Cluster
from mlip_job.schedulers.kubernetes.connection import connect
from mlip_job.schedulers.kubernetes.layout import QUEUE_LABEL
from mlip_job.schedulers.kubernetes.resuming import resume_from_pod
from tests.integration.kubernetes.conftest import ON_THE_NODE, documented_rules
from tests.servers.node import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
    from tests.cli import Ended
    from tests.servers.kubernetes import ControlPlane
    from tests.servers.node import Node

ALL = stages(split_export=True, split_evaluation=True)
EXPORT = stages(split_export=True, split_evaluation=False)


@pytest.fixture
def submit(
    scheduler: KubernetesScheduler, request_for: Callable[..., JobRequest]
) -> Callable[..., list[JobHandle]]:
    """Return a function that makes a whole submission, and returns its Jobs."""

    def make(split: tuple[Stage, ...] = EXPORT, **arguments: Any) -> list[JobHandle]:
        settings = {"without_gpu": ON_THE_NODE, **arguments}
        requests = [request_for(stage=stage, split=split, **settings) for stage in split]
        return [scheduler.submit(scheduler.plan(one)) for one in requests]

    return make


def pods_of(node: Node, handle: JobHandle) -> list[Any]:
    """Return the pods of a Job."""
    namespace, name = handle.id.split("/")
    selector = f"batch.kubernetes.io/job-name={name}"
    found: list[Any] = node.core.list_namespaced_pod(namespace, label_selector=selector).items
    return found


def finish(
    node: Node, scheduler: KubernetesScheduler, handle: JobHandle, exit_code: int = 0
) -> None:
    """Have the pod of a Job end, and wait until the Job has."""

    def alive() -> Any:
        pods = [pod for pod in pods_of(node, handle) if pod.spec.node_name]
        return next((pod for pod in pods if pod.status.phase in ("Pending", "Running")), None)

    node.end(wait_for(alive, f"a pod of {handle.name}"), exit_code)
    wait_for(lambda: scheduler.status(handle).state.ended, "the end of a Job")


def names_in(node: Node, namespace: str) -> set[str]:
    """Return the Jobs of a namespace."""
    return {job.metadata.name for job in node.batch.list_namespaced_job(namespace).items}


# -- the same submission again ---------------------------------------------------------------------


def test_the_fit_begins_when_the_dataset_is_made(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """Until then it has no pod; the same submission starts it, and makes nothing twice."""
    dataset, whole = submit()
    assert dataset.name == f"{whole.name}-dataset"
    assert scheduler.find("cu-ni", 4) == dataset
    namespace = dataset.id.split("/")[0]
    pod = node.pod(namespace, dataset.name)
    assert pod.spec.containers[0].resources.limits == {"memory": "16Gi"}
    node.start(pod)
    assert submit() == [dataset, whole]
    assert len(names_in(node, namespace)) == 2
    status = scheduler.status(dataset)
    assert (status.state, status.reason) == (JobState.RUNNING, "it makes the dataset")
    status = scheduler.status(whole)
    assert (status.state, status.native, status.resubmit) == (JobState.PENDING, "Suspended", False)
    assert f"waits for Job {dataset.name}, which makes the dataset" in str(status.reason)

    finish(node, scheduler, dataset)
    assert scheduler.find("cu-ni", 4) == whole
    status = scheduler.status(whole)
    assert (status.state, status.resubmit) == (JobState.PENDING, True)
    assert "nobody has started this one" in str(status.reason)
    assert "mlip-job submit -g 4" in str(status.hint)
    assert pods_of(node, whole) == []
    assert submit() == [dataset, whole]
    pod = node.pod(namespace, whole.name)
    assert pod.spec.containers[0].resources.limits["nvidia.com/gpu"] == "1"
    node.start(pod)
    assert submit() == [dataset, whole]
    assert len(pods_of(node, dataset)) == len(pods_of(node, whole)) == 1
    assert scheduler.status(whole).reason == "it fits and publishes"
    finish(node, scheduler, whole)
    assert scheduler.find("cu-ni", 4) == whole
    assert scheduler.status(whole).state is JobState.SUCCEEDED


def test_three_jobs_run_one_after_the_other(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """An ensemble: one dataset, then the members; the last plan alone starts what is due."""
    handles = submit(ALL, ensemble=2)
    dataset, fit, publish = handles
    namespace = dataset.id.split("/")[0]
    assert "waits for" in str(scheduler.status(publish).reason)
    finish(node, scheduler, dataset)
    assert scheduler.status(publish).resubmit
    submit(ALL, ensemble=2)
    pods = wait_for(lambda: len(p := pods_of(node, fit)) == 2 and p, "pods of both members")
    assert pods_of(node, publish) == []
    for pod in pods:
        node.end(pod, 0)
    wait_for(lambda: scheduler.status(fit).state.ended, "the end of the fits")
    assert scheduler.find("cu-ni", 4) == publish
    submit(ALL, ensemble=2)
    pods = wait_for(lambda: len(p := pods_of(node, publish)) == 2 and p, "pods of both members")
    assert all("nvidia.com/gpu" not in p.spec.containers[0].resources.limits for p in pods)
    assert len(names_in(node, namespace)) == 3


def test_what_ran_before_is_not_made_again(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """Where the fit failed, or the dataset's Job is gone while the fit runs."""
    dataset, whole = submit()
    namespace = dataset.id.split("/")[0]
    finish(node, scheduler, dataset)
    submit()
    finish(node, scheduler, whole, 70)
    status = scheduler.status(whole)
    assert str(status.reason).startswith("the dataset is made, but the run failed: exit code 70")
    before = node.batch.read_namespaced_job(dataset.name, namespace).metadata.uid
    submit()
    node.start(node.pod(namespace, whole.name))
    assert node.batch.read_namespaced_job(dataset.name, namespace).metadata.uid == before
    node.batch.delete_namespaced_job(dataset.name, namespace, propagation_policy="Background")
    wait_for(lambda: dataset.name not in names_in(node, namespace), "a Job less")
    assert submit() == [dataset, whole]
    assert names_in(node, namespace) == {whole.name}
    assert scheduler.find("cu-ni", 4) == whole


def test_a_job_that_waits_for_one_that_is_gone_is_unknown(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """The same submission makes up for it."""
    dataset, whole = submit()
    namespace = dataset.id.split("/")[0]
    node.batch.delete_namespaced_job(dataset.name, namespace, propagation_policy="Background")
    wait_for(lambda: dataset.name not in names_in(node, namespace), "a Job less")
    assert scheduler.find("cu-ni", 4) == whole
    status = scheduler.status(whole)
    assert (status.state, status.resubmit) == (JobState.UNKNOWN, False)
    assert f"{dataset.name}, which makes the dataset and is gone" in str(status.reason)
    submit()
    assert names_in(node, namespace) == {dataset.name, whole.name}
    assert scheduler.status(whole).state is JobState.PENDING


# -- failures, and the end -------------------------------------------------------------------------


def test_a_dataset_that_fails_is_the_generations_failure(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """What waits never starts; the same submission tries again, another one takes its place."""
    dataset, whole = submit()
    namespace = dataset.id.split("/")[0]
    finish(node, scheduler, dataset, 65)
    assert scheduler.find("cu-ni", 4) == dataset
    for handle in (dataset, whole):
        status = scheduler.status(handle)
        assert (status.state, status.exit_code) == (JobState.FAILED, 65)
        assert str(status.reason).startswith("the dataset was not made: exit code 65")
        assert status.hint is not None
    assert list(scheduler.logs(whole, follow=True)) == []  # it does not wait for ever
    submit()
    assert scheduler.status(whole).state is JobState.PENDING
    finish(node, scheduler, dataset, 65)
    (other,) = submit((Stage.WHOLE,))
    assert scheduler.find("cu-ni", 4) == other
    assert names_in(node, namespace) == {dataset.name, other.name}
    with pytest.raises(ConflictError, match=other.name):
        submit()


def test_another_submission_is_refused_while_one_is_under_way(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """Also between two of its Jobs, when none has a pod."""
    dataset, whole = submit()
    for split in ((Stage.WHOLE,), ALL):
        with pytest.raises(ConflictError, match="submitted before, with other settings"):
            submit(split)
    finish(node, scheduler, dataset)
    with pytest.raises(ConflictError, match=whole.name):
        submit((Stage.WHOLE,))


@pytest.mark.parametrize("failed", [False, True])
def test_cancelling_takes_all_that_has_not_ended(
    scheduler: KubernetesScheduler,
    submit: Callable[..., list[JobHandle]],
    node: Node,
    namespace: str,
    failed: bool,
) -> None:
    """What is suspended too, also where the first has failed; what ended stays, with its log."""
    dataset, _, _ = submit(ALL)
    pod = node.pod(namespace, dataset.name)
    if failed:
        finish(node, scheduler, dataset, 65)
    scheduler.cancel(dataset)
    wait_for(lambda: names_in(node, namespace) == {dataset.name}, "the end of what waits")
    if failed:
        return
    name, read = pod.metadata.name, node.core.read_namespaced_pod
    wait_for(lambda: read(name, namespace).metadata.deletion_timestamp, "a stopped pod")
    node.end(pod, 75)
    node.remove(pod)
    wait_for(lambda: names_in(node, namespace) == set(), "the end of what ran")


def test_logs_are_of_all_parts(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """In their order, whichever Job is asked for."""
    dataset, whole = submit()
    for handle, text in ((dataset, "1000 rows"), (whole, "iteration 1")):
        node.log(node.pod(handle.id.split("/")[0], handle.name)).say(text)
        finish(node, scheduler, handle)
        if handle == dataset:
            submit()
    for handle in (dataset, whole):
        for follow in (True, False):
            assert list(scheduler.logs(handle, follow=follow)) == ["1000 rows", "iteration 1"]


def test_status_and_cancel_speak_of_the_part(
    cli: Callable[..., Ended],
    submit: Callable[..., list[JobHandle]],
    scheduler: KubernetesScheduler,
    node: Node,
    namespace: str,
    tmp_path: Path,
) -> None:
    """On the command line."""
    write_config(tmp_path, namespace)
    options = ("-c", tmp_path / "mlip-job.yaml", "-g", 4)
    ended = cli("submit", *options, "--split-export")
    assert ended.code == 0, ended.err
    dataset = scheduler.find("cu-ni", 4)
    assert dataset is not None
    assert f"submitted as Job {dataset.id}" in ended.err
    assert "note: it is suspended until the Job before it has succeeded" in ended.err
    finish(node, scheduler, dataset, 65)
    ended = cli("status", *options)
    assert ended.out.startswith(f"gen_04 failed (Job {dataset.id}")
    assert "  the dataset was not made: exit code 65" in ended.out
    assert cli("cancel", *options).code == 0
    wait_for(lambda: names_in(node, namespace) == {dataset.name}, "the end of what waits")
    cli("submit", *options, "--split-export")
    finish(node, scheduler, dataset)
    ended = cli("status", *options)
    assert ended.out.startswith(f"gen_04 pending (Job {dataset.id.removesuffix('-dataset')})")
    assert "next: the same mlip-job submit -g 4 as before starts it" in ended.out


def write_config(directory: Path, namespace: str, **kubernetes: Any) -> None:
    """Write a configuration with a store on this machine, as a user would who looks at it."""
    values = {
        "family": "cu-ni",
        "database": {"url": "postgresql://ase@db.example/ase"},
        "storage": {"url": str(directory / "store")},
        "submit": {
            "scheduler": "kubernetes",
            "kubernetes": {
                "namespace": namespace,
                "image": "registry.example/mlip-job:1",
                "backoff_limit": 0,
                "without_gpu": ON_THE_NODE,
                "grace_period_seconds": 25,
                "volumes": [{"name": "store", "emptyDir": {}}],
                "volume_mounts": [{"name": "store", "mountPath": str(directory)}],
                **kubernetes,
            },
        },
    }
    (directory / "mlip-job.yaml").write_text(yaml.safe_dump(values))


# -- started by the pods ---------------------------------------------------------------------------


@pytest.fixture
def resumer(control_plane: ControlPlane, node: Node, namespace: str) -> str:
    """Make the documented service account; return its name."""
    name = "mlip-job-resumer"
    node.core.create_namespaced_service_account(namespace, {"metadata": {"name": name}})
    control_plane.allow_account(namespace, documented_rules(name), name)
    return name


@pytest.fixture
def enter(
    control_plane: ControlPlane, node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Any], None]:
    """Return a function after which this process finds the cluster as it would within a pod."""
    from kubernetes.config import incluster_config

    def be_in(pod: Any) -> None:
        token = node.token(pod)
        assert token is not None
        authority = control_plane.authority.read_text()
        files = {"token": token, "ca.crt": authority, "namespace": pod.metadata.namespace}
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        address = urlsplit(control_plane.url)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(address.hostname))
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(address.port))
        monkeypatch.setenv("KUBECONFIG", os.devnull)
        monkeypatch.setattr(connection, "SERVICE_ACCOUNT", tmp_path)
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))

    return be_in


def test_a_pod_starts_the_next_job_and_may_do_no_more(
    scheduler: KubernetesScheduler,
    submit: Callable[..., list[JobHandle]],
    node: Node,
    namespace: str,
    resumer: str,
    enter: Callable[[Any], None],
) -> None:
    """With the token of its volume and the documented role; twice is once."""
    dataset, whole = submit(resume_service_account=resumer)
    pod = node.pod(namespace, dataset.name)
    arguments = pod.spec.containers[0].args
    assert arguments[arguments.index("--then-resume") + 1] == whole.name
    assert "--then-resume" not in from_server(node, whole)["args"]
    enter(pod)
    cluster = Cluster(connect(KubernetesConfig()))
    assert cluster.namespace == namespace
    job = cluster.job(whole.name)
    assert job is not None
    for forbidden, words in (
        (lambda: cluster.jobs({}), "list jobs"),
        (lambda: cluster.delete_job(job), "delete jobs"),
        (lambda: cluster.create_job(job), "create jobs"),
        (lambda: cluster.pods(whole.name), "list pods"),
        (lambda: cluster.delete_config_map(whole.name), "delete configmaps"),
    ):
        with pytest.raises(ConfigError, match=f"not allowed to {words}"):
            forbidden()
    resume_from_pod(whole.name)
    resume_from_pod(whole.name)
    assert node.pod(namespace, whole.name).spec.automount_service_account_token is False
    with pytest.raises(ConfigError, match="has no Job absent any more"):
        resume_from_pod("absent")


def from_server(node: Node, handle: JobHandle) -> dict[str, Any]:
    """Return the container of a Job as the API server has it."""
    namespace, name = handle.id.split("/")
    job = node.batch.read_namespaced_job(name, namespace)
    manifest: dict[str, Any] = node.batch.api_client.sanitize_for_serialization(job)
    container: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return container


def test_a_pod_without_the_role_is_told_what_is_missing(
    submit: Callable[..., list[JobHandle]],
    node: Node,
    namespace: str,
    control_plane: ControlPlane,
    enter: Callable[[Any], None],
) -> None:
    """Verb and resource; the Job stays suspended."""
    node.core.create_namespaced_service_account(namespace, {"metadata": {"name": "poor"}})
    dataset, whole = submit(resume_service_account="poor")
    enter(node.pod(namespace, dataset.name))
    with pytest.raises(ConfigError, match=r"not allowed to get jobs\.batch"):
        resume_from_pod(whole.name)
    rules = documented_rules("mlip-job-resumer")
    control_plane.allow_account(namespace, [{**rules[0], "verbs": ["get"]}], "poor")
    with pytest.raises(ConfigError, match=r"not allowed to patch jobs\.batch"):
        resume_from_pod(whole.name)
    assert node.batch.read_namespaced_job(whole.name, namespace).spec.suspend is True


def test_a_job_that_took_the_place_of_another_is_left_alone(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """A change is of the very Job that was looked at."""
    _, whole = submit()
    namespace = whole.id.split("/")[0]
    cluster = Cluster(connect(KubernetesConfig(namespace=namespace)))
    job = cluster.job(whole.name)
    assert job is not None
    change = {"metadata": {"uid": "another"}, "spec": {"suspend": False}}
    with pytest.raises(ConfigError, match="uid"):
        cluster.patch_job(whole.name, change)
    assert node.batch.read_namespaced_job(whole.name, namespace).spec.suspend is True


# -- Kueue -----------------------------------------------------------------------------------------


def test_kueue_gets_a_job_when_it_is_due(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """Its label is added then; to start it is Kueue's, which is played here."""
    dataset, whole = submit(queue="training")
    namespace = whole.id.split("/")[0]

    def job_of(handle: JobHandle) -> Any:
        return node.batch.read_namespaced_job(handle.name, namespace)

    def admit(handle: JobHandle) -> None:
        node.batch.patch_namespaced_job(handle.name, namespace, {"spec": {"suspend": False}})

    assert job_of(dataset).metadata.labels[QUEUE_LABEL] == "training"
    assert QUEUE_LABEL not in job_of(whole).metadata.labels
    assert "Kueue's queue training" in str(scheduler.status(dataset).reason)
    submit(queue="training")
    assert job_of(dataset).spec.suspend is True  # that is not ours to change
    admit(dataset)
    finish(node, scheduler, dataset)
    assert scheduler.status(whole).resubmit
    submit(queue="training")
    assert job_of(whole).metadata.labels[QUEUE_LABEL] == "training"
    assert job_of(whole).spec.suspend is True
    status = scheduler.status(whole)
    assert (status.state, status.resubmit) == (JobState.PENDING, False)
    assert "Kueue's queue training" in str(status.reason)
    admit(whole)
    finish(node, scheduler, whole)
    assert scheduler.find("cu-ni", 4) == whole


def test_a_namespace_with_a_default_queue_is_refused(
    submit: Callable[..., list[JobHandle]],
    node: Node,
    namespace: str,
    control_plane: ControlPlane,
) -> None:
    """Kueue would give its label to what must wait; an admission policy does so here."""
    from kubernetes.client import ApiException

    control_plane.label_jobs(namespace, {QUEUE_LABEL: "default"})

    def labelled() -> bool:
        pod = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}
        probe = {"metadata": {"name": "probe"}, "spec": {"template": {"spec": pod}}}
        try:
            made = node.batch.create_namespaced_job(namespace, probe, dry_run="All")
        except ApiException:
            return False
        return QUEUE_LABEL in (made.metadata.labels or {})

    wait_for(labelled, "the policy in force")
    with pytest.raises(ConfigError, match="puts every Job into the queue default") as refused:
        submit()
    assert "--split-export" in str(refused.value.hint)
    jobs = node.batch.list_namespaced_job(namespace).items
    assert all(job.metadata.deletion_timestamp for job in jobs)


def test_the_termination_message_is_read_back(
    scheduler: KubernetesScheduler, submit: Callable[..., list[JobHandle]], node: Node
) -> None:
    """What the dataset's pod says of the next Job is in its status."""
    dataset, _ = submit()
    said = "gen_04 is to be trained on dataset abc; Job x was not started: no"
    message = json.dumps({"exit_code": 0, "message": said, "hint": None})
    node.end(node.pod(dataset.id.split("/")[0], dataset.name), 0, message=message)
    wait_for(lambda: scheduler.status(dataset).state.ended, "the end")
    assert scheduler.status(dataset).reason == said
