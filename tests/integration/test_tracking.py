"""Published generations in a real MLflow server; its failure does not affect the job."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from mlip_job.config import TrackingConfig
from mlip_job.report.model import TrainingReport
from mlip_job.tracking import track_generation
from tests.cli import Cli
from tests.generations import Family
from tests.servers.mlflow import MlflowServer

pytestmark = pytest.mark.pacemaker


def track(family: Family, uri: str, experiment: str, *, cancelled: bool = False) -> list[str]:
    said: list[str] = []
    manifest = family.registry.get(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
        config = TrackingConfig(mlflow_uri=uri)
        track_generation(config, family.registry, manifest, said.append, lambda: cancelled)
    return said


def test_a_training_is_logged_once(family: Family, mlflow_server: MlflowServer, cli: Cli) -> None:
    """With parameters, metrics, learning curve, lineage and artefacts; again changes nothing."""
    tracking = ("--set", f"tracking.mlflow_uri={mlflow_server.uri}")
    command = ("run", "-c", family.config_path, "-g", 1, *tracking)
    ended = cli(*command)
    assert ended.code == 0, ended.err
    assert "gen_01 logged in experiment 'cu'" in ended.err
    (run,) = mlflow_server.runs("cu")
    assert run["info"]["run_name"] == "gen_01"
    assert run["info"]["status"] == "FINISHED"

    manifest = family.registry.get(1)
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["mlip_job.attempt"] == manifest.attempt
    assert tags["mlip_job.dataset"] == manifest.dataset.id
    assert tags["mlip_job.manifest"] == "cu/generations/gen_01/manifest.json"
    parameters = {p["key"]: p["value"] for p in run["data"]["params"]}
    assert parameters["training.functions_per_element"] == "10"
    assert parameters["training.evaluator"] == "pyace"
    assert parameters["dataset.train"] == str(manifest.dataset.train)
    report = TrainingReport.from_json(
        (family.store / manifest.artefacts["report.json"].key).read_bytes()
    )
    metrics = {m["key"]: m["value"] for m in run["data"]["metrics"]}
    assert report.fit.train is not None
    expected = report.fit.train.rmse_energy_mev_per_atom
    assert metrics["fit.train.rmse_energy_mev_per_atom"] == pytest.approx(expected)
    run_id = run["info"]["run_id"]
    loss = mlflow_server.get(
        "metrics/get-history", run_id=run_id, metric_key="fit.train_curve.loss"
    )["metrics"]
    assert loss[-1]["step"] == report.fit.iterations
    assert [point["value"] for point in loss] == [p.loss for p in report.fit.train_curve]

    listed = mlflow_server.get("artifacts/list", run_id=run_id)["files"]
    assert {"potential.yace", "report.json"} <= {file["path"] for file in listed}
    root = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
    address = f"{mlflow_server.uri}/api/2.0/mlflow-artifacts/artifacts/{root}/potential.yace"
    with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - ours
        assert (
            answer.read() == (family.store / manifest.artefacts["potential.yace"].key).read_bytes()
        )

    again = cli(*command)
    assert again.code == 0
    assert "nothing to do" in again.err
    assert "gen_01 is logged already" in again.err
    assert [r["info"]["run_id"] for r in mlflow_server.runs("cu")] == [run_id]


def test_an_interrupted_upload_is_completed(family: Family, mlflow_server: MlflowServer) -> None:
    created = mlflow_server.post("experiments/create", name="half")
    tag = {"key": "mlip_job.attempt", "value": family.registry.get(1).attempt}
    run = mlflow_server.post(
        "runs/create", experiment_id=created["experiment_id"], run_name="gen_01", tags=[tag]
    )["run"]
    (said,) = track(family, mlflow_server.uri, "half")
    assert "gen_01 logged in experiment 'half'" in said
    (found,) = mlflow_server.runs("half")
    assert found["info"]["run_id"] == run["info"]["run_id"]
    assert found["info"]["status"] == "FINISHED"
    assert len(found["data"]["metrics"]) > 5


def test_an_unavailable_server_is_a_warning(
    family: Family, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ended = cli("run", "-c", family.config_path, "-g", 1, "--set", f"tracking.mlflow_uri={uri}")
    assert ended.code == 0, ended.err
    assert "nothing to do" in ended.err
    assert f"gen_01 is published, but not logged to {uri}" in caplog.text
    assert "Connection refused" in caplog.text


def test_check_tests_the_server(
    family: Family, mlflow_server: MlflowServer, refusing: str, cli: Cli
) -> None:
    """It is available and accepts the credentials, or check reports it."""
    check = ("check", "-c", family.config_path, "--set")
    ended = cli(*check, f"tracking.mlflow_uri={mlflow_server.uri}")
    assert f"ok    tracking      {mlflow_server.uri} answers" in ended.out
    ended = cli(*check, f"tracking.mlflow_uri={refusing}")
    assert ended.code == 69
    assert "FAIL  tracking" in ended.out
    assert "401" in ended.out


class _Refusing(BaseHTTPRequestHandler):
    """Rejects every request, and repeats its content."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(f"no entry with {self.headers['Authorization']}, s3cret-word".encode())

    do_POST = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, *_arguments: Any) -> None:
        """Log nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_credentials_stay_out_of_the_warning(
    family: Family, refusing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-word")
    assert track(family, refusing, "x") == []
    assert "not logged" in caplog.text
    assert "no entry with" in caplog.text
    assert "***" in caplog.text
    assert "s3cret-word" not in caplog.text
    assert "bWU6czNjcmV0LXdvcmQ=" not in caplog.text  # the same in base64, as sent


def test_a_server_that_never_responds_costs_seconds(
    family: Family, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The timeout is seconds, and a signal ends the wait immediately."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert track(family, uri, "x", cancelled=True) == []
        assert "interrupted by a signal" in caplog.text
        started = time.monotonic()
        assert track(family, uri, "x") == []
        assert time.monotonic() - started < 30
        assert "timed out" in caplog.text
        monkeypatch.setattr("mlip_job.tracking._TIMEOUT_SECONDS", -1)
        assert track(family, uri, "x") == []
        assert "not finished within" in caplog.text


def test_a_missing_client_is_a_warning(
    family: Family, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mlip_job.tracking.find_spec", lambda _name: None)
    assert track(family, "http://127.0.0.1:9", "x") == []
    assert "pip install 'mlip-job[mlflow]'" in caplog.text
