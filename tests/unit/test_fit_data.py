"""Data of a fit from its dataset, and the note if nothing validates it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlip_job.config import JobConfig
from mlip_job.dataset.record import DatasetRecord
from mlip_job.generation.data import make_fit_data
from mlip_job.paths import WorkFiles
from mlip_job.registry import Registry
from mlip_job.store.directory import DirectoryStore
from mlip_job.training.trainer import FitData
from tests.datasets import build, rows_of
from tests.support import rattled, write_database


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetRecord:
    write_database(tmp_path / "s.db", rattled(40))
    record = build(tmp_path / "s.db", WorkFiles(tmp_path).dataset.directory)
    monkeypatch.setattr("mlip_job.dataset.frames.STRUCTURES_PER_FRAME", 10)
    return record


def _give(directory: Path, record: DatasetRecord, **training: Any) -> FitData:
    config = JobConfig.model_validate(
        {
            "family": "cu",
            "database": {"url": "s.db"},
            "storage": {"url": "store"},
            "training": {"max_iter": 10, **training},
        }
    )
    registry = Registry(DirectoryStore(directory / "store"), "cu")
    return make_fit_data(config.training, record, registry, WorkFiles(directory))


def _rows(directory: Path, names: tuple[str, ...]) -> set[int]:
    frames = [pd.read_pickle(directory / name, compression="gzip") for name in names]  # noqa: S301 - ours
    return {int(name.removeprefix("row-")) for frame in frames for name in frame["name"]}


def test_two_parts_in_separate_frames(tmp_path: Path, record: DatasetRecord) -> None:
    """Together they are the training set; no test row is in either."""
    given = _give(tmp_path, record)
    assert len(given.train) == 4
    assert given.train[0] == "dataset/fit.pckl.gzip"
    assert given.second == ("dataset/validation.pckl.gzip",)
    fitted, aside = _rows(tmp_path, given.train), _rows(tmp_path, given.second)
    assert aside == given.validation
    assert len(aside) == 4
    assert fitted | aside == rows_of(WorkFiles(tmp_path).dataset.directory, "train")
    assert not fitted & aside
    assert given.notes == ()


def test_without_a_validation_part(tmp_path: Path, record: DatasetRecord) -> None:
    """All training structures; the test set only if pacemaker is to measure it."""
    given = _give(tmp_path, record, validation_fraction=0)
    assert given.train == WorkFiles.in_dataset(record.frames.train)
    assert given.second == ()
    measured = _give(tmp_path, record, validation_fraction=0, test_evaluation="pacemaker")
    assert measured == replace(given, second=WorkFiles.in_dataset(record.frames.test))


def test_an_evaluator_without_a_second_set_is_noted(tmp_path: Path, record: DatasetRecord) -> None:
    given = _give(tmp_path, record, evaluator="pyace")
    assert given.train == WorkFiles.in_dataset(record.frames.train)
    assert (given.second, given.validation) == ((), frozenset())
    (note,) = given.notes
    assert "the fit had no validation part: evaluator pyace measures no second set" in note


@pytest.mark.parametrize("fraction", [0, 0.1])
def test_frames_of_gracemaker(tmp_path: Path, record: DatasetRecord, fraction: float) -> None:
    """One energy column, stress as in the database, and the weights by config type."""
    given = _give(tmp_path, record, trainer="grace-fs", validation_fraction=fraction)
    frames = [pd.read_pickle(tmp_path / name, compression="gzip") for name in given.train]  # noqa: S301 - ours
    fitted = pd.concat(frames)
    assert len(fitted) == 36 - len(given.validation)
    assert "energy" not in fitted
    by_row = dict(enumerate(rattled(40), start=1))
    for _, row in fitted.iterrows():
        atoms = by_row[int(row["name"].removeprefix("row-"))]
        np.testing.assert_allclose(row["stress"], atoms.get_stress(), atol=1e-8)
        assert (row["virial_weight"], row["energy_weight"]) == (1.0, 1.0)
        assert row["force_weight"].tolist() == [1.0] * len(atoms)
