"""Evaluations: agreement with the trainer, the gate, and whole ones of both kinds of files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pytest
from ase.units import GPa
from pyace import PyACECalculator
from pyace.asecalc import PyGRACEFSCalculator

from mlip_job.calculator import GenerationCalculator
from mlip_job.config import EvaluationConfig, GateConfig
from mlip_job.config.job import verdict_word
from mlip_job.errors import TrainingError
from mlip_job.evaluation.evaluate import (
    Predecessor,
    Subject,
    agreement,
    conversion,
    evaluate,
    judge,
)
from mlip_job.evaluation.measure import Measured, Models
from mlip_job.evaluation.potential import check_active_set
from mlip_job.evaluation.results import DynamicsCheck, ParentComparison, Verdict
from mlip_job.evaluation.statistics import SetErrors, SubsetErrors
from mlip_job.models import Errors
from mlip_job.paths import DatasetFiles
from mlip_job.training.programs import write_active_set
from tests.datasets import build, read, rows_of
from tests.evaluations import make_dynamics, make_uniform_side
from tests.support import rattled, write_database
from tests.trainings import make_summary

if TYPE_CHECKING:
    from ase import Atoms

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.results import Evaluation


# -- agreement -------------------------------------------------------------------------------------


def _measured(
    row_id: int,
    energy_error: float,
    force_error: float,
    difference: float | None = None,
    stress_gpa: float | None = None,
) -> Measured:
    """Return a structure of two atoms with errors in eV/atom, and eV/Å and GPa per component."""
    return Measured(
        row_id=row_id,
        formula="Cu2",
        config_type=None,
        symbols=np.array(["Cu", "Cu"]),
        energy_reference=-3.0,
        energy_predicted=-3.0 + energy_error,
        forces_reference=np.zeros((2, 3)),
        forces_predicted=np.full((2, 3), force_error),
        stress=None if stress_gpa is None else (np.ones(6), 1 + GPa * np.full(6, stress_gpa), 9.0),
        shortest={("Cu", "Cu"): 2.4},
        conversion=None if difference is None else (difference, difference),
        grade=None,
    )


def _trainer(
    energy_mev: float | None, force_mev: float | None, stress_gpa: float | None = None
) -> Errors:
    return Errors(
        rmse_energy_mev_per_atom=energy_mev,
        rmse_force_mev_per_angstrom=force_mev,
        rmse_stress_gpa=stress_gpa,
    )


def _all(*structures: Measured) -> SetErrors:
    errors = SetErrors()
    errors.add_all(structures)
    return errors


def _errors(*structures: Measured) -> SubsetErrors:
    return _all(*structures).all


@pytest.mark.parametrize("factor", [1.0, 1.0009, 0.9991])
def test_figures_that_agree_are_reported_together(factor: float) -> None:
    """To a relative 1e-3; the measured difference is below 1e-6."""
    ours = _errors(_measured(1, 0.1, 0.3))
    found = agreement("train", ours, _trainer(100 * factor, 300 / factor))
    assert found is not None
    assert found.errors.rmse == (pytest.approx(100), pytest.approx(300), None)
    assert found.errors_by_trainer.rmse == (100 * factor, 300 / factor, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((101, 300, 2), r"energy RMSE on the test set is 100\.0000 meV/atom, the trainer says 101"),
        ((100, 290, 2), r"force RMSE on the test set is 300\.0000 meV/Å, the trainer says 290"),
        ((100, 300, 2.1), r"stress RMSE on the test set is 2\.0000 GPa, the trainer says 2\.1"),
        ((100, 300, float("nan")), r"stress RMSE on the test set is 2\.0000 GPa"),
    ],
)
def test_figures_that_differ_are_both_named(
    given: tuple[float, float, float], message: str
) -> None:
    """Such a potential is not published."""
    ours = _errors(_measured(1, 0.1, 0.3, stress_gpa=2.0))
    with pytest.raises(TrainingError, match=message) as caught:
        agreement("test", ours, _trainer(*given))
    assert caught.value.exit_code == 70


def test_stresses_are_compared_if_they_are_fitted_and_none_is_missing() -> None:
    """Gracemaker takes a missing stress for zero, so its error means something else then."""
    complete = _errors(_measured(1, 0.1, 0.3, stress_gpa=2.0), _measured(2, 0.1, 0.3, None, -2.0))
    found = agreement("train", complete, _trainer(100, 300, 2.0005))
    assert found is not None
    assert found.errors.rmse_stress_gpa == pytest.approx(2.0)
    assert found.errors_by_trainer.rmse_stress_gpa == 2.0005
    partial = _errors(_measured(1, 0.1, 0.3, stress_gpa=2.0), _measured(2, 0.1, 0.3))
    for ours, stress in ((complete, None), (partial, 1.4)):
        found = agreement("train", ours, _trainer(100, 300, stress))
        assert found is not None
        assert found.errors.rmse_stress_gpa is None
        assert found.errors_by_trainer.rmse_stress_gpa is None


def test_errors_unknown_to_the_trainer_are_not_compared() -> None:
    """Its pyace evaluator measures no test set."""
    for nothing in (None, _trainer(None, None)):
        assert agreement("test", _errors(_measured(1, 0.1, 0.3)), nothing) is None


def test_an_exact_fit_agrees_within_rounding() -> None:
    """Positions are known to 1e-8 Å: relative differences of tiny errors are meaningless."""
    assert agreement("train", _errors(_measured(1, 1e-9, 1e-9)), _trainer(0.0, 0.0)) is not None


def test_a_conversion_that_changed_something_is_rejected() -> None:
    """Differences beyond rounding, on however few of the structures."""
    same = _all(_measured(1, 0.1, 0.3, 1e-12), _measured(2, 0.1, 0.3))
    found = conversion(same, same)
    assert found.structures == 2
    assert found.max_energy_difference_mev_per_atom == pytest.approx(1e-9)
    other = _all(_measured(3, 0.1, 0.3, 2e-6))
    with pytest.raises(TrainingError, match=r"on 2 structures by up to 0\.002 meV"):
        conversion(same, other)


def test_the_validation_part_is_compared_separately() -> None:
    """Each part is compared separately: together they would agree only by chance."""
    errors = SetErrors(apart={2})
    errors.add_all([_measured(1, 0.1, 0.3), _measured(2, 0.2, 0.5), _measured(3, 0.1, 0.3)])
    assert (errors.rest.structures, errors.apart.structures) == (2, 1)
    fitted = agreement("train", errors.rest, _trainer(100, 300))
    aside = agreement("validation", errors.apart, _trainer(200, 500))
    assert fitted is not None
    assert aside is not None
    assert aside.errors.rmse_energy_mev_per_atom == pytest.approx(200)
    with pytest.raises(TrainingError, match="energy RMSE on the validation part"):
        agreement("validation", errors.apart, _trainer(100, 500))
    with pytest.raises(TrainingError, match="energy RMSE on the train set"):
        agreement("train", errors.rest, _trainer(200, 300))


# -- gate ------------------------------------------------------------------------------------------

TEST = make_uniform_side(5.0)  # 5 meV/atom, 50 meV/Å


def _parent(energy: float, force: float, old: tuple[float, float] = (10, 100)) -> ParentComparison:
    """Return a comparison with a predecessor whose errors were 10 meV/atom and 100 meV/Å."""
    return ParentComparison(
        generation=3, structures=7, old=_trainer(*old), new=_trainer(energy, force)
    )


def _dynamics(verdict: Verdict, *, unstable: bool = False) -> DynamicsCheck:
    return make_dynamics(verdict=verdict, unstable=unstable, message="it drifts")


def test_limits_without_a_test_set_reject() -> None:
    """They can't be checked; without limits nothing is required."""
    verdict = judge(GateConfig(max_force_rmse_mev=1000), None, None, [])
    assert not verdict.accepted
    assert "nothing was held out" in verdict.reasons[0]
    assert judge(GateConfig(), None, None, []).accepted


