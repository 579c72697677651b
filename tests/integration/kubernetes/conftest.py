"""A namespace on a real control plane, and the scheduler of a user with minimal rights."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from mlip_job.config import JobConfig
from mlip_job.config.load import validate_config
from mlip_job.schedulers.base import JobHandle, JobRequest
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from tests.cli import Cli
from tests.generations import TINY
from tests.integration.kubernetes.families import Family
from tests.servers.kubelet import RealNode
from tests.servers.kubernetes import SUBMITTER, ControlPlane
from tests.servers.node import Node
from tests.servers.s3 import S3Server, running_s3_server
from tests.support import rattled, write_database

Submit = Callable[..., "JobHandle"]

DOCUMENT = Path(__file__).parents[3] / "docs" / "kubernetes.md"


def documented_rules(name: str = "mlip-job-submitter") -> list[dict[str, Any]]:
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in text.split("```yaml\n")[1:]]
    documents = [document for block in blocks for document in yaml.safe_load_all(block)]
    roles = [one for one in documents if one and one.get("kind") == "Role"]
    (role,) = (one for one in roles if one["metadata"]["name"] == name)
    rules: list[dict[str, Any]] = role["rules"]
    return rules


@pytest.fixture
def namespace(control_plane: ControlPlane, node: Node) -> str:
    """Create a restricted namespace in which the submitter has the documented role."""
    name = control_plane.new_namespace()
    control_plane.allow(name, documented_rules(), SUBMITTER)
    return name


@pytest.fixture
def configure(
    namespace: str, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., JobConfig]:
    kubeconfig = control_plane.kubeconfig(SUBMITTER, namespace=namespace)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    def make(*, family: str = "cu-ni", cutoff: float = 5.0, **settings: Any) -> JobConfig:
        kubernetes = {"image": "registry.example/mlip-job:1", "backoff_limit": 0, **settings}
        return validate_config(
            {
                "family": family,
                "database": {"url": "postgresql://ase@db.example/ase"},
                "training": {"cutoff": cutoff, "max_iter": 100},  # so that it requests a GPU
                "storage": {"url": "s3://mlip/potentials"},
                "submit": {"scheduler": "kubernetes", "kubernetes": kubernetes},
            },
            source="test",
        )

    return make


@pytest.fixture
def request_for(configure: Callable[..., JobConfig]) -> Callable[..., JobRequest]:
    def make(generation: int = 4, ensemble: int | None = None, **settings: Any) -> JobRequest:
        return JobRequest(configure(**settings), generation, Path("/"), ensemble=ensemble)

    return make


@pytest.fixture
def config_file(configure: Callable[..., JobConfig], tmp_path: Path) -> Path:
    """Write a configuration whose store needs credentials that are missing here."""
    path = tmp_path / "mlip-job.yaml"
    values = configure().model_dump(mode="json") | {"work_dir": str(tmp_path / "work")}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def scheduler(configure: Callable[..., JobConfig]) -> KubernetesScheduler:
    return KubernetesScheduler(configure().submit.kubernetes, poll_seconds=0.1)


@pytest.fixture
def submit(scheduler: KubernetesScheduler, request_for: Callable[..., JobRequest]) -> Submit:
    return lambda *arguments, **settings: scheduler.submit(
        scheduler.plan(request_for(*arguments, **settings))
    )


@pytest.fixture(scope="session")
def s3_for_pods(
    real_node: RealNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with running_s3_server(log, real_node.address) as server:
        yield server


@pytest.fixture
def family(
    real_node: RealNode,
    s3_for_pods: S3Server,
    s3_credentials: None,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Family]:
    """Make a family with its store in S3 and keys in a Secret; remaining Jobs are deleted."""
    plane = real_node.plane
    namespace = plane.new_namespace()
    plane.allow(namespace, documented_rules(), SUBMITTER)
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig(SUBMITTER, namespace=namespace)))
    bucket = f"mlip-{secrets.token_hex(6)}"
    client = boto3.client("s3", endpoint_url=s3_for_pods.endpoint_url, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    client.close()
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    real_node.core.create_namespaced_secret(
        namespace, {"metadata": {"name": "mlip"}, "stringData": keys}
    )
    data = tmp_path / "data"
    data.mkdir()
    write_database(data / "structures.db", rattled(8))
    values = {
        "family": "cu",
        "database": {"url": "/data/structures.db"},
        "training": dict(TINY),
        "storage": {"url": f"s3://{bucket}/some/prefix", "endpoint_url": s3_for_pods.endpoint_url},
        "evaluation": {
            "active_set": False,
            "dynamics_steps": 10,
            "gate": {"require_physics": False},
        },
        "run": {"checkpoint_interval": 1},
        "submit": {
            "scheduler": "kubernetes",
            "kubernetes": real_node.placement
            | {
                "cpu": "1",
                "memory": "2Gi",
                "work_size": "1Gi",
                "gpus": 1,
                "require_gpu": False,  # the GPU is only a number
                "secrets": ["mlip"],
                "claims": [
                    {
                        "claim": real_node.claim(namespace, "structures", data),
                        "mount_path": "/data",
                        "read_only": True,
                    }
                ],
            },
        },
    }
    path = tmp_path / "mlip-job.yaml"
    path.write_text(yaml.safe_dump(values))
    yield Family(real_node, namespace, path, cli)
    real_node.batch.delete_collection_namespaced_job(namespace, propagation_policy="Background")
