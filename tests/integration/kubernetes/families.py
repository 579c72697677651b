"""A family whose generations are trained by pods on a real node."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlip_job.config import JobConfig
from mlip_job.config.load import load_config
from mlip_job.registry import Registry
from mlip_job.schedulers.kubernetes.status import has_ended
from tests.cli import Cli, Ended
from tests.faults.jobs import iterations_safe, registry_of
from tests.servers.kubelet import RealNode


@dataclass(frozen=True)
class Family:
    """A family in a restricted namespace, with its database on a volume."""

    node: RealNode
    namespace: str
    path: Path
    cli: Cli

    def configure(self, *, training: dict[str, Any] | None = None, **kubernetes: Any) -> None:
        values = yaml.safe_load(self.path.read_text())
        values["training"] |= training or {}
        values["submit"]["kubernetes"] |= kubernetes
        self.path.write_text(yaml.safe_dump(values))

    @property
    def config(self) -> JobConfig:
        return load_config(self.path, environment={})

    @property
    def registry(self) -> Registry:
        return registry_of(self.config)

    def run(self, *arguments: str) -> Ended:
        return self.cli("-c", self.path, *arguments)

    def submit(self, generation: int = 1) -> str:
        submitted = self.run("submit", "-g", str(generation), "--json")
        assert submitted.code == 0, submitted.err
        (job,) = json.loads(submitted.out)["jobs"]
        return str(job["name"])

    def job(self, name: str) -> dict[str, Any]:
        job = self.node.batch.read_namespaced_job(name, self.namespace)
        manifest: dict[str, Any] = self.node.batch.api_client.sanitize_for_serialization(job)
        return manifest

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        return self.node.wait_for(self.namespace, what, condition)

    def wait_for_checkpoint(self) -> int:
        count: int = self.wait_for("a checkpoint", lambda: iterations_safe(self.config))
        return count

    def wait_for_end(self, job: str, generation: int = 1) -> dict[str, Any]:
        self.wait_for(f"the end of {job}", lambda: has_ended(self.job(job)))
        return self.status(generation)

    def status(self, generation: int = 1) -> dict[str, Any]:
        said = self.run("status", "-g", str(generation), "--json")
        status: dict[str, Any] = json.loads(said.out)
        return status
