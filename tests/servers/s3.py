"""A real S3 API server for the tests: moto's, as a separate process."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from mlip_job.config import StorageConfig

# moto lists its own directory for every request, which takes 40 % of its time.
_SERVER = """
import logging
from moto import backends, server

modules = tuple(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: modules
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server.main()
"""


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint_url: str


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start a server on a free port of this machine, and end it with the session."""
    with running_s3_server(tmp_path_factory.mktemp("s3") / "server.log") as server:
        yield server


@contextmanager
def running_s3_server(log: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, "-H", host, "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        server = S3Server(f"http://{host}:{port}")
        _wait_until_ready(server, process, log.read_text)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: object) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.endpoint_url}/moto-api/", timeout=5):  # noqa: S310 - ours
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"the S3 server does not start: {log() if callable(log) else ''}")


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")


@pytest.fixture
def s3_bucket(s3_server: S3Server, s3_credentials: None) -> StorageConfig:
    bucket = f"mlip-{secrets.token_hex(6)}"
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    client.close()
    return StorageConfig(url=f"s3://{bucket}/some/prefix", endpoint_url=s3_server.endpoint_url)
