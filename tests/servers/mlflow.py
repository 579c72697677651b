"""A real MLflow tracking server on a free port of this machine, started once per session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.servers.processes import CACHE, free_port, responds, wait_until


@dataclass(frozen=True)
class MlflowServer:
    """A running server."""

    uri: str

    def get(self, path: str, **query: str) -> Any:
        url = f"{self.uri}/api/2.0/mlflow/{path}?{urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - ours
            return json.load(answer)

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(  # noqa: S310 - ours
            f"{self.uri}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - ours
            return json.load(answer)

    def runs(self, experiment: str) -> list[Any]:
        try:
            found = self.get("experiments/get-by-name", experiment_name=experiment)
        except urllib.error.HTTPError:
            return []
        id_ = found["experiment"]["experiment_id"]
        runs: list[Any] = self.post("runs/search", experiment_ids=[id_]).get("runs", [])
        return runs


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    program = CACHE / "mlflow" / "bin" / "mlflow"
    if not program.is_file():
        pytest.skip(f"no MLflow server at {program}; install it with: make servers")
    directory = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    with (directory / "server.log").open("wb") as output:
        process = subprocess.Popen(
            [
                str(program), "server", "--host", "127.0.0.1", "--port", str(port),
                "--workers", "1",
                "--backend-store-uri", f"sqlite:///{directory}/mlflow.db",
                "--artifacts-destination", str(directory / "artifacts"),
            ],
            cwd=directory,
            env=os.environ
            | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        server = MlflowServer(f"http://127.0.0.1:{port}")
        wait_until(
            lambda: responds(f"{server.uri}/health", process),
            "the MLflow server",
            log=directory / "server.log",
            timeout=180,  # its imports take ten seconds on an idle machine
        )
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
