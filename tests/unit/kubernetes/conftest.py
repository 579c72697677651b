"""Requests to plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config.load import validate_config
from mlip_job.schedulers.base import JobRequest

MINORS = ("1.35", "1.36", "1.37")
"""The newest minor versions of Kubernetes."""

EVERYTHING: dict[str, Any] = {
    "namespace": "alloys",
    "image": "registry.example/mlip-job@sha256:0123456789abcdef",
    "image_pull_secrets": ["registry"],
    "cpu": 8,
    "cpu_limit": 16,
    "memory": "64Gi",
    "gpus": 2,
    "gpu_resource": "amd.com/gpu",
    "runtime_class": "nvidia",
    "work_size": "100Gi",
    "ephemeral_storage_limit": "110Gi",
    "secrets": ["database", "s3"],
    "env": {"TF_CPP_MIN_LOG_LEVEL": "2"},
    "claims": [
        {"claim": "structures", "mount_path": "/data", "read_only": True},
        {"claim": "store", "mount_path": "/store"},
    ],
    "volumes": [{"name": "more", "emptyDir": {}}],
    "volume_mounts": [{"name": "more", "mountPath": "/more"}],
    "service_account": "trainer",
    "queue": "training",
    "priority_class": "batch",
    "node_selector": {"pool": "gpu", "kubernetes.io/arch": "arm64"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "labels": {"team": "alloys"},
    "annotations": {"example.com/cost-centre": "4711"},
    "backoff_limit": 1,
    "active_deadline_seconds": 86400,
    "ttl_days": 0.5,
    "run_as_user": 2000,
    "without_gpu": {
        "cpu": 16,
        "memory": "8Gi",
        "node_selector": {"pool": "cpu"},
        "queue": "plain",
    },
}
"""A value for every setting except `context`, which is not part of a manifest."""


@pytest.fixture
def request_for() -> Callable[..., JobRequest]:
    def make(
        generation: int = 4,
        *,
        family: str = "cu-ni",
        database: str = "postgresql://ase@db.example/ase",
        storage: str = "s3://mlip/potentials",
        sections: dict[str, Any] | None = None,
        ensemble: int | None = None,
        run_options: tuple[str, ...] = (),
        after: str | None = None,
        **settings: Any,
    ) -> JobRequest:
        kubernetes = {"image": "registry.example/mlip-job:1", **settings}
        values = {
            "family": family,
            "database": {"url": database},
            "storage": {"url": storage},
            "training": {"max_iter": 100},  # a linear fit would request no GPU
            "submit": {"scheduler": "kubernetes", "kubernetes": kubernetes},
        }
        config = validate_config(values | (sections or {}), source="test")
        return JobRequest(config, generation, Path("/"), run_options, ensemble, after)

    return make
