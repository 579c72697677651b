"""Log a published generation to an MLflow server, if one is configured.

A failure is a warning: the generation is published already.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlip_job.errors import ConfigError, MlipJobError, UnavailableError
from mlip_job.models import Errors
from mlip_job.paths import FamilyKeys, generation_name
from mlip_job.report.figures import QUANTITIES, learning_curves
from mlip_job.report.model import TrainingReport
from mlip_job.secret_texts import redact
from mlip_job.training import published_potential

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlip_job.config import TrackingConfig
    from mlip_job.registry import Manifest, Registry

    Call = Callable[..., Any]
    """Calls a method of MLflow's client."""

_log = logging.getLogger(__name__)

_REPORTS = ("report.json", "report.html")
_MAX_POINTS = 500  # of a learning curve; report.json has all
_MAX_PARAMETER, _MAX_METRICS = 6000, 1000  # limits of MLflow
_TIMEOUT_SECONDS = 60.0
_SETTINGS = {
    # One retry, and no waiting for minutes: the result of the job does not depend on it.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # a container has no git program
}


def track_generation(
    config: TrackingConfig,
    registry: Registry,
    manifest: Manifest,
    message: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> None:
    """Log a published generation, unless the server has it; failures are warnings.

    `cancelled` is called before each request; True ends the logging.
    """
    if config.mlflow_uri is None:
        return
    name, uri = generation_name(manifest.generation), config.mlflow_uri
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or manifest.family
    try:
        with tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
            names = (*_REPORTS, published_potential(manifest.artefacts))
            files = [Path(temporary) / name for name in names if name in manifest.artefacts]
            for path in files:
                registry.fetch(manifest, path.name, path)
            report = TrainingReport.from_json((Path(temporary) / "report.json").read_bytes())
            tags = tags_of(manifest, registry.store.url)
            call = _connect(uri, cancelled)
            created = _log_run(call, experiment, name, manifest, report, tags, files)
    except MlipJobError as error:
        _log.warning("%s is published, but not logged to %s: %s", name, uri, error)
        return
    done = "logged" if created else "is logged already"
    message(f"{name} {done} in experiment {experiment!r} of {uri}")


def check_server(config: TrackingConfig) -> str:
    """Return a message if the server is available and accepts the credentials, else raise."""
    _connect(f"{config.mlflow_uri}", lambda: False)("search_experiments", max_results=1)
    return f"{config.mlflow_uri} answers"


def _connect(uri: str, cancelled: Callable[[], bool]) -> Call:
    """Return a function that calls a method of MLflow's client, with our errors and in time."""
    if find_spec("mlflow") is None:
        raise ConfigError(
            "the Python package mlflow-skinny is not installed",
            hint="pip install 'mlip-job[mlflow]', or set tracking.mlflow_uri to null",
        )
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)  # read when MLflow is imported
    from mlflow import MlflowClient  # noqa: PLC0415 - takes a second, and is an extra
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    client, end = MlflowClient(tracking_uri=uri), time.monotonic() + _TIMEOUT_SECONDS

    def call(method: str, *arguments: Any, **options: Any) -> Any:
        if cancelled():
            raise UnavailableError("interrupted by a signal")
        if time.monotonic() > end:
            raise UnavailableError(f"not finished within {_TIMEOUT_SECONDS:.0f} s")
        try:
            return getattr(client, method)(*arguments, **options)
        except (MlflowException, OSError) as error:
            text = _without_secrets(" ".join(str(error).split()))
            raise UnavailableError(text, hint="check tracking.mlflow_uri") from None

    return call


def _without_secrets(text: str) -> str:
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{n}", "") for n in ("USERNAME", "PASSWORD"))
    as_http_sends_it = b64encode(f"{user}:{password}".encode()).decode()
    return redact(text, password, as_http_sends_it, os.environ.get("MLFLOW_TRACKING_TOKEN"))


