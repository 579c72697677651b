"""Metrics, parameters and tags logged for a generation."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from mlip_job.config import JobConfig, TrackingConfig
from mlip_job.report.model import TrainingReport
from mlip_job.tracking import metrics_of, parameters_of, tags_of
from tests.evaluations import make_evaluation
from tests.manifests import make_manifest
from tests.reports import make_report


def values(report: TrainingReport) -> dict[str, float]:
    return {name: value for name, value, _ in metrics_of(report) if "_curve." not in name}


def test_metrics_are_named_by_their_place_in_the_report() -> None:
    """Errors of the fit and timings; unknown values are omitted."""
    report = make_report(2, evaluation=None)
    found = values(report)
    assert report.fit.train is not None
    assert report.fit.test is not None
    assert found["fit.train.rmse_energy_mev_per_atom"] == report.fit.train.rmse_energy_mev_per_atom
    assert (
        found["fit.test.mae_force_mev_per_angstrom"] == report.fit.test.mae_force_mev_per_angstrom
    )
    assert found["timings_s.fit"] == 5321
    assert not any(name.startswith("evaluation") for name in found)

    unknown = report.fit.train.model_copy(
        update={"loss": None, "mae_force_mev_per_angstrom": math.nan}
    )
    fit = report.fit.model_copy(update={"train": unknown, "test": None})
    found = values(make_report(2, evaluation=None, fit=fit))
    assert "fit.train.loss" not in found
    assert "fit.train.mae_force_mev_per_angstrom" not in found
    assert not any(name.startswith("fit.test.") for name in found)


def test_steps_count_all_iterations_of_a_ladder() -> None:
    """Iterations count from 0 in every ladder step; steps of a metric must not."""
    report = make_report(2, evaluation=None)
    train, test = report.fit.train_curve, report.fit.test_curve
    assert len({point.ladder_step for point in train}) == 3
    logged: dict[str, list[tuple[int, float]]] = {}
    for name, value, step in metrics_of(report):
        logged.setdefault(name, []).append((step, value))
    trained, tested = logged["fit.train_curve.loss"], logged["fit.test_curve.loss"]
    assert [value for _, value in trained] == [point.loss for point in train]
    assert [value for _, value in tested] == [point.loss for point in test]
    for curve in (trained, tested):
        steps = [step for step, _ in curve]
        assert steps == sorted(steps)
        assert (steps[0], steps[-1]) == (0, report.fit.iterations)


def test_long_curves_are_thinned() -> None:
    point = make_report(2, evaluation=None).fit.train_curve[-1]
    curve = tuple(
        point.model_copy(update={"ladder_step": 0, "iteration": n, "loss": n + 1.0})
        for n in range(4999)
    )
    fit = make_report(2, evaluation=None).fit.model_copy(
        update={"train_curve": curve, "cycles": ()}
    )
    metrics = metrics_of(make_report(2, evaluation=None, fit=fit))
    losses = [(value, step) for name, value, step in metrics if name == "fit.train_curve.loss"]
    assert 400 < len(losses) <= 500
    assert losses[-1] == (4999, 4998)
    assert all(value == step + 1 for value, step in losses)


def test_lineage_and_settings() -> None:
    """Tags have identity and location, parameters the settings."""
    manifest = make_manifest(4)
    tags = tags_of(manifest, "s3://mlip/p")
    assert tags["mlip_job.manifest"] == "cu-ni/generations/gen_04/manifest.json"
    assert tags["mlip_job.store"] == "s3://mlip/p"
    assert tags["mlip_job.parent"] == "none"
    assert (tags["mlip_job.accepted"], tags["mlip_job.gate"]) == ("true", manifest.headline.verdict)
    parameters = dict(parameters_of(manifest))
    assert parameters["training.cutoff"] == "5.5"
    assert parameters["training.ladder_step"] == "null"


def test_an_evaluation_is_logged_if_there_is_one() -> None:
    """Errors of the published file, and the comparison with its parent."""
    evaluation = make_evaluation(3)
    found = values(make_report(3, evaluation=evaluation))
    assert evaluation.test is not None
    assert evaluation.parent is not None
    test, grade = evaluation.test, evaluation.test.extrapolation_grade
    assert found["evaluation.test.rmse_energy_mev_per_atom"] == test.rmse_energy_mev_per_atom
    p90 = test.force_percentiles_mev_per_angstrom.p90
    assert found["evaluation.test.force_percentiles_mev_per_angstrom.p90"] == p90
    assert grade is not None
    assert found["evaluation.test.extrapolation_grade.max"] == grade.max
    old = evaluation.parent.old.rmse_force_mev_per_angstrom
    assert found["evaluation.parent.old.rmse_force_mev_per_angstrom"] == old
    assert not any("parity" in name or "histogram" in name for name in found)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://me:hunter2@mlflow.example.org", "password in a URL"),
        ("https://hunter2@mlflow.example.org", "token in a URL"),
        ("mlruns", "takes the address of a server"),
        ("sqlite:///mlflow.db", "takes the address of a server"),
        ("http://", "takes the address of a server"),
    ],
)
def test_invalid_addresses(uri: str, problem: str) -> None:
    """Secrets belong in the environment, and only servers are supported."""
    with pytest.raises(ValidationError, match=problem) as refused:
        TrackingConfig(mlflow_uri=uri)
    assert "hunter2" not in str(refused.value)


def test_tracking_does_not_decide_the_potential() -> None:
    plain = JobConfig(family="cu")
    tracked = JobConfig(family="cu", tracking=TrackingConfig(mlflow_uri="http://host:5000"))
    assert plain.fingerprint() == tracked.fingerprint()
