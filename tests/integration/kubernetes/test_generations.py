"""From a submission to a published generation, with PostgreSQL, S3 and the real pacemaker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.config.load import validate_config
from mlip_job.registry import Registry
from mlip_job.schedulers.base import JobRequest, JobState
from mlip_job.store.open import open_store
from tests.servers.node import wait_for
from tests.servers.pods import PodRunner
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from pathlib import Path

    from kubernetes import client

    from mlip_job.config import StorageConfig
    from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
    from tests.servers.databases import DatabaseServer
    from tests.servers.node import Node

pytestmark = pytest.mark.pacemaker


@pytest.fixture
def values(
    node: Node, namespace: str, postgresql: DatabaseServer, s3_bucket: StorageConfig
) -> dict[str, Any]:
    """Return a configuration whose passwords are in a Secret of the namespace."""
    database = postgresql.new_database()
    write_database(postgresql.url_with_password(database), rattled(10))
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    secrets = {name: os.environ[name] for name in names}
    secrets["MLIP_JOB_DATABASE_PASSWORD"] = postgresql.password
    core: client.CoreV1Api = node.core
    core.create_namespaced_secret(namespace, {"metadata": {"name": "mlip"}, "stringData": secrets})
    return {
        "family": "cu",
        "database": {"url": postgresql.url(database)},
        "training": {
            "evaluator": "pyace",
            "functions_per_element": 3,
            "ladder_step": None,
            "max_iter": 3,
            "stress_weight": 0,
        },
        "storage": s3_bucket.model_dump(mode="json"),
        "submit": {
            "scheduler": "kubernetes",
            "kubernetes": {
                "image": "mlip-job:tests",
                "gpus": 0,
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "secrets": ["mlip"],
            },
        },
    }


def _request(values: dict[str, Any], directory: Path, **training: Any) -> JobRequest:
    changed = values | {"training": values["training"] | training}
    return JobRequest(validate_config(changed, source="test"), 1, directory)


def test_a_generation_is_published(
    scheduler: KubernetesScheduler,
    values: dict[str, Any],
    node: Node,
    namespace: str,
    tmp_path: Path,
) -> None:
    """The manifest names the Job and the image; the status says what was published."""
    request = _request(values, tmp_path)
    plan = scheduler.plan(request)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in plan.text
    with PodRunner(node, namespace, tmp_path) as runner:
        handle = scheduler.submit(plan)
        lines = list(scheduler.logs(handle, follow=True))
        status = scheduler.status(handle)
    assert (status.state, status.exit_code) == (JobState.SUCCEEDED, 0), lines
    assert str(status.reason).startswith("published gen_01, test errors: energy ")
    assert any("published gen_01 in s3://" in line for line in lines)
    assert runner.exit_codes == [0]
    registry = Registry(open_store(request.config.storage), "cu")
    manifest = registry.get(1)
    assert registry.verify(manifest) == []
    assert manifest.environment.scheduler is not None
    assert manifest.environment.scheduler.model_dump() == {"kind": "kubernetes", "id": handle.id}
    assert manifest.environment.image == "mlip-job:tests"


def test_a_cancelled_generation_goes_on_where_it_was(
    scheduler: KubernetesScheduler,
    values: dict[str, Any],
    node: Node,
    namespace: str,
    tmp_path: Path,
) -> None:
    """Cancelling waits for the checkpoint; the next submission goes on from there."""
    values["training"] |= {"functions_per_element": 8, "max_iter": 25}
    values["run"] = {"checkpoint_interval": 1}
    request = _request(values, tmp_path)
    checkpoints = Registry(open_store(request.config.storage), "cu").checkpoints(1)
    plan = scheduler.plan(request)
    with PodRunner(node, namespace, tmp_path) as runner:
        handle = scheduler.submit(plan)
        wait_for(checkpoints.found, "a checkpoint")
        scheduler.cancel(handle)
        assert runner.exit_codes == [75]
        handle = scheduler.submit(plan)
        lines = list(scheduler.logs(handle, follow=True))
        assert scheduler.status(handle).state is JobState.SUCCEEDED, lines
    manifest = Registry(open_store(request.config.storage), "cu").get(1)
    assert len(manifest.attempts) == 2
    assert manifest.attempts[0].iterations > 0


def test_a_failure_is_told_in_the_runs_own_words(
    scheduler: KubernetesScheduler,
    values: dict[str, Any],
    node: Node,
    namespace: str,
    tmp_path: Path,
) -> None:
    """Its termination message comes through pod and Job to who asks for the status."""
    values["database"]["select"] = "status=absent"
    with PodRunner(node, namespace, tmp_path):
        handle = scheduler.submit(scheduler.plan(_request(values, tmp_path)))
        status = wait_for(lambda: (s := scheduler.status(handle)).state.ended and s, "the end")
    assert (status.state, status.native) == (JobState.FAILED, "PodFailurePolicy")
    assert status.exit_code == 65
    assert "status=absent" in status.reason
