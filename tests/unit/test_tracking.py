"""What is logged of a generation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mlip_job.config import JobConfig, TrackingConfig
from mlip_job.evaluation.results import (
    ErrorPair,
    ErrorStatistics,
    Evaluation,
    GateVerdict,
    GradeStatistics,
    Histogram,
    ParentComparison,
    Parity,
    SetEvaluation,
)
from mlip_job.report.model import DatasetSummary, LossDefinition, TrainingReport
from mlip_job.tracking import metrics_of, parameters_of, tags_of
from mlip_job.training.pacemaker.results import summarise_run
from tests.manifests import make_manifest

RUNS = Path(__file__).parents[1] / "data" / "pacemaker"


def make_report(**changes: Any) -> TrainingReport:
    """Return the report of a real ladder fit."""
    manifest = make_manifest(4)
    report = TrainingReport(
        family="cu-ni",
        generation=4,
        elements=manifest.elements,
        parent=None,
        attempts=manifest.attempts,
        loss=LossDefinition(energy_weight=1, force_weight=1, kappa=0.5, definition="…"),
        dataset=DatasetSummary(
            id=manifest.dataset.id,
            train=90,
            test=10,
            rejected=0,
            reference_energies_ev=manifest.reference_energies,
            reference_energy_sources={},
            notes=(),
        ),
        fit=summarise_run(RUNS / "c_ladder"),
        evaluation=None,
        left_out_by_weighting={},
        energy_reference="…",
        timings_s={"fit": 12.5},
        warnings=(),
    )
    return report.model_copy(update=changes)


def values(report: TrainingReport) -> dict[str, float]:
    """Return the metrics that are no curves."""
    return {name: value for name, value, _ in metrics_of(report) if "_curve." not in name}


def test_metrics_are_named_by_their_place_in_the_report() -> None:
    """Figures of the fit and timings; what is not known is left out."""
    report = make_report()
    found = values(report)
    assert report.fit.train is not None
    assert report.fit.test is not None
    assert found["fit.train.rmse_energy_mev_per_atom"] == report.fit.train.rmse_energy_mev_per_atom
    assert (
        found["fit.test.mae_force_mev_per_angstrom"] == report.fit.test.mae_force_mev_per_angstrom
    )
    assert found["timings_s.fit"] == 12.5
    assert not any(name.startswith("evaluation") for name in found)

    unknown = report.fit.train.model_copy(
        update={"loss": None, "mae_force_mev_per_angstrom": math.nan}
    )
    fit = report.fit.model_copy(update={"train": unknown, "test": None})
    found = values(make_report(fit=fit))
    assert "fit.train.loss" not in found
    assert "fit.train.mae_force_mev_per_angstrom" not in found
    assert not any(name.startswith("fit.test.") for name in found)


def test_steps_count_all_iterations_of_a_ladder() -> None:
    """Iterations count from 0 in every ladder step, steps of a metric must not."""
    report = make_report()
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
    """To some hundred points, the last one among them."""
    point = make_report().fit.train_curve[-1]
    curve = tuple(
        point.model_copy(update={"ladder_step": 0, "iteration": n, "loss": n + 1.0})
        for n in range(4999)
    )
    fit = make_report().fit.model_copy(update={"train_curve": curve, "cycles": ()})
    metrics = metrics_of(make_report(fit=fit))
    losses = [(value, step) for name, value, step in metrics if name == "fit.train_curve.loss"]
    assert 400 < len(losses) <= 500
    assert losses[-1] == (4999, 4998)
    assert all(value == step + 1 for value, step in losses)


def test_lineage_and_settings() -> None:
    """Tags say what it is and where it lies, parameters how it was made."""
    manifest = make_manifest(4)
    tags = tags_of(manifest, make_report(), "s3://mlip/p")
    assert tags["mlip_job.manifest"] == "cu-ni/generations/gen_04/manifest.json"
    assert tags["mlip_job.store"] == "s3://mlip/p"
    assert tags["mlip_job.parent"] == "none"
    assert "mlip_job.accepted" not in tags
    parameters = dict(parameters_of(manifest))
    assert parameters["training.cutoff"] == "5.5"
    assert parameters["training.ladder_step"] == "null"


def test_an_evaluation_is_logged_where_there_is_one() -> None:
    """Errors of the published file, the comparison with its parent, the verdict."""
    statistics = ErrorStatistics(count=3, rmse=2.0, mae=1.0, max=4.0, p50=1.0, p90=3.0, p99=4.0)
    histogram = Histogram(edges=(0.0, 1.0), counts=(3,))
    parity = Parity(reference=(1.0,), predicted=(1.1,), sampled_from=1)
    side = SetEvaluation(
        structures=3,
        atoms=12,
        energy_mev_per_atom=statistics,
        force_mev_per_angstrom=statistics,
        stress_gpa=None,
        force_per_element_mev_per_angstrom={"Cu": statistics},
        per_config_type={},
        energy_error_histogram_mev_per_atom=histogram,
        force_error_histogram_mev_per_angstrom=histogram,
        energy_parity_ev_per_atom=parity,
        force_parity_ev_per_angstrom=parity,
        worst=(),
        extrapolation_grade=GradeStatistics(
            count=3, max=5.5, p50=0.5, p90=1.0, p99=5.0, above_one=1
        ),
    )
    pair = ErrorPair(old=4.0, new=2.0, change=-0.5)
    evaluation = Evaluation(
        train=side,
        test=side,
        agreement=(),
        parent=ParentComparison(
            generation=3, structures=3, energy_mev_per_atom=pair, force_mev_per_angstrom=pair
        ),
        physics=(),
        active_set="linear",
        gate=GateVerdict(accepted=False, reasons=("too large",)),
    )
    report = make_report(evaluation=evaluation)
    found = values(report)
    assert found["evaluation.test.energy_mev_per_atom.rmse"] == 2.0
    assert found["evaluation.test.extrapolation_grade.max"] == 5.5
    assert found["evaluation.parent.force_mev_per_angstrom.change"] == -0.5
    assert not any("stress" in name or "parity" in name for name in found)
    tags = tags_of(make_manifest(4), report, "store")
    assert (tags["mlip_job.accepted"], tags["mlip_job.gate"]) == ("false", "rejected")


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
def test_addresses_that_are_refused(uri: str, problem: str) -> None:
    """Secrets belong into the environment, and only servers are logged to."""
    with pytest.raises(ValidationError, match=problem) as refused:
        TrackingConfig(mlflow_uri=uri)
    assert "hunter2" not in str(refused.value)


def test_tracking_does_not_decide_the_potential() -> None:
    """Switching it on confirms what is published."""
    plain = JobConfig(family="cu")
    tracked = JobConfig(family="cu", tracking=TrackingConfig(mlflow_uri="http://host:5000"))
    assert plain.fingerprint() == tracked.fingerprint()
