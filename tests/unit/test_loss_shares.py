"""What makes up the final loss is shown, and warned of where it is out of balance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.config import TrainingConfig
from mlip_job.models import Errors
from mlip_job.training.loss import describe_shares, share_warnings, shares, shares_of
from mlip_job.training.pacemaker.input import kappa
from mlip_job.training.pacemaker.tables import MetricsRow

if TYPE_CHECKING:
    from mlip_job.training.summary import LossShares


def found(energy: float, forces: float, **regularisers: float) -> LossShares:
    """Return shares of terms that are not all zero."""
    result = shares(energy, forces, regularisers)
    assert result is not None
    return result


def warned(result: LossShares, given: float | None = None, **settings: Any) -> list[str]:
    """Return what is said of a fit with these settings."""
    training = TrainingConfig(**settings)
    asked = kappa(training.energy_weight, training.force_weight)
    return list(share_warnings(result, training, asked if given is None else given))


def errors(energy: float | None, force: float | None = None) -> Errors:
    """Return RMSEs; nothing else is known."""
    return Errors(
        rmse_energy_mev_per_atom=energy,
        rmse_force_mev_per_angstrom=force,
    )


def test_terms_are_named_with_the_largest_regulariser_first() -> None:
    """Small shares have two digits; what is zero is left out."""
    result = found(0.5, 98.0, l1_coeffs=0.25, l2_coeffs=1.25, w0_rad=0.0)
    assert describe_shares(result) == (
        "energy 0.5 %, forces 98 %, l2_coeffs 1.2 %, l1_coeffs 0.25 %"
    )


def test_what_a_table_lacks_is_not_made_up() -> None:
    """No row, no parts of the loss, or a loss of zero give no shares."""
    assert shares_of(None) is None
    assert shares_of(MetricsRow(loss=1.0)) is None
    assert shares_of(MetricsRow(e_loss_contrib=0.0, f_loss_contrib=0.0)) is None


def test_a_balanced_loss_is_no_matter() -> None:
    """5 % energy and 30 % regularisation are no reason to warn."""
    assert warned(found(5, 65, l2_coeffs=30)) == []


def test_energies_that_are_fitted_well_are_no_matter() -> None:
    """Their share is small because their errors are; a larger weight would gain nothing."""
    training, result = TrainingConfig(), found(0.02, 0.98)
    assert list(share_warnings(result, training, 0.0099, errors(0.3))) == []
    assert len(list(share_warnings(result, training, 0.0099, errors(3.0)))) == 1


@pytest.mark.parametrize(
    ("energy", "force", "warnings"), [(0.4, 1.5, 0), (0.4, 5.0, 1), (3.0, 1.5, 1), (None, None, 1)]
)
def test_regularisation_of_a_negligible_loss_is_no_matter(
    energy: float | None, force: float | None, warnings: int
) -> None:
    """Its share is large because the errors are at round-off."""
    training, result = TrainingConfig(), found(20, 49, l2_coeffs=31)
    assert len(list(share_warnings(result, training, 0.0099, errors(energy, force)))) == warnings


def test_weight_that_balances_the_loss_is_named() -> None:
    """With the weight that is named, and the same errors, energies make up a fifth."""
    settings = {"energy_weight": 50.0, "force_weight": 100.0}
    (text,) = warned(found(0.02, 0.98), **settings)
    assert "energies make up 2 % of the final loss" in text
    assert "raise training.energy_weight from 50 to 610 (20 % with these errors" in text
    energies, forces = 0.02 * 610 / 50, 0.98
    assert energies / (energies + forces) == pytest.approx(0.2, abs=0.002)


def test_kappa_from_an_override_is_what_is_to_change() -> None:
    """The weights have no effect then."""
    overrides = {"fit": {"loss": {"kappa": 0.5}}}
    (text,) = warned(found(0.02, 0.98), 0.5, overrides=overrides)
    assert "lower fit.loss.kappa in training.overrides to 0.075" in text
    assert "energy_weight" not in text


def test_energies_that_nobody_wanted_are_no_matter() -> None:
    """A fit to forces alone has none, and no weight would change that."""
    assert warned(found(0.0, 1.0), energy_weight=0.0) == []


def test_regularisers_that_dominate_are_named() -> None:
    """With the coefficients that are named, and the same potential, they make up a tenth."""
    result = found(20, 19, l2_coeffs=55, w2_rad=5.5, w0_rad=0.5)
    (text,) = warned(result, l2_coeffs=2e-8, w2_rad=1e-8)
    assert "regularisation makes up 61 % of the final loss" in text
    assert "lower training.l2_coeffs from 2e-08 to 1e-09, training.w2_rad from 1e-08 to 7e-10" in (
        text
    )
    assert "w0_rad" not in text


def test_regularisers_from_an_override_are_what_is_to_change() -> None:
    """Under pacemaker's own name."""
    overrides = {"fit": {"loss": {"L2_coeffs": 1e-5, "w_orth": 1e-3}}}
    (text,) = warned(found(20, 20, l2_coeffs=50, w_orth=10), overrides=overrides)
    assert "fit.loss.L2_coeffs in training.overrides" in text
    assert "fit.loss.w_orth" in text


def test_both_are_said_where_both_are_the_matter() -> None:
    """As in a fit of 105 copper structures with default weights of old."""
    assert len(warned(found(0.8, 38.2, l2_coeffs=61.0))) == 2
