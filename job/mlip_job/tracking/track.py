"""Log a published generation. Whatever goes wrong here is a warning: the generation is safe."""

from __future__ import annotations

import http.client
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, MlipJobError, UnavailableError
from mlip_job.naming import generation_name
from mlip_job.report import TrainingReport
from mlip_job.secret_texts import redact
from mlip_job.tracking.record import LOGGED_ARTEFACTS, LoggedRun, LoggingRequest, describe_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.config import TrackingConfig
    from mlip_job.registry import Manifest, Registry

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60.0
_GLANCE_SECONDS = 0.2
_CHECK_SECONDS = 10.0
_CLIENT_ENVIRONMENT = {
    # One more try, and no waiting for minutes: this is no part of the job's result.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # it looks for a git program, which a container has not
}


def track_generation(
    config: TrackingConfig,
    registry: Registry,
    manifest: Manifest,
    say: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> None:
    """Log a published generation to the configured server, unless it has it.

    Never raises for what is wrong with the server, and takes a minute at most.

    Parameters
    ----------
    config
        Which server; nothing is done where none is configured.
    registry, manifest
        What to log.
    say
        Told that it was logged.
    cancelled
        Asked often; where it says so, logging is given up.
    """
    if config.mlflow_uri is None:
        return
    name = generation_name(manifest.generation)
    try:
        require_mlflow()
        with tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
            run = _describe(config, registry, manifest, Path(temporary))
            request = LoggingRequest(uri=config.mlflow_uri, run=run)
            done = _call_client(request, cancelled)
    except MlipJobError as error:
        _log.warning("%s is published, but not logged to %s: %s", name, config.mlflow_uri, error)
        return
    say(f"{name} {done} of {config.mlflow_uri}")


def require_mlflow() -> None:
    """Check that MLflow's client is installed.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if find_spec("mlflow") is None:
        raise ConfigError(
            "the Python package mlflow-skinny is not installed",
            hint="pip install 'mlip-job[mlflow]', or set tracking.mlflow_uri to null",
        )


def check_server(config: TrackingConfig) -> str:
    """Return a line that says that the configured server answers.

    Raises
    ------
    ConfigError
        If MLflow's client is not installed.
    UnavailableError
        If nothing answers.
    """
    require_mlflow()
    address = f"{config.mlflow_uri}".rstrip("/") + "/health"
    try:
        with urllib.request.urlopen(address, timeout=_CHECK_SECONDS):  # noqa: S310 - http or https
            pass
    except urllib.error.HTTPError:
        pass  # whatever it answers, it is there
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(
            f"the MLflow server at {config.mlflow_uri} does not answer: {reason}",
            hint="runs go on without it; check tracking.mlflow_uri",
        ) from None
    return f"{config.mlflow_uri} answers"


def _describe(
    config: TrackingConfig, registry: Registry, manifest: Manifest, directory: Path
) -> LoggedRun:
    files = {name: directory / name for name in LOGGED_ARTEFACTS if name in manifest.artefacts}
    for name, path in files.items():
        registry.fetch(manifest, name, path)
    report = TrainingReport.from_json(files["report.json"].read_bytes())
    return describe_run(
        manifest,
        report,
        store_url=registry.store.url,
        experiment=config.experiment,
        files={name: str(path) for name, path in files.items()},
    )


def _call_client(request: LoggingRequest, cancelled: Callable[[], bool]) -> str:
    """Run the client and return what it says; end it when time is up."""
    client = subprocess.Popen(
        [sys.executable, "-m", "mlip_job.tracking.client"],
        env=_CLIENT_ENVIRONMENT | os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    text: str | None = request.model_dump_json()
    end = time.monotonic() + _TIMEOUT_SECONDS
    with client:
        while True:
            try:
                out, problems = client.communicate(text, timeout=_GLANCE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                text = None  # it is on its way
                given_up = "a signal came" if cancelled() else None
                if time.monotonic() > end:
                    given_up = f"no end within {_TIMEOUT_SECONDS:.0f} s"
                if given_up is not None:
                    client.kill()
                    raise UnavailableError(given_up) from None
    if client.returncode != 0:
        last = problems.strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(_without_secrets(last[0]))
    return out.strip()


def _without_secrets(text: str) -> str:
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{n}", "") for n in ("USERNAME", "PASSWORD"))
    as_http_sends_it = b64encode(f"{user}:{password}".encode()).decode()
    return redact(text, password, as_http_sends_it, os.environ.get("MLFLOW_TRACKING_TOKEN"))
