"""A whole evaluation, of a real GRACE/FS potential beside one of pacemaker."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from ase.units import GPa
from pyace import PyACECalculator
from pyace.asecalc import PyGRACEFSCalculator

from mlip_job.config import EvaluationConfig
from mlip_job.errors import TrainingError
from mlip_job.evaluation.evaluate import Predecessor, Subject, evaluate
from mlip_job.evaluation.measure import Models
from mlip_job.evaluation.potential import check_active_set
from mlip_job.models import FullErrors
from mlip_job.paths import DatasetFiles
from mlip_job.training.grace.potential_file import write_active_set
from mlip_job.training.summary import RunSummary
from tests.datasets import build, read, rows_of
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from ase import Atoms

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.results import Evaluation

DATA = Path(__file__).parents[1] / "data"
GRACE = DATA / "grace" / "FS_model.yaml"
PACEMAKER = DATA / "pacemaker" / "c_ladder" / "output_potential.yaml"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetRecord]:
    """Return 16 structures with stress and 4 rattled ones of another config type."""
    directory = tmp_path_factory.mktemp("dataset")
    write_database(directory / "cu.db", rattled(16, seed=3))
    write_database(directory / "cu.db", rattled(4, seed=5), config_type="hot")
    return directory, build(directory / "cu.db", directory, training={"test_fraction": 0.3})


def errors_of(structures: list[Atoms], calculator: Any, energy_of_atom: float) -> FullErrors:
    """Return the errors by ASE and numpy alone."""
    energies, forces, stresses = [], [], []
    for atoms in structures:
        copy = atoms.copy()
        copy.calc = calculator
        expected = atoms.get_potential_energy() / len(atoms) - energy_of_atom
        energies.append(copy.get_potential_energy() / len(atoms) - expected)
        forces.append(copy.get_forces() - atoms.get_forces())
        stresses.append(copy.get_stress() - atoms.get_stress())
    energy, force, stress = (
        np.sqrt(np.mean(np.square(errors))) for errors in (energies, forces, stresses)
    )
    return FullErrors(
        rmse_energy_mev_per_atom=1000 * energy,
        rmse_force_mev_per_angstrom=1000 * force,
        rmse_stress_gpa=stress / GPa,
        mae_stress_gpa=np.abs(stresses).mean() / GPa,
        max_stress_gpa=np.abs(stresses).max() / GPa,
    )


def evaluate_grace(
    directory: Path, record: DatasetRecord, fitted: FullErrors | None, **changes: Any
) -> Evaluation:
    """Evaluate the GRACE/FS potential, with these errors of its trainer on the training set."""
    summary = RunSummary(
        status="succeeded",
        cause=None,
        exit_code=0,
        train=fitted,
        test=None,
        iterations=1,
        functions=None,
        parameters=None,
        ladder=False,
        cycles=(),
        early_stopping=None,
        optimiser_message=None,
        structures={},
        versions={},
        timings_s={},
        train_curve=(),
        test_curve=(),
        warnings=(),
    )
    values: dict[str, Any] = {
        "models": Models(GRACE, record.reference_energies, basis=GRACE),
        "dataset": DatasetFiles(directory),
        "record": record,
        "fitted": summary,
        "left_out": {},
        "validation": frozenset(),
        "predecessor": None,
        "active_set": None,
    }
    return evaluate(
        Subject(**(values | changes)),
        EvaluationConfig(dynamics_steps=20),
        seed=1,
        cores=1,
        progress=lambda _: None,
    )


def test_grace_is_evaluated_and_compared_with_a_parent_of_pacemaker(
    dataset: tuple[Path, DatasetRecord],
) -> None:
    """Stress errors, agreement, and both potentials on the same structures, each by its library."""
    directory, record = dataset
    reference = record.reference_energies["Cu"]
    train, test = (
        errors_of(read(directory, side), PyGRACEFSCalculator(str(GRACE)), reference)
        for side in ("train", "test")
    )
    parent_energies = {"Cu": reference + 0.5}
    parent = errors_of(
        read(directory, "test"), PyACECalculator(str(PACEMAKER)), parent_energies["Cu"]
    )
    predecessor = Predecessor(1, PACEMAKER, parent_energies, frozenset(rows_of(directory, "test")))
    found = evaluate_grace(directory, record, train, predecessor=predecessor)

    assert found.test is not None
    for measured, expected in ((found.train.errors, train), (found.test.errors, test)):
        known = expected.model_dump(exclude_none=True)
        assert {key: measured.model_dump()[key] for key in known} == pytest.approx(known, rel=1e-6)
    for side in (found.train, found.test):
        assert side.stress_parity_gpa is not None
        assert side.stress_error_histogram_gpa is not None
        assert side.stress_parity_gpa.sampled_from == 6 * side.structures
        assert sum(side.stress_error_histogram_gpa.counts) == 6 * side.structures
        kinds = side.per_config_type.values()
        squares = sum(k.stress_gpa.rmse**2 * k.structures for k in kinds if k.stress_gpa)
        assert squares / side.structures == pytest.approx((side.errors.rmse_stress_gpa or 0) ** 2)
    (agreement,) = found.agreement
    assert agreement.stress_gpa == pytest.approx(agreement.stress_by_trainer_gpa)

    compared = found.parent
    assert compared is not None
    assert compared.stress_gpa is not None
    for pair, old, new in (
        (
            compared.energy_mev_per_atom,
            parent.rmse_energy_mev_per_atom,
            test.rmse_energy_mev_per_atom,
        ),
        (
            compared.force_mev_per_angstrom,
            parent.rmse_force_mev_per_angstrom,
            test.rmse_force_mev_per_angstrom,
        ),
        (compared.stress_gpa, parent.rmse_stress_gpa, test.rmse_stress_gpa),
    ):
        assert (pair.old, pair.new) == pytest.approx((old, new), rel=1e-6)

    assert found.conversion is None  # the fit ends with the published file
    assert {check.kind for check in found.physics} == {
        "dimer",
        "smoothness",
        "energy_volume",
        "dynamics",
    }
    assert all("training.zbl" not in check.message for check in found.physics)
    assert found.speed is not None
    assert found.speed.evaluator_us_per_atom > 0


def test_a_stress_that_disagrees_is_not_published(dataset: tuple[Path, DatasetRecord]) -> None:
    """Even if energies and forces agree."""
    directory, record = dataset
    train = errors_of(
        read(directory, "train"),
        PyGRACEFSCalculator(str(GRACE)),
        record.reference_energies["Cu"],
    )
    wrong = train.model_copy(update={"rmse_stress_gpa": 1.01 * (train.rmse_stress_gpa or 0)})
    with pytest.raises(TrainingError, match=r"its stress RMSE on the train set is .* GPa, the tra"):
        evaluate_grace(directory, record, wrong)


def test_missing_stresses_are_noted(tmp_path: Path) -> None:
    """The trainer's stress error can't be compared then; ours has the structures with a stress."""
    structures = rattled(10, seed=4)
    del structures[0].calc.results["stress"]
    write_database(tmp_path / "cu.db", structures)
    record = build(tmp_path / "cu.db", tmp_path, training={"test_fraction": 0})
    labelled = read(tmp_path, "train")
    calculator = PyGRACEFSCalculator(str(GRACE))
    with_stress = [atoms for atoms in labelled if "stress" in atoms.calc.results]
    assert len(with_stress) == 9
    expected = errors_of(with_stress, calculator, record.reference_energies["Cu"])
    for atoms in labelled:
        atoms.calc.results.setdefault("stress", np.zeros(6))
    trainer = errors_of(labelled, calculator, record.reference_energies["Cu"])
    found = evaluate_grace(tmp_path, record, trainer)
    assert found.train.errors.rmse_stress_gpa == pytest.approx(expected.rmse_stress_gpa)
    assert found.agreement[0].stress_gpa is None
    assert (
        "the stress RMSE on the train set is not compared with the trainer's, which takes a "
        "missing stress for 0"
    ) in found.notes


def test_grace_has_extrapolation_grades(
    tmp_path: Path, dataset: tuple[Path, DatasetRecord]
) -> None:
    """Of an active set that python-ace makes of the training structures."""
    directory, record = dataset
    structures = read(directory, "train")
    frame = pd.DataFrame(
        {
            "ase_atoms": [atoms.copy() for atoms in structures],
            "forces": [atoms.get_forces() for atoms in structures],
        }
    )
    frame.to_pickle(tmp_path / "training_set.pkl.gz", compression="gzip")
    potential = tmp_path / GRACE.name
    shutil.copy(GRACE, potential)
    active_set = write_active_set(potential, tmp_path / "training_set.pkl.gz")
    check_active_set(potential, active_set, directory / "train.xyz")
    models = Models(potential, record.reference_energies, potential, active_set)
    found = evaluate_grace(directory, record, None, models=models, active_set="linear")
    assert found.conversion is None
    grades = found.train.extrapolation_grade
    assert grades is not None
    assert grades.max < 1.02
    assert found.test is not None
    assert found.test.extrapolation_grade is not None
    assert found.test.extrapolation_grade.count == record.counts.test