@pytest.mark.parametrize(
    ("limits", "word", "reason"),
    [
        ({}, "published, no gate set", ""),
        ({"max_regression": 0.1}, "published, no gate set", ""),
        ({"require_physics": True}, "accepted", ""),
        ({"max_energy_rmse_mev": 5.0}, "accepted", ""),
        ({"max_energy_rmse_mev": 4.9}, "rejected", "the energy RMSE on the test set is 5 meV/atom"),
        ({"max_force_rmse_mev": 50.0}, "accepted", ""),
        ({"max_force_rmse_mev": 49.0}, "rejected", "the force RMSE on the test set is 50 meV/Å"),
    ],
)
def test_accepted_needs_a_limit(limits: dict[str, Any], word: str, reason: str) -> None:
    """A value equal to its limit passes; a comparison with the predecessor alone is no limit."""
    found = judge(GateConfig(**limits), TEST, _parent(8.0, 90.0), ())
    verdict = verdict_word(accepted=found.accepted, limits_set=found.limits_set, unchecked=False)
    assert verdict == word
    assert [text[: len(reason)] for text in found.reasons] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (("skipped", "skipped"), "accepted, stability not checked"),
        (("skipped", "passed"), "accepted"),
        (("passed", "passed"), "accepted"),
        (("skipped", "failed"), "accepted"),  # it drifts, which is noted but not limited
    ],
)
def test_a_check_that_was_not_possible_is_not_claimed(
    verdicts: tuple[Verdict, ...], word: str
) -> None:
    """The verdict says so if no check of its kind was made; the reason is kept."""
    found = judge(GateConfig(max_force_rmse_mev=50.0), TEST, None, list(map(_dynamics, verdicts)))
    unchecked = verdicts == ("skipped", "skipped")
    assert found.unchecked == (("it drifts",) if unchecked else ())
    verdict = verdict_word(accepted=True, limits_set=True, unchecked=bool(found.unchecked))
    assert verdict == word
    assert verdict_word(accepted=True, limits_set=False, unchecked=True) == "published, no gate set"


