"""The test set is measured as pacemaker would, and told in its table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
import pytest

from mlip_job.config.training import GroupWeights, TrainingConfig
from mlip_job.evaluation.beside import TestSet, _Due, add_row
from mlip_job.evaluation.sample import Sample, SampleErrors
from mlip_job.naming import WorkFiles
from mlip_job.pipeline.beside import notes_on_test_set
from mlip_job.training.curve import Offset, join_tables
from mlip_job.training.summary import summarise_run
from mlip_job.training.tables import MetricsRow, read_table
from tests.support import rattled

if TYPE_CHECKING:
    from ase import Atoms

RUN = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder"
ERRORS = SampleErrors(0.25, 1.0, energy_rmse=0.5, force_rmse=0.6, force_mae=0.4)


class _Potential:
    """Is off by 0.4 eV and, in one direction, by 0.1 eV/Å; reference energies are 2 eV."""

    def __init__(self, structures: list[Atoms]) -> None:
        self._answers = iter(structures)

    def ask(self, atoms: Atoms, _what: str) -> Any:
        labels = next(self._answers).calc.results
        forces = labels["forces"].copy()
        forces[:, 0] += 0.1
        return SimpleNamespace(energy=labels["energy"] + 0.4 - 2.0 * len(atoms), forces=forces)


def _write(path: Path, count: int) -> list[Atoms]:
    structures = rattled(count)
    for number, atoms in enumerate(structures):
        atoms.info = {"row_id": number, "config_type": "bulk" if number else "rare"}
    ase.io.write(path, structures, format="extxyz")
    read = ase.io.read(path, ":")
    assert isinstance(read, list)
    return read


def test_errors_are_those_of_pacemakers_tables(tmp_path: Path) -> None:
    """Energies per atom; the squared length of force errors, and their components."""
    structures = _write(tmp_path / "test.xyz", 3)
    sample = Sample(tmp_path / "test.xyz", atoms=12, reference_energies={"Cu": 2.0})
    errors = sample.measure(_Potential(structures))  # type: ignore[arg-type]
    assert errors.energy_rmse == pytest.approx(0.1)
    assert errors.energy_squares == pytest.approx(0.01)
    assert errors.force_squares == pytest.approx(0.01)
    assert errors.force_rmse == pytest.approx(np.sqrt(0.01 / 3))
    assert errors.force_mae == pytest.approx(0.1 / 3)


def test_weights_count_in_the_loss_only(tmp_path: Path) -> None:
    """By config type, as in the data frames; pacemaker's RMSEs are plain ones."""
    structures = _write(tmp_path / "test.xyz", 3)
    structures[0].calc.results["energy"] += 0.4
    sample = Sample(
        tmp_path / "test.xyz",
        atoms=12,
        reference_energies={"Cu": 2.0},
        by_group={"rare": GroupWeights(energy=2, forces=0)},
    )
    errors = sample.measure(_Potential(structures))  # type: ignore[arg-type]
    assert errors.energy_squares == pytest.approx((2 * 0.04 + 0.01 + 0.01) / 4)
    assert errors.energy_rmse == pytest.approx(np.sqrt((0.04 + 0.01 + 0.01) / 3))
    assert errors.force_squares == pytest.approx(0.01)


def test_of_a_large_test_set_every_nth_is_taken(tmp_path: Path) -> None:
    """The same ones at every measurement."""
    _write(tmp_path / "test.xyz", 7)
    sample = Sample(tmp_path / "test.xyz", atoms=28, reference_energies={"Cu": 2.0}, most_atoms=10)
    assert [structure.row_id for structure in sample.structures] == [0, 3, 6]


@pytest.fixture
def test_set(tmp_path: Path) -> TestSet:
    """Return the test set of a fit that has written its tables' columns."""
    files = WorkFiles(tmp_path)
    header = (RUN / "test_metrics.txt").read_text().partition("\n")[0]
    files.table("test_metrics").write_text(header + "\n")
    return TestSet(
        files=files,
        elements=("Cu",),
        atoms=12,
        reference_energies={"Cu": 2.0},
        kappa=0.8,
        by_group={},
        display_step=10,
    )


def _row(iteration: int, step: int = 0) -> MetricsRow:
    return MetricsRow(step, 0, iteration, loss=1.0, reg_loss=0.125, nfuncs=5, ncoefs=12)


def test_a_row_is_one_of_pacemakers(test_set: TestSet) -> None:
    """It is read, and joined with those of other attempts, like any other."""
    add_row(test_set, _row(10), ERRORS)
    add_row(test_set, _row(7, step=1), ERRORS)
    table = test_set.files.table("test_metrics")
    first, second = read_table(table).rows
    assert read_table(table).dropped == 0
    assert (first.ladder_step, first.cycle_step, first.iter_num) == (0, 0, 10)
    assert first.loss == pytest.approx(0.2 * 0.25 + 0.8 * 1.0 + 0.125)
    assert first.e_loss_contrib == pytest.approx(0.05)
    assert first.rmse_energy_ev_per_atom == 0.5
    assert first.low_rmse_energy_ev_per_atom is None
    assert (second.ladder_step, second.iter_num, second.nfuncs) == (1, 7, 5)
    joined = join_tables(RUN / "test_metrics.txt", table, Offset(2, 8), metrics=RUN / "metrics.txt")
    assert joined is not None
    places = [line.split()[:3] for line in joined.splitlines()[-2:]]
    assert places == [["2", "0", "18"], ["3", "0", "7"]]


def test_without_a_known_kappa_there_is_no_loss(test_set: TestSet) -> None:
    """Pacemaker may be asked to choose it."""
    unknown = TestSet(**{**vars(test_set), "kappa": None})
    add_row(unknown, _row(10), ERRORS)
    (row,) = read_table(test_set.files.table("test_metrics")).rows
    assert row.loss is None
    assert row.rmse_force_ev_per_angstrom == 0.6


def test_it_is_measured_now_and_then_and_at_the_end_of_a_step(test_set: TestSet) -> None:
    """As often as pacemaker would, or less often."""
    due = _Due(test_set)
    assert [due(_row(n)) for n in (1, 9, 10, 13)] == [False, False, True, True]
    due.last = _row(13)
    assert not due(_row(22))
    assert due(_row(23))
    assert not due(_row(9, step=1))
    assert due(_row(10, step=1))
    test_set.files.ladder_potential(0).touch()
    assert due(_row(14))
    assert not due(_row(13))


def test_notes_say_what_was_not_done() -> None:
    """Which check the test set was left out of; none where pacemaker had it."""
    record: Any = SimpleNamespace(atoms=SimpleNamespace(test=45_000))
    with_test = summarise_run(RUN)
    without = with_test.model_copy(update={"test": None})
    empty = without.model_copy(update={"test_curve": ()})

    def notes(mode: Any, fitted: Any) -> list[str]:
        training = TrainingConfig(test_evaluation=mode, validation_fraction=0)
        return list(notes_on_test_set(training, record, fitted))

    assert notes("pacemaker", with_test) == []
    assert notes("beside", with_test) == []
    assert notes("end", empty) == []
    checked, no_curve = notes("beside", empty)
    assert "is checked on the training set only" in checked
    assert no_curve == (
        "the test set has no learning curve: the fit ended before it could be measured"
    )
    assert notes("beside", without)[1:] == [
        "the learning curve of the test set is of one structure in 3"
    ]
