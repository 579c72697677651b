"""Fits with the TensorFlow evaluator: test set, early stopping, and resuming after a kill."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from mlip_job.errors import InterruptedRunError
from mlip_job.training.pacemaker.snapshot import read_best
from mlip_job.training.trainer import Progress
from tests.generations import Silent, make_config, train
from tests.support import labelled, rattled, write_database

pytestmark = pytest.mark.pacemaker


def test_the_test_set_is_evaluated_by_pacemaker(tmp_path: Path) -> None:
    """Its errors are those of the published file, and the first loss is that of the linear fit."""
    # These weights are in the data frames; uniform ones depend on whether there is a test set.
    training = {
        "functions_per_element": 6,
        "max_iter": 8,
        "overrides": {"backend": {"display_step": 1}},
        "test_fraction": 0.25,
        "test_evaluation": "pacemaker",
        "validation_fraction": 0,
        "energy_weight": 1,
        "force_weight": 4,
        "weighting": {"by_group": {"strained": {"energy": 3, "forces": 2}}},
    }
    database = tmp_path / "structures.db"
    write_database(database, rattled(6), config_type="bulk")
    write_database(database, rattled(6, seed=1), config_type="strained")
    run = train(make_config(tmp_path, training))

    progress = run.observer.reported
    assert "building_graph" in {one.phase for one in progress}
    assert any(one.test_point is not None for one in progress)
    assert any("Loading input.yaml" in line for line in run.observer.lines)
    log = run.read("train.log").decode()
    assert "Hostname: (not published)" in log
    assert "Username: mlip-job" in log

    header, row, *_ = run.read("metrics/metrics.txt").decode().splitlines()
    start = dict(zip(header.split(), map(float, row.split()), strict=True))
    assert run.manifest.linear_start is not None
    assert start["e_loss_contrib"] + start["f_loss_contrib"] == pytest.approx(
        run.manifest.linear_start.loss, rel=1e-6
    )
    report = run.report
    assert report.loss.kappa == pytest.approx(0.8)
    assert report.loss.stress_weight == 0
    assert report.fit.test is not None
    assert len(report.fit.train_curve) > 1
    assert report.fit.timings_s["building_test_graph"] > 0
    assert report.evaluation is not None
    assert [one.side for one in report.evaluation.agreement] == ["train", "test"]
    for agreement in report.evaluation.agreement:
        ours, theirs = agreement.errors.rmse, agreement.errors_by_trainer.rmse
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-5)


class _Interrupter(Silent):
    """Sends SIGTERM to this process once the fit has done a number of iterations."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self._iterations = iterations

    def progress(self, progress: Progress) -> None:
        point = progress.point
        if point is not None and point.iteration >= self._iterations:
            self._iterations = 1_000_000
            os.kill(os.getpid(), signal.SIGTERM)


def _noisy(count: int) -> list[Atoms]:
    """Return structures with errors in their energies, which a large basis overfits."""
    random = np.random.default_rng(0)
    return [
        labelled(
            atoms,
            energy=atoms.get_potential_energy() + random.normal(scale=0.1),
            forces=atoms.get_forces(),
        )
        for atoms in rattled(count)
    ]


def test_an_interrupted_fit_that_overfits_publishes_its_best_potential(tmp_path: Path) -> None:
    """Checkpoints have the best potential and the patience: the next attempt ends soon."""
    write_database(tmp_path / "structures.db", _noisy(26))
    training = {
        "functions_per_element": 20,
        "energy_weight": 1000,
        "force_weight": 1,
        "linear_start": False,
        "ladder_step": None,
        "max_iter": 120,
        "overrides": {"backend": {"display_step": 2}},
        "validation_fraction": 0.3,
    }
    endless = {"early_stopping_patience": 1000, "max_iter": 1000}
    with pytest.raises(InterruptedRunError):
        train(make_config(tmp_path, training | endless), observer=_Interrupter(24))
    (record,) = (tmp_path / "work").rglob("best.json")
    before = read_best(record)
    assert before is not None

    run = train(make_config(tmp_path, training | {"early_stopping_patience": 8}))
    fit = run.report.fit
    assert fit.second_set == "validation"
    assert {one.second_set for one in run.observer.reported} == {"validation"}
    assert "no better potential on the validation set" in (fit.early_stopping or "")
    first, second = run.report.attempts
    assert first.iterations >= 23
    assert second.iterations <= 10
    assert fit.iterations is not None
    assert fit.iterations < training["max_iter"]  # type: ignore[operator]
    assert fit.best is not None
    assert fit.best.iteration == before.iteration < fit.iterations
    assert run.report.evaluation is not None
    sides = [agreement.side for agreement in run.report.evaluation.agreement]
    assert sides == ["train", "validation"]  # of the published file, at the best iteration
