"""Who measures the test set changes neither the potential nor what is said of the test set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.config import JobConfig
from mlip_job.generation import run_generation
from mlip_job.registry import Registry
from mlip_job.report.model import TrainingReport
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.training.trainer import Progress

pytestmark = pytest.mark.pacemaker

# Weights are in the data frames then: without a test set they are the same to the last bit.
WEIGHTING = {"by_group": {"strained": {"energy": 3, "forces": 2}}}
TRAINING = {
    "functions_per_element": 8,
    "linear_start": False,
    "ladder_step": 4,
    "overrides": {"fit": {"ladder_type": "power_order"}, "backend": {"display_step": 1}},
    "max_iter": 60,
    "test_fraction": 0.25,
    "validation_fraction": 0,
    "force_weight": 4,
    "weighting": WEIGHTING,
}
TINY = {
    "linear_start": False,
    "evaluator": "pyace",
    "functions_per_element": 3,
    "ladder_step": None,
    "max_iter": 80,
    "overrides": {"backend": {"display_step": 1}},
    "validation_fraction": 0,
}


class _Observer:
    """Keeps messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.tested = False

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trainer_line(self, line: str) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        self.tested = self.tested or progress.test_point is not None


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
            "evaluation": {
                "active_set": False,
                "dynamics_steps": 10,
                "gate": {"require_physics": False},
            },
            "storage": {"url": str(directory / f"store-{name}")},
            "work_dir": str(directory / f"work-{name}"),
        }
    )
    store = open_store(config.storage)
    with StopRequest() as stop:
        outcome = run_generation(config, 1, store=store, observer=observer, stop=stop)
    return TrainingReport.from_json(Registry(store, "cu").read(outcome.manifest, "report.json"))


def test_by_pacemaker_or_at_the_end(tmp_path: Path) -> None:
    """The same fit, bit by bit, and the same errors; without a test set, one graph a step fewer."""
    observer = _Observer()
    by_pacemaker = _run(tmp_path, TRAINING | {"test_evaluation": "pacemaker"}, observer)
    assert observer.tested
    end = _run(tmp_path, TRAINING | {"test_evaluation": "end"}, _Observer())

    assert end.fit.train_curve == by_pacemaker.fit.train_curve
    assert by_pacemaker.fit.timings_s["building_test_graph"] > 0
    assert "building_test_graph" not in end.fit.timings_s
    assert set(end.fit.structures) == {"train"}
    assert by_pacemaker.evaluation is not None
    assert end.evaluation is not None
    assert by_pacemaker.evaluation.test == end.evaluation.test
    assert [a.side for a in by_pacemaker.evaluation.agreement] == ["train", "test"]
    assert [a.side for a in end.evaluation.agreement] == ["train"]


def test_at_the_end_only(tmp_path: Path) -> None:
    """No curve, but the errors of the published file."""
    observer = _Observer()
    report = _run(tmp_path, TINY | {"test_evaluation": "end"}, observer)
    assert report.fit.test_curve == ()
    assert not observer.tested
    assert report.evaluation is not None
    assert report.evaluation.test.structures == 2
    assert not any("validation part" in text for text in report.warnings)
