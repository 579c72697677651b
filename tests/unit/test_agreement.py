"""The published file is compared with the trainer's own errors."""

from __future__ import annotations

import numpy as np
import pytest
from ase.units import GPa

from mlip_job.errors import TrainingError
from mlip_job.evaluation.evaluate import agreement, conversion
from mlip_job.evaluation.measure import Measured
from mlip_job.evaluation.statistics import SetErrors, SubsetErrors
from mlip_job.models import Errors


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
    assert found.energy_mev_per_atom == pytest.approx(100)
    assert found.energy_by_pacemaker_mev_per_atom == 100 * factor
    assert found.force_mev_per_angstrom == pytest.approx(300)
    assert found.force_by_pacemaker_mev_per_angstrom == 300 / factor


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
    assert (found.stress_gpa, found.stress_by_trainer_gpa) == (pytest.approx(2.0), 2.0005)
    partial = _errors(_measured(1, 0.1, 0.3, stress_gpa=2.0), _measured(2, 0.1, 0.3))
    for ours, stress in ((complete, None), (partial, 1.4)):
        found = agreement("train", ours, _trainer(100, 300, stress))
        assert found is not None
        assert (found.stress_gpa, found.stress_by_trainer_gpa) == (None, None)


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
    assert aside.energy_mev_per_atom == pytest.approx(200)
    with pytest.raises(TrainingError, match="energy RMSE on the validation part"):
        agreement("validation", errors.apart, _trainer(100, 500))
    with pytest.raises(TrainingError, match="energy RMSE on the train set"):
        agreement("train", errors.rest, _trainer(200, 300))
