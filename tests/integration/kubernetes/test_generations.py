"""From submission to a published generation, with PostgreSQL, S3 and the real pacemaker."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from mlip_job.config import StorageConfig
from mlip_job.config.load import validate_config
from mlip_job.registry import Registry
from mlip_job.schedulers.base import JobRequest, JobState
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from mlip_job.store.open import open_store
from tests.generations import TINY
from tests.servers.databases import DatabaseServer
from tests.servers.node import Node, wait_for
from tests.servers.pods import PodRunner
from tests.support import rattled, write_database

pytestmark = pytest.mark.pacemaker


@pytest.fixture
def values(
    node: Node, namespace: str, postgresql: DatabaseServer, s3_bucket: StorageConfig
) -> dict[str, Any]:
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
        "training": dict(TINY),
        "storage": s3_bucket.model_dump(mode="json"),
        "evaluation": {"gate": {"require_physics": False}},
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


def test_a_pod_that_replaces_another_publishes(
    scheduler: KubernetesScheduler,
    values: dict[str, Any],
    node: Node,
    namespace: str,
    tmp_path: Path,
) -> None:
    """With ``--fresh``, a replacement resumes from the checkpoint of its Job's first pod.

    The manifest names the Job and the image; status shows the published generation.
    """
    values["training"] |= {"functions_per_element": 8, "max_iter": 15}
    values["run"] = {"checkpoint_interval": 1}
    request = replace(_request(values, tmp_path), run_options=("--fresh",))
    plan = scheduler.plan(request)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in plan.text
    registry = Registry(open_store(request.config.storage), "cu")
    with PodRunner(node, namespace, tmp_path) as runner:
        handle = scheduler.submit(plan)
        first, *_ = wait_for(registry.checkpoints(1).found, "a checkpoint")
        (pod,) = node.core.list_namespaced_pod(namespace).items
        node.core.delete_namespaced_pod(pod.metadata.name, namespace)
        lines = list(scheduler.logs(handle, follow=True))
        status = scheduler.status(handle)
    assert (status.state, status.exit_code) == (JobState.SUCCEEDED, 0), lines
    assert str(status.reason).startswith("published gen_01, RMSE on the test set: ")
    assert any("published gen_01 in s3://" in line for line in lines)
    assert runner.exit_codes == [75, 0]
    manifest = registry.get(1)
    assert registry.verify(manifest) == []
    assert len(manifest.attempts) == 2
    assert manifest.attempts[0].attempt == first.attempt
    assert manifest.environment.scheduler is not None
    assert manifest.environment.scheduler.model_dump() == {"kind": "kubernetes", "id": handle.id}
    assert manifest.environment.image == "mlip-job:tests"


def test_an_indexed_job_trains_an_ensemble(
    scheduler: KubernetesScheduler,
    values: dict[str, Any],
    node: Node,
    namespace: str,
    tmp_path: Path,
) -> None:
    """Each pod trains the member of its index; the last one to end publishes the best."""
    request = replace(_request(values, tmp_path), ensemble=2)
    with PodRunner(node, namespace, tmp_path) as runner:
        handle = scheduler.submit(scheduler.plan(request))
        lines = list(scheduler.logs(handle, follow=True))
        status = scheduler.status(handle)
    assert (status.state, status.reason) == (JobState.SUCCEEDED, "all 2 members are done"), lines
    assert runner.exit_codes == [0, 0]
    assert any("published gen_01 in s3://" in line for line in lines)
    registry = Registry(open_store(request.config.storage), "cu")
    manifest = registry.get(1)
    assert registry.verify(manifest) == []
    assert manifest.ensemble is not None
    assert [(m.number, m.seed) for m in manifest.ensemble.members] == [(1, 42), (2, 43)]
    assert manifest.environment.scheduler is not None
    assert manifest.environment.scheduler.id == f"{handle.id}/{manifest.ensemble.best - 1}"