def test_errors_that_are_no_numbers_are_over_any_limit() -> None:
    """NaN compares false with everything."""
    side = make_uniform_side(float("nan"))
    limits = GateConfig(max_energy_rmse_mev=5.0, max_force_rmse_mev=5.0)
    found = judge(limits, side, _parent(float("nan"), float("nan")), ())
    assert (found.accepted, len(found.reasons)) == (False, 4)


@pytest.mark.parametrize(
    ("energy", "force", "count"),
    [(8.0, 90.0, 0), (12.0, 120.0, 0), (12.1, 90.0, 1), (8.0, 120.1, 1), (99.0, 999.0, 2)],
)
def test_regression_is_limited_for_energies_and_forces(
    energy: float, force: float, count: int
) -> None:
    """By default to 20 % above the predecessor's errors on the same structures."""
    verdict = judge(GateConfig(), TEST, _parent(energy, force), ())
    assert len(verdict.reasons) == count
    assert verdict.accepted == (count == 0)
    for reason in verdict.reasons:
        assert "7 test structures shared with gen_03" in reason
    assert judge(GateConfig(max_regression=None), TEST, _parent(energy, force), ()).accepted


def test_a_perfect_predecessor_can_be_equalled() -> None:
    """Without division by its error of zero."""
    parent = _parent(0.0, 0.0, old=(0.0, 0.0))
    assert judge(GateConfig(), TEST, parent, ()).accepted
    assert [rmse and rmse.relative for rmse in parent.rmse] == [None, None, None]


