"""A family whose jobs run on the private cluster."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlip_job
from mlip_job.config import JobConfig, load_config
from mlip_job.paths import generation_name
from mlip_job.registry import Registry
from mlip_job.store.open import open_store
from tests.cli import Cli, Ended
from tests.generations import TINY
from tests.servers.slurm import SlurmCluster
from tests.support import rattled, write_database

# LONG never ends by itself.
LONG = {"functions_per_element": 8, "max_iter": 100_000}


@dataclass
class Family:
    """Runs ``mlip-job`` for a family in a separate directory.

    Attributes
    ----------
    directory
        Of the configuration, the database, the store and the work directory.
    cluster
        Where its jobs run.
    values
        The configuration's keys.
    """

    directory: Path
    cluster: SlurmCluster
    cli: Cli
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.directory / "mlip-job.yaml"

    def configure(self, *, training: dict[str, Any] | None = None, **slurm: Any) -> JobConfig:
        self.values["training"] |= training or {}
        self.values["submit"]["slurm"] |= slurm
        self.path.write_text(yaml.safe_dump(self.values))
        return load_config(self.path, environment={})

    def run(self, *arguments: object) -> Ended:
        return self.cli("-c", self.path, *arguments)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mlip_job", "-c", self.path, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def preempt(self) -> None:
        options = ("--partition=urgent", "--exclusive", "--output=/dev/null")
        self.cluster.run("sbatch", *options, "--wrap", "sleep 1")

    def submit(self, *arguments: object) -> str:
        ended = self.run("submit", *(arguments or ("-g", 1)), "--json")
        assert ended.code == 0, ended.err
        job_id: str = json.loads(ended.out)["jobs"][0]["id"]
        return job_id

    def status(self, generation: int = 1) -> dict[str, Any]:
        ended = self.run("status", "-g", generation, "--json")
        assert (ended.code, ended.err) == (0, "")
        document: dict[str, Any] = json.loads(ended.out)
        return document

    def wait_for(self, *states: str, generation: int = 1, timeout: float = 300) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while (found := self.status(generation))["state"] not in states:
            assert time.monotonic() < end, (found, self.log())
            time.sleep(0.3)
        return found

    def wait_for_checkpoint(self, beyond: int = 0, timeout: float = 300) -> int:
        """Wait until the fit has done more iterations than this; return their number."""
        end = time.monotonic() + timeout
        while (done := self.status()["iterations"] or 0) <= beyond:
            assert time.monotonic() < end, self.log()
            time.sleep(0.3)
        return done

    def wait_for_log(self, text: str, generation: int = 1, timeout: float = 300) -> str:
        """Wait until the jobs of a generation have printed a text; return their output."""
        end = time.monotonic() + timeout
        while text not in (log := self.log(generation)):
            assert time.monotonic() < end, log
            time.sleep(0.3)
        return log

    def log(self, generation: int = 1) -> str:
        logs = sorted(self.work(generation).glob("slurm-*.log"))
        return "".join(path.read_text(errors="replace") for path in logs)

    def work(self, generation: int = 1) -> Path:
        return self.directory / "work" / generation_name(generation)

    def end_fit_after(self, iterations: int, generation: int = 1) -> None:
        path = self.work(generation) / "mlip-job.yaml"
        values = yaml.safe_load(path.read_text())
        values["training"]["max_iter"] = iterations
        path.write_text(yaml.safe_dump(values))

    def resume_briefly(self, job: str) -> None:
        self.cluster.run("scontrol", "hold", job)
        self.end_fit_after(self.wait_for_checkpoint() + 2)
        self.cluster.run("scontrol", "release", job)

    def registry(self) -> Registry:
        config = load_config(self.path, environment={})
        return Registry(open_store(config.storage), config.family)


@pytest.fixture
def family(tmp_path: Path, slurm: SlurmCluster, cli: Cli) -> Family:
    """Return a family on the cluster without accounting, with the real ``mlip-job``."""
    return make_family(tmp_path, slurm, cli)


def make_family(directory: Path, cluster: SlurmCluster, cli: Cli) -> Family:
    write_database(directory / "structures.db", rattled(8))
    package = shlex.quote(str(Path(mlip_job.__file__).parent.parent))
    values: dict[str, Any] = {
        "family": "cu",
        "database": {"url": "structures.db"},
        "training": dict(TINY),
        "evaluation": {"active_set": False, "gate": {"require_physics": False}},
        "storage": {"url": "store"},
        "run": {"checkpoint_interval": 1, "heartbeat_interval": 0.5, "stop_timeout": 5},
        "submit": {
            "scheduler": "slurm",
            "poll_interval": 0.5,
            "slurm": {
                "command": str(Path(sys.executable).parent / "mlip-job"),
                "setup": [f"export PYTHONPATH={package}"],
                "cpus": 1,
            },
        },
    }
    family = Family(directory, cluster, cli, values)
    family.configure()
    return family


@pytest.fixture
def stand_in(family: Family) -> Callable[[str], None]:
    """Return a function that makes jobs run a few lines of shell instead of ``mlip-job``."""

    def write(lines: str) -> None:
        program = family.directory / f"stand-in-{hashlib.sha256(lines.encode()).hexdigest()[:8]}"
        program.write_text(f"#!/bin/bash\n{lines}\n")
        program.chmod(0o755)
        family.configure(command=str(program), setup=[])

    return write
