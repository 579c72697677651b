"""A fit ends when the validation part says so, and publishes its best potential; TensorFlow."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlip_job.config import JobConfig
from mlip_job.errors import InterruptedRunError
from mlip_job.generation import run_generation
from mlip_job.registry import Registry
from mlip_job.report.model import TrainingReport
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from mlip_job.training.pacemaker.snapshot import read_best
from tests.support import labelled, rattled, write_database

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

    from mlip_job.training.trainer import Progress

pytestmark = pytest.mark.pacemaker

TRAINING = {
    "functions_per_element": 20,
    "energy_weight": 1000,
    "force_weight": 1,
    "linear_start": False,
    "ladder_step": None,
    "max_iter": 120,
    "overrides": {"backend": {"display_step": 2}},
    "validation_fraction": 0.3,
    "early_stopping_patience": 10,
}


class _Observer:
    """Keeps messages; sends a signal to this process once the fit has come so far."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.messages: list[str] = []
        self.second_sets: set[str] = set()
        self._stop_at = stop_at

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trainer_line(self, line: str) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        self.second_sets.add(progress.second_set)
        done = progress.point.iteration if progress.point is not None else 0
        if self._stop_at is not None and done >= self._stop_at:
            self._stop_at = None
            os.kill(os.getpid(), signal.SIGTERM)


def _noisy() -> list[Atoms]:
    """Return structures with errors in their energies, which a large basis learns by heart."""
    random = np.random.default_rng(0)
    return [
        labelled(
            atoms,
            energy=atoms.get_potential_energy() + random.normal(scale=0.1),
            forces=atoms.get_forces(),
        )
        for atoms in rattled(26)
    ]


def _config(directory: Path, **training: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "family": "cu",
            "database": {"url": str(directory / "structures.db")},
            "training": TRAINING | training,
            "evaluation": {
                "active_set": False,
                "dynamics_steps": 10,
                "gate": {"require_physics": False},
            },
            "storage": {"url": str(directory / "store")},
            "work_dir": str(directory / "work"),
        }
    )


def _run(config: JobConfig, observer: _Observer) -> TrainingReport:
    store = open_store(config.storage)
    with StopRequest() as stop:
        outcome = run_generation(config, 1, store=store, observer=observer, stop=stop)
    return TrainingReport.from_json(Registry(store, "cu").read(outcome.manifest, "report.json"))


def test_a_fit_that_overfits_ends_at_its_best_potential(tmp_path: Path) -> None:
    """What is published is the potential of then, with pacemaker's errors of then."""
    write_database(tmp_path / "structures.db", _noisy())
    config = _config(tmp_path)
    observer = _Observer()
    report = _run(config, observer)
    fit = report.fit
    assert fit.second_set == "validation"
    assert observer.second_sets == {"validation"}
    assert "no better potential on the validation set" in (fit.early_stopping or "")
    assert fit.iterations is not None
    assert fit.iterations < TRAINING["max_iter"]  # type: ignore[operator]
    assert fit.best is not None
    assert fit.best.iteration + 10 == fit.iterations
    assert report.evaluation is not None
    sides = [agreement.side for agreement in report.evaluation.agreement]
    assert sides == ["train", "validation"]  # of the published file, at the best iteration


def test_a_killed_fit_keeps_its_best_potential(tmp_path: Path) -> None:
    """And its patience: the next attempt ends soon, and publishes what the first one found."""
    write_database(tmp_path / "structures.db", _noisy())
    endless = _config(tmp_path, early_stopping_patience=1000, max_iter=1000)
    with pytest.raises(InterruptedRunError):
        _run(endless, _Observer(stop_at=24))
    (record,) = (tmp_path / "work").rglob("best.json")
    before = read_best(record)
    assert before is not None
    report = _run(_config(tmp_path, early_stopping_patience=8), _Observer())
    first, second = report.attempts
    assert first.iterations >= 23
    assert second.iterations <= 10
    assert report.fit.best is not None
    assert report.fit.best.iteration == before.iteration
    assert report.evaluation is not None
    sides = [agreement.side for agreement in report.evaluation.agreement]
    assert sides == ["train", "validation"]


def test_a_last_evaluation_that_shows_no_fall_is_no_failure(tmp_path: Path) -> None:
    """Pacemaker's own rule would raise there, after its minimiser has ended."""
    write_database(tmp_path / "structures.db", rattled(26))
    config = _config(
        tmp_path, max_iter=8, overrides={"backend": {"display_step": 8}},
        early_stopping_patience=4,
    )  # fmt: skip
    report = _run(config, _Observer())
    assert report.fit.status == "succeeded"
    assert report.fit.iterations == 8
