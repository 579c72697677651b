"""Generations by gracemaker: stopped, resumed, published, loaded and the start of another one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from ase.units import GPa

from mlip_job import load_potential
from mlip_job.errors import ConfigError, DataError, InterruptedRunError
from mlip_job.training.grace.metrics import read_curve
from mlip_job.training.trainer import Progress
from tests.generations import GRACE, QUICK, Silent, Trained, make_config, train
from tests.support import labelled, rattled, write_database

pytestmark = pytest.mark.pacemaker

TRAINING: dict[str, Any] = GRACE | {"seed": 7, "max_iter": 16}


class _Interrupter(Silent):
    """Sends SIGTERM to this process after the first checkpoint of gracemaker."""

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        if progress.point is not None and progress.point.iteration >= 12:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """Return a generation whose fit was interrupted and resumed, and its directory."""
    directory = tmp_path_factory.mktemp("grace")
    write_database(directory / "structures.db", rattled(26, seed=2))
    config = make_config(directory, TRAINING, evaluation=QUICK | {"active_set": "linear"})
    with pytest.raises(InterruptedRunError, match="checkpoint of iteration 10"):
        train(config, observer=_Interrupter())
    return train(config), directory


def test_an_interrupted_fit_is_resumed(run: tuple[Trained, Path]) -> None:
    """It has one curve, and its published potential has the errors that gracemaker reports."""
    report, fit = run[0].report, run[0].report.fit
    observer = run[0].observer
    assert {one.second_set for one in observer.reported} == {"validation"}
    assert {"starting", "building_graph", "fitting"} <= {one.phase for one in observer.reported}
    assert [point.iteration for point in fit.train_curve] == list(range(1, 17))
    assert [attempt.iterations for attempt in report.attempts] == [10, 6]
    assert fit.versions.keys() == {"tensorpotential", "tensorflow"}
    assert report.evaluation is not None
    agreements = report.evaluation.agreement
    assert [one.side for one in agreements] == ["validation"]
    for one in agreements:
        stress = one.errors_by_trainer.rmse_stress_gpa
        assert stress is not None
        assert one.errors.rmse_stress_gpa == pytest.approx(stress, rel=1e-3)
    assert run[0].manifest.trainer == "grace-fs"
    published = {"potential.yaml", "potential.asi", "model.yaml", "checkpoint.index"}
    assert published <= set(run[0].manifest.artefacts)


def test_the_loss_is_ours(run: tuple[Trained, Path]) -> None:
    """Of energies, forces and stresses, by the potential that is loaded from the store."""
    trained, directory = run
    loss = yaml.safe_load(trained.read("input.yaml"))["fit"]["loss"]
    weights = {name: term["weight"] for name, term in loss.items()}
    assert weights == {"energy": 100, "forces": 30, "stress": 1000}
    metrics = directory / "test_metrics.yaml"
    metrics.write_bytes(trained.read("metrics/test_metrics.yaml"))
    rows, _ = read_curve(metrics, "test")
    best = trained.report.fit.best
    row = rows[(best.iteration if best is not None else 16) - 1]

    calculator = load_potential(
        directory / "store", family="cu", generation=1, cache=directory, extrapolation=True
    )
    frame = next((directory / "work").rglob("validation.pckl.gzip"))
    validation = set(pd.read_pickle(frame, compression="gzip")["name"])  # noqa: S301 - ours
    energy, force, stress = [], [], []
    for number, atoms in enumerate(rattled(26, seed=2), start=1):
        if f"row-{number}" not in validation:
            continue
        copy = atoms.copy()
        copy.calc = calculator
        energy.append((copy.get_potential_energy() - atoms.get_potential_energy()) / len(atoms))
        force.append((copy.get_forces() - atoms.get_forces()).ravel())
        stress.append(copy.get_stress() - atoms.get_stress())
    means = [float(np.mean(np.square(errors))) for errors in (energy, force, stress)]
    errors = row.errors
    assert errors.rmse_energy_mev_per_atom == pytest.approx(1000 * means[0] ** 0.5, rel=1e-3)
    assert errors.rmse_force_mev_per_angstrom == pytest.approx(1000 * means[1] ** 0.5, rel=1e-3)
    assert errors.rmse_stress_gpa == pytest.approx(means[2] ** 0.5 / GPa, rel=1e-3)
    assert row.loss == pytest.approx(100 * means[0] + 30 * means[1] + 1000 * means[2], rel=1e-3)

    squeezed = rattled(1)[0]
    squeezed.set_cell(0.8 * squeezed.cell, scale_atoms=True)
    squeezed.calc = calculator
    squeezed.get_potential_energy()
    assert calculator.results["gamma"].max() > 1


def test_the_next_generation_starts_from_it(run: tuple[Trained, Path]) -> None:
    trained, directory = run
    write_database(directory / "structures.db", rattled(6, seed=5))
    # Too few iterations for a regular checkpoint, and none is the best on a validation part.
    after = train(make_config(directory, TRAINING | {"max_iter": 3, "validation_fraction": 0}), 2)
    assert after.manifest.parent is not None
    assert (after.manifest.parent.generation, after.manifest.parent.mode) == (1, "continue")
    curves = [[point.loss for point in one.report.fit.train_curve] for one in (trained, after)]
    (scratch, *_, end), (begun, *_) = curves
    assert abs(begun - end) < abs(begun - scratch), curves
    with pytest.raises(ConfigError, match="is a potential of grace-fs, from which pacemaker"):
        train(make_config(directory, {"max_iter": 3}), 3)


def test_rows_without_stress_are_named(tmp_path: Path) -> None:
    """Periodic ones; a molecule has no stress. Nothing is fitted or stored."""
    structures = rattled(6)
    energy, forces = structures[3].get_potential_energy(), structures[3].get_forces()
    structures[3] = labelled(structures[3], energy=energy, forces=forces)
    write_database(tmp_path / "structures.db", structures)
    with pytest.raises(DataError, match=r"stress_weight is set, but 1 of 6 rows .* \(row 4\)"):
        train(make_config(tmp_path, TRAINING))
    assert not list((tmp_path / "store").rglob("dataset.json"))
