"""What is logged of a generation, made from its manifest and its report."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mlip_job.naming import FamilyKeys, generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.registry import Manifest
    from mlip_job.report import TrainingReport
    from mlip_job.training.run_summary import CurvePoint

ATTEMPT_TAG = "mlip_job.attempt"
"""Tells a generation's run from all others."""

LOGGED_ARTEFACTS = ("report.json", "report.html", "potential.yace")

_MAX_POINTS = 500
"""Points of a learning curve that are logged; a longer one is thinned, report.json has it all."""

_MAX_PARAMETER = 6000  # characters, MLflow's limit


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoggedMetric(_Part):
    """One value; its name is its place in report.json."""

    name: str
    value: float
    step: int = 0


class LoggedRun(_Part):
    """One run of a tracking server.

    Attributes
    ----------
    experiment, name
        Where it goes, and what it is called there.
    started_ms, ended_ms
        Since the epoch.
    tags, parameters, metrics
        What is shown of it.
    files
        Local path of each artefact's name.
    """

    experiment: str
    name: str
    started_ms: int
    ended_ms: int
    tags: dict[str, str]
    parameters: dict[str, str]
    metrics: tuple[LoggedMetric, ...]
    files: dict[str, str]


class LoggingRequest(_Part):
    """What `mlip_job.tracking.client` is asked to do.

    Attributes
    ----------
    uri
        Of the server, without credentials: those are in the environment.
    run
        What to log.
    """

    uri: str
    run: LoggedRun


def describe_run(
    manifest: Manifest,
    report: TrainingReport,
    *,
    store_url: str,
    experiment: str | None,
    files: Mapping[str, str],
) -> LoggedRun:
    """Put together what is logged; the same generation always gives the same."""
    return LoggedRun(
        experiment=experiment or manifest.family,
        name=generation_name(manifest.generation),
        started_ms=int(manifest.started.timestamp() * 1000),
        ended_ms=int(manifest.ended.timestamp() * 1000),
        tags=_tags(manifest, report, store_url),
        parameters=dict(_parameters(manifest)),
        metrics=(*_figures(report), *_curves(report)),
        files=dict(files),
    )


def _tags(manifest: Manifest, report: TrainingReport, store_url: str) -> dict[str, str]:
    parent = manifest.parent
    gate = report.evaluation.gate if report.evaluation is not None else None
    tags = {
        ATTEMPT_TAG: manifest.attempt,
        "mlip_job.family": manifest.family,
        "mlip_job.generation": str(manifest.generation),
        "mlip_job.elements": ", ".join(manifest.elements),
        "mlip_job.parent": generation_name(parent.generation) if parent is not None else "none",
        "mlip_job.dataset": manifest.dataset.id,
        "mlip_job.dataset_sha256": manifest.dataset.record_sha256,
        "mlip_job.config_sha256": manifest.config_sha256,
        "mlip_job.store": store_url,
        "mlip_job.manifest": FamilyKeys(manifest.family).manifest(manifest.generation),
        **{
            f"mlip_job.version.{name}": version
            for name, version in manifest.environment.versions.items()
            if version is not None
        },
    }
    return tags if gate is None else tags | {"mlip_job.accepted": str(gate.accepted).lower()}


def _parameters(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for section in ("dataset", "training"):
        for key, value in manifest.config.get(section, {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{section}.{key}", text[:_MAX_PARAMETER]
    yield "dataset.train", str(manifest.dataset.train)
    yield "dataset.test", str(manifest.dataset.test)


def _figures(report: TrainingReport) -> Iterator[LoggedMetric]:
    fit = report.fit.model_dump(
        include={"train", "test", "iterations", "functions", "parameters", "loss_shares"}
    )
    found: dict[str, Any] = {"fit": fit, "timings_s": report.timings_s, "phases_s": report.phases_s}
    evaluation = report.evaluation
    if evaluation is not None:
        errors = {
            "energy_mev_per_atom",
            "force_mev_per_angstrom",
            "stress_gpa",
            "extrapolation_grade",
        }
        found["evaluation"] = {
            "train": evaluation.train.model_dump(include=errors),
            "test": evaluation.test.model_dump(include=errors)
            if evaluation.test is not None
            else None,
            "parent": evaluation.parent.model_dump() if evaluation.parent is not None else None,
            "speed": {"evaluator_us_per_atom": evaluation.speed.evaluator_us_per_atom}
            if evaluation.speed is not None
            else None,
        }
    for name, value in _leaves(found, ()):
        yield LoggedMetric(name=name, value=value)


def _leaves(value: object, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Yield every finite number below `value`; what is not known is left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, int | float) and math.isfinite(value):
        yield ".".join(path), float(value)


def _curves(report: TrainingReport) -> Iterator[LoggedMetric]:
    """Yield the learning curves; steps count all iterations, over ladder steps and cycles."""
    train, test = report.fit.train_curve, report.fit.test_curve
    step_of = {_place(point): step for step, point in enumerate(train)}
    last_of = {_place(point)[:2]: step for step, point in enumerate(train)}
    # The test set is measured once more after the last iteration of a ladder step.
    tested = {step_of.get(_place(p), last_of.get(_place(p)[:2], 0)): p for p in test}
    for side, curve in (("train_curve", dict(enumerate(train))), ("test_curve", tested)):
        for step, point in _thinned(list(curve.items())):
            values = point.model_dump(exclude={"ladder_step", "cycle", "iteration"})
            for name, value in _leaves(values, ("fit", side)):
                yield LoggedMetric(name=name, value=value, step=step)


def _place(point: CurvePoint) -> tuple[int, int, int]:
    return point.ladder_step, point.cycle, point.iteration


def _thinned(curve: Sequence[tuple[int, CurvePoint]]) -> Iterator[tuple[int, CurvePoint]]:
    """Yield the last point, and of the others every n-th."""
    stride = max(1, math.ceil(len(curve) / _MAX_POINTS))
    for index, point in enumerate(curve):
        if (len(curve) - 1 - index) % stride == 0:
            yield point
