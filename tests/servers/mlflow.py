"""A real MLflow tracking server on a free port of this machine, started once per session."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_TIMEOUT = 180
"""Seconds: it imports for ten on an idle machine."""


@dataclass(frozen=True)
class MlflowServer:
    """A running server.

    Attributes
    ----------
    uri
        Where it listens.
    """

    uri: str

    def get(self, path: str, **query: str) -> Any:
        """Call its REST API, with no client of MLflow's in between."""
        url = f"{self.uri}/api/2.0/mlflow/{path}?{urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - ours
            return json.load(answer)

    def post(self, path: str, **body: Any) -> Any:
        """Call its REST API with a document."""
        request = urllib.request.Request(  # noqa: S310 - ours
            f"{self.uri}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - ours
            return json.load(answer)

    def runs(self, experiment: str) -> list[Any]:
        """Return all runs of an experiment, none where it does not exist."""
        try:
            found = self.get("experiments/get-by-name", experiment_name=experiment)
        except urllib.error.HTTPError:
            return []
        id_ = found["experiment"]["experiment_id"]
        runs: list[Any] = self.post("runs/search", experiment_ids=[id_]).get("runs", [])
        return runs


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Start a server with an SQLite file behind it, and end it with the session."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    program = cache / "mlip-job-tests" / "mlflow" / "bin" / "mlflow"
    if not program.is_file():
        pytest.skip(f"no MLflow server at {program}; install it with: make servers")
    directory = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        _wait_until_ready(server, process, directory / "server.log")
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_until_ready(server: MlflowServer, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.uri}/health", timeout=5):  # noqa: S310 - ours
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"the MLflow server does not start: {log.read_text()[-2000:]}")
