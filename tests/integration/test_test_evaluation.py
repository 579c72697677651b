"""Who measures the test set changes neither the potential nor what is said of the test set."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.config import JobConfig
from mlip_job.pipeline import run_generation
from mlip_job.registry import Registry
from mlip_job.report import TrainingReport
from mlip_job.store.open import open_store
from mlip_job.training.signals import StopRequest
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.training.process import Progress
    from mlip_job.training.run_summary import CurvePoint

pytestmark = pytest.mark.pacemaker

# Weights are in the data frames then: without a test set they are the same to the last bit.
WEIGHTING = {"by_group": {"strained": {"energy": 3, "forces": 2}}}
TRAINING = {
    "functions_per_element": 8,
    "ladder_step": 4,
    "ladder_type": "power_order",
    "max_iter": 60,
    "display_step": 1,
    "test_fraction": 0.25,
    "force_weight": 4,
    "stress_weight": 0,
    "weighting": WEIGHTING,
}
TINY = {"evaluator": "pyace", "functions_per_element": 3, "ladder_step": None, "max_iter": 80}


class _Observer:
    """Keeps messages, and does something when a fit has begun."""

    def __init__(self, at_iteration: Callable[[], None] = lambda: None) -> None:
        self.messages: list[str] = []
        self.tested = False
        self._at_iteration = at_iteration

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trainer_line(self, line: str) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        self.tested = self.tested or progress.test_row is not None
        if progress.row is not None and progress.row.iter_num:
            self._at_iteration()


def _run(directory: Path, training: dict[str, Any], observer: _Observer) -> TrainingReport:
    database = directory / "structures.db"
    if not database.exists():
        write_database(database, rattled(8), config_type="bulk")
        write_database(database, rattled(8, seed=1), config_type="strained")
    name = f"{training['test_evaluation']}-{training.get('evaluator', 'tensorpot')}"
    config = JobConfig.model_validate(
        {
            "family": "cu",
            "database": {"url": str(database)},
            "training": training,
            "evaluation": {"active_set": False, "dynamics_steps": 10},
            "storage": {"url": str(directory / f"store-{name}")},
            "work_dir": str(directory / f"work-{name}"),
        }
    )
    store = open_store(config.storage)
    with StopRequest() as stop:
        outcome = run_generation(config, 1, store=store, observer=observer, stop=stop)
    return TrainingReport.from_json(Registry(store, "cu").read(outcome.manifest, "report.json"))


def _place(point: CurvePoint) -> tuple[int, int]:
    return point.ladder_step, point.iteration


def test_beside_the_fit_as_by_pacemaker(tmp_path: Path) -> None:
    """The same fit, bit by bit; the same curve, where it was measured; two graphs fewer."""
    by_pacemaker = _run(tmp_path, TRAINING | {"test_evaluation": "pacemaker"}, _Observer())
    observer = _Observer()
    beside = _run(tmp_path, TRAINING | {"test_evaluation": "beside"}, observer)

    assert beside.fit.train_curve == by_pacemaker.fit.train_curve
    assert by_pacemaker.fit.timings_s["building_test_graph"] > 0
    assert "building_test_graph" not in beside.fit.timings_s
    assert set(beside.fit.structures) == {"train"}

    theirs = {_place(point): point for point in by_pacemaker.fit.test_curve}
    ours = {_place(point): point for point in beside.fit.test_curve}
    assert {step for step, _ in ours} == {0, 1}
    assert (0, 60) in ours  # the end of a step is measured while the next graph is built
    assert observer.tested
    for name in ("loss", "rmse_energy_mev_per_atom", "rmse_force_mev_per_angstrom"):
        expected = {place: getattr(theirs[place], name) for place in ours}
        assert {place: getattr(point, name) for place, point in ours.items()} == pytest.approx(
            expected, rel=1e-5
        )

    for report in (by_pacemaker, beside):
        assert report.evaluation is not None
    assert by_pacemaker.evaluation.test == beside.evaluation.test  # type: ignore[union-attr]
    assert [a.side for a in by_pacemaker.evaluation.agreement] == ["train", "test"]  # type: ignore[union-attr]
    assert [a.side for a in beside.evaluation.agreement] == ["train"]  # type: ignore[union-attr]
    assert any("training.test_evaluation: beside" in text for text in beside.warnings)
    assert not any("test_evaluation: pacemaker" in text for text in by_pacemaker.warnings)


def test_at_the_end_only(tmp_path: Path) -> None:
    """No curve, but the errors of the published file."""
    observer = _Observer()
    report = _run(tmp_path, TINY | {"test_evaluation": "end"}, observer)
    assert report.fit.test_curve == ()
    assert not observer.tested
    assert report.evaluation is not None
    assert report.evaluation.test.structures == 2
    assert any("training.test_evaluation: end" in text for text in report.warnings)


def test_a_process_that_dies_beside_the_fit_is_a_warning(tmp_path: Path) -> None:
    """The fit goes on, and is published."""
    killed: list[int] = []

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None and not killed:
                os.kill(child.pid, signal.SIGKILL)
                killed.append(child.pid)

    observer = _Observer(kill)
    report = _run(tmp_path, TINY | {"test_evaluation": "beside"}, observer)
    assert killed
    assert report.fit.status == "succeeded"
    warning = "warning: the test set was not measured to the end of the fit: ended by SIGKILL"
    assert warning in observer.messages
    assert multiprocessing.active_children() == []


def test_what_it_fails_with_is_said(tmp_path: Path) -> None:
    """In one line; the process reads the table's columns, which are gone here."""

    def remove() -> None:
        for path in tmp_path.glob("work-*/gen_01/*/test_metrics.txt"):
            path.unlink()

    observer = _Observer(remove)
    report = _run(tmp_path, TINY | {"test_evaluation": "beside"}, observer)
    assert report.fit.status == "succeeded"
    (warning,) = (text for text in observer.messages if text.startswith("warning: the test set"))
    assert "FileNotFoundError" in warning