@pytest.mark.parametrize(
    ("energy", "force", "accepted"), [(0.7, 4.9, True), (0.71, 4.9, False), (0.7, 5.1, False)]
)
def test_differences_below_the_resolution_of_the_data_are_no_regression(
    energy: float, force: float, *, accepted: bool
) -> None:
    """Half a meV/atom and 2 meV/Å, however good the predecessor is."""
    parent = _parent(energy, force, old=(0.2, 3.0))
    assert judge(GateConfig(), TEST, parent, ()).accepted == accepted


@pytest.mark.parametrize(
    ("required", "of_drift", "of_collapse"),
    [("stability", True, False), (True, False, False), (False, True, True)],
)
def test_a_collapse_is_rejected_by_default(
    required: bool | Literal["stability"], *, of_drift: bool, of_collapse: bool
) -> None:
    """Of failed checks those of stability reject by default; others only if configured."""
    assert GateConfig().require_physics == "stability"
    gate = GateConfig(require_physics=required)
    for verdict in ("passed", "skipped"):
        assert judge(gate, TEST, None, [_dynamics(verdict)]).accepted
    drift = judge(gate, TEST, None, [_dynamics("failed")])
    assert drift.reasons == (() if of_drift else ("a physics check failed: it drifts",))
    found = judge(gate, TEST, None, [_dynamics("failed", unstable=True)])
    stability = "a physics check of stability failed: it drifts"
    assert found.reasons == (() if of_collapse else (stability,))


# -- whole evaluations -----------------------------------------------------------------------------

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


def errors_of(structures: list[Atoms], calculator: Any, energy_of_atom: float) -> Errors:
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
    return Errors(
        rmse_energy_mev_per_atom=1000 * energy,
        rmse_force_mev_per_angstrom=1000 * force,
        rmse_stress_gpa=stress / GPa,
        mae_stress_gpa=np.abs(stresses).mean() / GPa,
        max_stress_gpa=np.abs(stresses).max() / GPa,
    )


def evaluate_grace(
    directory: Path, record: DatasetRecord, fitted: Errors | None, **changes: Any
) -> Evaluation:
    """Evaluate the GRACE/FS potential, with these errors of its trainer on the training set."""
    summary = make_summary(train=fitted, iterations=1)
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
    for measured, expected in ((found.train, train), (found.test, test)):
        known = expected.model_dump(exclude_none=True)
        assert {key: measured.model_dump()[key] for key in known} == pytest.approx(known, rel=1e-6)
    for side in (found.train, found.test):
        assert side.stress_parity_gpa is not None
        assert side.stress_error_histogram_gpa is not None
        assert side.stress_parity_gpa.sampled_from == 6 * side.structures
        assert sum(side.stress_error_histogram_gpa.counts) == 6 * side.structures
        kinds = side.per_config_type.values()
        squares = sum((kind.rmse_stress_gpa or 0) ** 2 * kind.structures for kind in kinds)
        assert squares / side.structures == pytest.approx((side.rmse_stress_gpa or 0) ** 2)
    (agreed,) = found.agreement
    assert agreed.errors.rmse_stress_gpa == pytest.approx(agreed.errors_by_trainer.rmse_stress_gpa)

    compared = found.parent
    assert compared is not None
    assert compared.old.rmse == pytest.approx(parent.rmse, rel=1e-6)
    assert compared.new.rmse == pytest.approx(test.rmse, rel=1e-6)

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
    assert found.train.rmse_stress_gpa == pytest.approx(expected.rmse_stress_gpa)
    assert found.agreement[0].errors.rmse_stress_gpa is None
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
    active_set = write_active_set(potential, [tmp_path / "training_set.pkl.gz"])
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

    calculator = GenerationCalculator(potential, record.reference_energies, active_set=active_set)
    atoms = structures[0].copy()
    atoms.calc = calculator
    atoms.get_potential_energy()
    assert calculator.results["gamma"].shape == (len(atoms),)
    assert 0 < calculator.results["gamma"].max() < 1.02
