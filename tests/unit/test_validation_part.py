"""The validation part depends on the training set alone, by the rules of the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlip_job.dataset.split import Parts, part_training_set
from mlip_job.paths import DatasetFiles
from tests.datasets import as_parent, build, rows_of
from tests.support import rattled, write_database


def _parts(directory: Path, database: Path, fraction: float = 0.1, **settings: Any) -> Parts:
    record = build(database, directory, **settings)
    return part_training_set(DatasetFiles(directory), record, fraction)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.5])
def test_it_is_an_exact_fraction_of_the_training_set(tmp_path: Path, fraction: float) -> None:
    """Never a test row; each training row is in one of the two parts."""
    write_database(tmp_path / "s.db", rattled(60))
    parts = _parts(tmp_path / "d", tmp_path / "s.db", fraction=fraction)
    assert len(parts.validation) == round(54 * fraction)
    assert parts.fit | parts.validation == rows_of(tmp_path / "d", "train")
    assert not parts.fit & parts.validation
    assert parts.why_whole is None


def test_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    """From the files of the dataset again; another seed gives another part."""
    write_database(tmp_path / "s.db", rattled(60))
    first = _parts(tmp_path / "first", tmp_path / "s.db")
    assert _parts(tmp_path / "again", tmp_path / "s.db") == first
    other = _parts(tmp_path / "other", tmp_path / "s.db", seed=1)
    assert other.validation != first.validation


def test_groups_and_equal_structures_stay_together(tmp_path: Path) -> None:
    """As in the split: half a trajectory in the fit would reveal the other half."""
    structures = rattled(30)
    for number in range(10):
        write_database(tmp_path / "s.db", structures[3 * number : 3 * number + 3], traj=number)
    twins = write_database(tmp_path / "s.db", [structures[0], structures[3]])
    parts = _parts(tmp_path / "d", tmp_path / "s.db", fraction=0.3, group_by="traj")
    groups = [set(range(n, n + 3)) for n in range(1, 31, 3)]
    groups[0].add(twins[0])
    groups[1].add(twins[1])
    assert parts.validation
    for group in groups:
        assert group <= parts.validation or not group & parts.validation


def test_every_element_stays_in_the_fit(tmp_path: Path) -> None:
    """Pacemaker numbers the elements of its training data: a missing one shifts the ZBL cores."""
    copper, gold = rattled(40), rattled(2, symbols=("Au",), seed=4)
    write_database(tmp_path / "s.db", copper)
    rows = write_database(tmp_path / "s.db", gold, traj="gold")
    for seed in range(12):
        parts = _parts(
            tmp_path / str(seed), tmp_path / "s.db", fraction=0.4, seed=seed, group_by="traj"
        )
        assert parts.why_whole is None
        if set(rows) <= parts.fit | parts.validation:
            assert set(rows) <= parts.fit


def test_few_structures_are_all_fitted_to(tmp_path: Path) -> None:
    write_database(tmp_path / "s.db", rattled(21))
    parts = _parts(tmp_path / "d", tmp_path / "s.db")
    assert parts.validation == frozenset()
    assert parts.fit == rows_of(tmp_path / "d", "train")
    assert parts.why_whole == "19 training structures are fewer than 20"


def test_one_group_is_all_fitted_to(tmp_path: Path) -> None:
    write_database(tmp_path / "s.db", rattled(30), traj="one")
    write_database(tmp_path / "s.db", rattled(3, seed=5), traj="two")
    parts = _parts(tmp_path / "d", tmp_path / "s.db", group_by="traj")
    assert parts.why_whole == "no group of training structures is small enough"


def test_the_next_generation_keeps_the_validation_part_of_its_parent(tmp_path: Path) -> None:
    """The selection order is kept, so that hardly any structure changes its part."""
    write_database(tmp_path / "s.db", rattled(100))
    record = build(tmp_path / "s.db", tmp_path / "first")
    first = part_training_set(DatasetFiles(tmp_path / "first"), record, 0.1)
    write_database(tmp_path / "s.db", rattled(20, seed=1))
    parent = as_parent(record, tmp_path / "first")
    second = _parts(tmp_path / "second", tmp_path / "s.db", parent=parent)
    assert len(second.validation) == round(108 * 0.1)
    assert len(first.fit & second.validation) <= 1
