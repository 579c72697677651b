"""Log a published generation to an MLflow server, if one is configured.

Whatever goes wrong here is a warning: the generation is safe.
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

from mlip_job.config.evaluation import verdict_word
from mlip_job.errors import ConfigError, MlipJobError, UnavailableError
from mlip_job.naming import FamilyKeys, generation_name
from mlip_job.report.model import TrainingReport
from mlip_job.secret_texts import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlip_job.config import TrackingConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.training.summary import CurvePoint

ATTEMPT_TAG = "mlip_job.attempt"
"""Tells a generation's run from all others."""

_log = logging.getLogger(__name__)

_ARTEFACTS = ("report.json", "report.html", "potential.yace")
_ERRORS = {"energy_mev_per_atom", "force_mev_per_angstrom", "stress_gpa", "extrapolation_grade"}
_FIGURES = {"train", "test", "iterations", "functions", "parameters", "loss_shares"}
_MAX_POINTS = 500  # of a learning curve; report.json has all
_MAX_PARAMETER = 6000  # characters; these three are MLflow's limits
_METRICS_PER_REQUEST = 1000
_ENTRIES_PER_REQUEST = 100
_TIMEOUT_SECONDS = 60.0
_SETTINGS = {
    # One more try, and no waiting for minutes: this is no part of the job's result.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
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
    """Log a published generation, unless the server has it; never raise for what is wrong with it.

    Parameters
    ----------
    config
        Which server; nothing is done where none is configured.
    registry, manifest
        What to log.
    say
        Told that it was logged.
    cancelled
        Asked before each request; where it says so, logging is given up.
    """
    if config.mlflow_uri is None:
        return
    name = generation_name(manifest.generation)
    try:
        with tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
            files = [Path(temporary) / one for one in _ARTEFACTS if one in manifest.artefacts]
            for path in files:
                registry.fetch(manifest, path.name, path)
            report = TrainingReport.from_json((Path(temporary) / "report.json").read_bytes())
            server = _Server(config.mlflow_uri, cancelled)
            experiment = config.experiment or manifest.family
            created = server.log(experiment, manifest, report, registry.store.url, files)
    except MlipJobError as error:
        _log.warning("%s is published, but not logged to %s: %s", name, config.mlflow_uri, error)
        return
    done = "logged" if created else "is logged already"
    say(f"{name} {done} in experiment {experiment!r} of {config.mlflow_uri}")


def check_server(config: TrackingConfig) -> str:
    """Return a line that says that the configured server answers and accepts the credentials.

    Raises
    ------
    ConfigError
        If MLflow's client is not installed.
    UnavailableError
        If it does not.
    """
    _Server(f"{config.mlflow_uri}", lambda: False).call("search_experiments", max_results=1)
    return f"{config.mlflow_uri} answers"


class _Server:
    """MLflow's client, whose errors are ours, and which gives up in time."""

    def __init__(self, uri: str, cancelled: Callable[[], bool]) -> None:
        if find_spec("mlflow") is None:
            raise ConfigError(
                "the Python package mlflow-skinny is not installed",
                hint="pip install 'mlip-job[mlflow]', or set tracking.mlflow_uri to null",
            )
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)  # read when MLflow is imported
        from mlflow import MlflowClient  # noqa: PLC0415 - takes a second, and is an extra

        self._client = MlflowClient(tracking_uri=uri)
        self._cancelled = cancelled
        self._end = time.monotonic() + _TIMEOUT_SECONDS

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Make one request."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 - see above

        if self._cancelled():
            raise UnavailableError("a signal came")
        if time.monotonic() > self._end:
            raise UnavailableError(f"no end within {_TIMEOUT_SECONDS:.0f} s")
        try:
            return getattr(self._client, method)(*arguments, **options)
        except (MlflowException, OSError) as error:
            text = _without_secrets(" ".join(str(error).split()))
            raise UnavailableError(text, hint="check tracking.mlflow_uri") from None

    def log(
        self,
        experiment: str,
        manifest: Manifest,
        report: TrainingReport,
        store_url: str,
        files: list[Path],
    ) -> bool:
        """Log a generation unless that was done; return whether it had to be.

        A run that an earlier call left unfinished is completed.
        """
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 - see above

        begun, ended = (int(t.timestamp() * 1000) for t in (manifest.started, manifest.ended))
        own = {ATTEMPT_TAG: manifest.attempt}
        where, run = self._find(experiment, manifest.attempt)
        if run is not None and run.info.status == "FINISHED":
            return False
        if run is None:
            name = generation_name(manifest.generation)
            run = self.call("create_run", where, start_time=begun, run_name=name, tags=own)
        run_id = run.info.run_id
        tags = [RunTag(*tag) for tag in (own | tags_of(manifest, report, store_url)).items()]
        parameters = [Param(*parameter) for parameter in parameters_of(manifest)]
        # The same stamp each time: MLflow takes the same value at the same time for one value.
        metrics = [Metric(name, value, ended, step) for name, value, step in metrics_of(report)]
        for start in range(0, max(len(parameters), len(tags)), _ENTRIES_PER_REQUEST):
            part = slice(start, start + _ENTRIES_PER_REQUEST)
            self.call("log_batch", run_id, params=parameters[part], tags=tags[part])
        for start in range(0, len(metrics), _METRICS_PER_REQUEST):
            self.call("log_batch", run_id, metrics=metrics[start : start + _METRICS_PER_REQUEST])
        for path in files:
            self.call("log_artifact", run_id, str(path))
        self.call("set_terminated", run_id, end_time=ended)
        return True

    def _find(self, experiment: str, attempt: str) -> tuple[str, Any]:
        """Return the experiment's id, and the attempt's run in it or None."""
        found = self.call("get_experiment_by_name", experiment)
        if found is None:
            return str(self.call("create_experiment", experiment)), None
        condition = f"tags.`{ATTEMPT_TAG}` = '{attempt}'"
        where = str(found.experiment_id)
        runs = self.call("search_runs", [where], filter_string=condition, max_results=1)
        return where, runs[0] if runs else None