def _log_run(
    call: Call,
    experiment: str,
    name: str,
    manifest: Manifest,
    report: TrainingReport,
    tags: Mapping[str, str],
    files: list[Path],
) -> bool:
    """Log a generation, completing an unfinished run; return False if it was logged already."""
    from mlflow.entities import Metric, Param  # noqa: PLC0415 - see _connect

    started, ended = (int(t.timestamp() * 1000) for t in (manifest.started, manifest.ended))
    found = call("get_experiment_by_name", experiment)
    where = str(found.experiment_id if found else call("create_experiment", experiment))
    condition = f"tags.`mlip_job.attempt` = '{manifest.attempt}'"
    runs = call("search_runs", [where], filter_string=condition, max_results=1)
    if runs and runs[0].info.status == "FINISHED":
        return False
    run = (runs[0] if runs else call("create_run", where, started, tags, name)).info.run_id
    call("log_batch", run, params=[Param(*one) for one in parameters_of(manifest)])
    # The same time in each attempt: MLflow stores equal values at equal times once.
    metrics = [Metric(key, value, ended, step) for key, value, step in metrics_of(report)]
    for first in range(0, len(metrics), _MAX_METRICS):
        call("log_batch", run, metrics=metrics[first : first + _MAX_METRICS])
    for path in files:
        call("log_artifact", run, str(path))
    call("set_terminated", run, end_time=ended)
    return True


def tags_of(manifest: Manifest, store_url: str) -> dict[str, str]:
    """Return identity, lineage, place and verdict of a generation; the attempt identifies a run."""
    parent, headline = manifest.parent, manifest.headline
    tags = {
        "attempt": manifest.attempt,
        "family": manifest.family,
        "generation": str(manifest.generation),
        "elements": ", ".join(manifest.elements),
        "parent": generation_name(parent.generation) if parent is not None else "none",
        "dataset": manifest.dataset.id,
        "store": store_url,
        "manifest": FamilyKeys(manifest.family).manifest(manifest.generation),
        "accepted": str(headline.accepted).lower(),
        "gate": headline.verdict,
    }
    return {f"mlip_job.{name}": value for name, value in tags.items()}


def parameters_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the settings of a generation, and the sizes of its sets."""
    for section in ("dataset", "training"):
        for key, value in manifest.config.get(section, {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{section}.{key}", text[:_MAX_PARAMETER]
    yield "dataset.train", str(manifest.dataset.train)
    yield "dataset.test", str(manifest.dataset.test)


def metrics_of(report: TrainingReport) -> Iterator[tuple[str, float, int]]:
    """Yield name, which is the place in report.json, value and step."""
    errors = {
        *Errors.model_fields,
        "energy_percentiles_mev_per_atom",
        "force_percentiles_mev_per_angstrom",
        "stress_percentiles_gpa",
        "extrapolation_grade",
    }
    logged: dict[str, Any] = {
        "fit": {"train", "test", "iterations", "functions", "parameters", "loss_shares"},
        "timings_s": True,
        "phases_s": True,
        "evaluation": {"train": errors, "test": errors, "parent": True, "speed": True},
    }
    yield from _numbers(report.model_dump(include=logged))
    for quantity in QUANTITIES:
        train, test = learning_curves(report.fit, quantity.value_of)
        for side, points in (("train_curve", train), ("test_curve", test)):
            stride = max(1, math.ceil(len(points) / _MAX_POINTS))
            for iteration, value in points[::-1][::stride][::-1]:  # the last point is kept
                yield f"fit.{side}.{quantity.key}", value, int(iteration)


def _numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float, int]]:
    """Yield every finite number below `values`, not those in lists."""
    for key, inner in values.items():
        if isinstance(inner, dict):
            yield from _numbers(inner, f"{path}{key}.")
        elif isinstance(inner, int | float) and math.isfinite(inner):
            yield f"{path}{key}", float(inner), 0
