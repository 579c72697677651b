"""The published file is compared with pacemaker's own errors."""

from __future__ import annotations

import numpy as np
import pytest

from mlip_job.errors import TrainingError
from mlip_job.evaluation.evaluate import agreement, conversion
from mlip_job.evaluation.measure import Measured
from mlip_job.evaluation.statistics import SetErrors
from mlip_job.models import Errors


def _measured(
    row_id: int, energy_error: float, force_error: float, difference: float | None = None
) -> Measured:
    """Return a structure of two atoms with errors in eV/atom and eV/Å on every component."""
    return Measured(
        row_id=row_id,
        formula="Cu2",
        config_type=None,
        symbols=np.array(["Cu", "Cu"]),
        energy_reference=-3.0,
        energy_predicted=-3.0 + energy_error,
        forces_reference=np.zeros((2, 3)),
        forces_predicted=np.full((2, 3), force_error),
        stress=None,
        shortest={("Cu", "Cu"): 2.4},
        conversion=None if difference is None else (difference, difference),
        grade=None,
    )


def _pacemaker(energy_mev: float | None, force_mev: float | None) -> Errors:
    return Errors(
        rmse_energy_mev_per_atom=energy_mev,
        rmse_force_mev_per_angstrom=force_mev,
    )


def _errors(*structures: Measured) -> SetErrors:
    errors = SetErrors()
    errors.add_all(structures)
    return errors


@pytest.mark.parametrize("factor", [1.0, 1.0009, 0.9991])
def test_figures_that_agree_are_reported_together(factor: float) -> None:
    """To a relative 1e-3; the measured difference is below 1e-6."""
    ours = _errors(_measured(1, 0.1, 0.3))
    found = agreement("train", ours, _pacemaker(100 * factor, 300 / factor))
    assert found is not None
    assert found.energy_mev_per_atom == pytest.approx(100)
    assert found.energy_by_pacemaker_mev_per_atom == 100 * factor
    assert found.force_mev_per_angstrom == pytest.approx(300)
    assert found.force_by_pacemaker_mev_per_angstrom == 300 / factor


@pytest.mark.parametrize(
    ("energy", "force", "message"),
    [
        (101.0, 300.0, r"energy RMSE on the test set is 100\.0000 meV/atom, pacemaker says 101"),
        (100.0, 290.0, r"force RMSE on the test set is 300\.0000 meV/Å, pacemaker says 290"),
    ],
)
def test_figures_that_differ_are_both_named(energy: float, force: float, message: str) -> None:
    """Such a potential is not published."""
    with pytest.raises(TrainingError, match=message) as caught:
        agreement("test", _errors(_measured(1, 0.1, 0.3)), _pacemaker(energy, force))
    assert caught.value.exit_code == 70


def test_unknown_errors_of_pacemaker_are_not_compared() -> None:
    """Its pyace evaluator measures no test set."""
    for nothing in (None, _pacemaker(None, None)):
        assert agreement("test", _errors(_measured(1, 0.1, 0.3)), nothing) is None


def test_an_exact_fit_agrees_within_rounding() -> None:
    """Positions are known to 1e-8 Å: relative differences of tiny errors are meaningless."""
    assert agreement("train", _errors(_measured(1, 1e-9, 1e-9)), _pacemaker(0.0, 0.0)) is not None


def test_a_conversion_that_changed_something_is_rejected() -> None:
    """Differences beyond rounding, on however few of the structures."""
    same = _errors(_measured(1, 0.1, 0.3, 1e-12), _measured(2, 0.1, 0.3))
    found = conversion(same, same)
    assert found.structures == 2
    assert found.max_energy_difference_mev_per_atom == pytest.approx(1e-9)
    other = _errors(_measured(3, 0.1, 0.3, 2e-6))
    with pytest.raises(TrainingError, match=r"on 2 structures by up to 0\.002 meV"):
        conversion(same, other)


def test_the_validation_part_is_compared_separately() -> None:
    """Each part is compared separately: together they would agree only by chance."""
    errors = SetErrors(apart={2})
    errors.add_all([_measured(1, 0.1, 0.3), _measured(2, 0.2, 0.5), _measured(3, 0.1, 0.3)])
    assert (errors.rest.structures, errors.apart.structures) == (2, 1)
    fitted = agreement("train", errors.rest, _pacemaker(100, 300))
    aside = agreement("validation", errors.apart, _pacemaker(200, 500))
    assert fitted is not None
    assert aside is not None
    assert aside.energy_mev_per_atom == pytest.approx(200)
    with pytest.raises(TrainingError, match="energy RMSE on the validation part"):
        agreement("validation", errors.apart, _pacemaker(100, 500))
    with pytest.raises(TrainingError, match="energy RMSE on the train set"):
        agreement("train", errors.rest, _pacemaker(200, 300))