def _without_secrets(text: str) -> str:
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{n}", "") for n in ("USERNAME", "PASSWORD"))
    as_http_sends_it = b64encode(f"{user}:{password}".encode()).decode()
    return redact(text, password, as_http_sends_it, os.environ.get("MLFLOW_TRACKING_TOKEN"))


# -- what is logged --------------------------------------------------------------------------------


def tags_of(manifest: Manifest, report: TrainingReport, store_url: str) -> dict[str, str]:
    """Return what a generation is and where it lies."""
    parent = manifest.parent
    tags = {
        "family": manifest.family,
        "generation": str(manifest.generation),
        "elements": ", ".join(manifest.elements),
        "parent": generation_name(parent.generation) if parent is not None else "none",
        "dataset": manifest.dataset.id,
        "dataset_sha256": manifest.dataset.record_sha256,
        "config_sha256": manifest.config_sha256,
        "store": store_url,
        "manifest": FamilyKeys(manifest.family).manifest(manifest.generation),
    }
    versions = manifest.environment.versions.items()
    tags |= {f"version.{name}": version for name, version in versions if version is not None}
    gate = report.evaluation.gate if report.evaluation is not None else None
    if gate is not None:
        word = verdict_word(
            accepted=gate.accepted, limits_set=gate.limits_set, unchecked=bool(gate.unchecked)
        )
        tags |= {"accepted": str(gate.accepted).lower(), "gate": word}
    return {f"mlip_job.{name}": value for name, value in tags.items()}


def parameters_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield how a generation was made."""
    for section in ("dataset", "training"):
        for key, value in manifest.config.get(section, {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{section}.{key}", text[:_MAX_PARAMETER]
    yield "dataset.train", str(manifest.dataset.train)
    yield "dataset.test", str(manifest.dataset.test)


def metrics_of(report: TrainingReport) -> Iterator[tuple[str, float, int]]:
    """Yield name, which is the place in report.json, value and step."""
    found: dict[str, Any] = {
        "fit": report.fit.model_dump(include=_FIGURES),
        "timings_s": report.timings_s,
        "phases_s": report.phases_s,
    }
    if report.evaluation is not None:
        shown: Any = {"train": _ERRORS, "test": _ERRORS, "parent": True}
        shown["speed"] = {"evaluator_us_per_atom"}
        found["evaluation"] = report.evaluation.model_dump(include=shown)
    yield from ((name, value, 0) for name, value in _leaves(found))
    # Steps count all iterations; a ladder step's last point of the test set is measured again.
    train, test = report.fit.train_curve, report.fit.test_curve
    step_of = {_place(point): step for step, point in enumerate(train)}
    last_of = {_place(point)[:2]: step for step, point in enumerate(train)}
    tested = {step_of.get(_place(p), last_of.get(_place(p)[:2], 0)): p for p in test}
    for side, curve in (("train_curve", dict(enumerate(train))), ("test_curve", tested)):
        stride = max(1, math.ceil(len(curve) / _MAX_POINTS))
        for step, point in [*curve.items()][::-1][::stride][::-1]:  # the last point is kept
            values = point.model_dump(exclude={"ladder_step", "cycle", "iteration"})
            yield from ((n, v, step) for n, v in _leaves({"fit": {side: values}}))


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every finite number below `value`; what is not known is left out."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, f"{path}{key}.")
        elif isinstance(inner, int | float) and math.isfinite(inner):
            yield f"{path}{key}", float(inner)


def _place(point: CurvePoint) -> tuple[int, int, int]:
    return point.ladder_step, point.cycle, point.iteration
