"""Terms and course of the loss, with warnings that name a remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from ase.units import GPa

from mlip_job.config import TrainingConfig
from mlip_job.generation.ensemble import loss_on_test
from mlip_job.models import Errors
from mlip_job.registry import Headline
from mlip_job.training.summary import (
    BestPotential,
    CurvePoint,
    LossShares,
    convergence_warnings,
    describe_shares,
    kappa,
    share_warnings,
    shares,
)
from tests.trainings import make_summary


def found(energy: float, forces: float, **regularisers: float) -> LossShares:
    result = shares(energy, forces, regularisers)
    assert result is not None
    return result


def warned(result: LossShares, given: float | None = None, **settings: Any) -> list[str]:
    training = TrainingConfig(**settings)
    asked = kappa(training.energy_weight, training.force_weight)
    return list(share_warnings(result, training, asked if given is None else given))


def errors(energy: float | None, force: float | None = None) -> Errors:
    return Errors(rmse_energy_mev_per_atom=energy, rmse_force_mev_per_angstrom=force)


def test_terms_are_named_with_the_largest_regulariser_first() -> None:
    result = found(0.5, 98.0, l1_coeffs=0.25, l2_coeffs=1.25, w0_rad=0.0)
    assert describe_shares(result) == (
        "energy 0.5 %, forces 98 %, l2_coeffs 1.2 %, l1_coeffs 0.25 %"
    )


def test_a_fitted_stress_is_a_term() -> None:
    """The energy weight is raised against forces and stress together."""
    result = shares(0.02, 0.48, {}, stress=0.5)
    assert result is not None
    assert describe_shares(result) == "energy 2 %, forces 48 %, stress 50 %"
    (text,) = warned(result, energy_weight=50.0, force_weight=100.0)
    assert "raise training.energy_weight from 50 to 610 (20 % with these errors" in text
    assert LossShares.model_validate_json('{"energy": 0.5, "forces": 0.5}').stress is None


def test_members_are_compared_by_the_loss_that_was_fitted() -> None:
    """With its stress term; on the training set if nothing is held out."""
    training = TrainingConfig(
        trainer="grace-fs", energy_weight=10, force_weight=2, stress_weight=50
    )
    known = Errors(rmse_energy_mev_per_atom=4, rmse_force_mev_per_angstrom=30, rmse_stress_gpa=0.5)
    expected = 10 * 0.004**2 + 2 * 3 * 0.03**2 + 50 * (0.5 * GPa) ** 2
    for train, test in ((Errors(), known), (known, Errors())):
        headline = Headline(train=train, test=test, iterations=1, functions=1, accepted=True)
        assert loss_on_test(headline, training) == pytest.approx(expected)


def test_a_balanced_loss_causes_no_warning() -> None:
    """Nor does a fit to forces alone; both warnings may come together."""
    assert warned(found(5, 65, l2_coeffs=30)) == []
    assert warned(found(0.0, 1.0), energy_weight=0.0) == []
    assert len(warned(found(0.8, 38.2, l2_coeffs=61.0))) == 2


@pytest.mark.parametrize(("energy", "warnings"), [(0.3, 0), (3.0, 1)])
def test_well_fitted_energies_cause_no_warning(energy: float, warnings: int) -> None:
    """Their share is small because their errors are; a larger weight would gain nothing."""
    training, result = TrainingConfig(), found(0.02, 0.98)
    assert len(list(share_warnings(result, training, 0.0099, errors(energy)))) == warnings


@pytest.mark.parametrize(
    ("energy", "force", "warnings"), [(0.4, 1.5, 0), (0.4, 5.0, 1), (3.0, 1.5, 1), (None, None, 1)]
)
def test_regularisation_of_a_negligible_loss_causes_no_warning(
    energy: float | None, force: float | None, warnings: int
) -> None:
    """Its share is large because the errors are at round-off."""
    training, result = TrainingConfig(), found(20, 49, l2_coeffs=31)
    assert len(list(share_warnings(result, training, 0.0099, errors(energy, force)))) == warnings


def test_weight_that_balances_the_loss_is_named() -> None:
    """With the proposed weight and the same errors, energies contribute a fifth."""
    settings = {"energy_weight": 50.0, "force_weight": 100.0}
    (text,) = warned(found(0.02, 0.98), **settings)
    assert "energies make up 2 % of the final loss" in text
    assert "raise training.energy_weight from 50 to 610 (20 % with these errors" in text
    energies, forces = 0.02 * 610 / 50, 0.98
    assert energies / (energies + forces) == pytest.approx(0.2, abs=0.002)


def test_warning_names_kappa_of_an_override() -> None:
    overrides = {"fit": {"loss": {"kappa": 0.5}}}
    (text,) = warned(found(0.02, 0.98), 0.5, overrides=overrides)
    assert "lower fit.loss.kappa in training.overrides to 0.075" in text
    assert "energy_weight" not in text


def test_regularisers_that_dominate_are_named() -> None:
    """With pacemaker's name; with the proposed coefficients they contribute a tenth."""
    result = found(20, 19, l2_coeffs=55, w2_rad=5.5, w0_rad=0.5)
    (text,) = warned(result, overrides={"fit": {"loss": {"L2_coeffs": 2e-8, "w2_rad": 1e-8}}})
    assert "regularisation makes up 61 % of the final loss" in text
    assert "lower fit.loss.L2_coeffs in training.overrides from 2e-08 to 1e-09" in text
    assert "fit.loss.w2_rad in training.overrides from 1e-08 to 7e-10" in text
    assert "w0_rad" not in text
    overrides = {"fit": {"loss": {"w_orth": 1e-3}}}
    assert "fit.loss.w_orth" in warned(found(40, 20, w_orth=40), overrides=overrides)[0]


def _curve(losses: Iterable[float], every: int = 1, ladder_step: int = 0) -> list[CurvePoint]:
    return [
        CurvePoint(
            ladder_step=ladder_step,
            cycle=0,
            iteration=every * number,
            loss=float(loss),
            rmse_energy_mev_per_atom=None,
            rmse_force_mev_per_angstrom=None,
        )
        for number, loss in enumerate(losses)
    ]


def _fit(train: list[CurvePoint], test: list[CurvePoint], **changes: Any) -> list[str]:
    fit = make_summary(train_curve=tuple(train), test_curve=tuple(test), iterations=100)
    return list(convergence_warnings(fit.model_copy(update=changes)))


FALLING, LEVEL = np.exp(-np.arange(101) / 50), 1 + np.exp(-np.arange(101) / 5)


def test_a_decreasing_loss_is_noted() -> None:
    """By how much in the last tenth, and which setting to raise."""
    (warning,) = _fit(_curve(FALLING), [])
    assert "still fell by 18 % in the last tenth of the 100 iterations" in warning
    assert "raise training.max_iter" in warning


@pytest.mark.parametrize(
    ("train", "changes"),
    [
        (LEVEL, {}),
        (FALLING, {"early_stopping": "EARLY STOPPING: too small changes"}),
        (FALLING[:15], {}),
        ([], {}),
    ],
)
def test_a_converged_fit_causes_no_note(train: Any, changes: dict[str, Any]) -> None:
    assert _fit(_curve(train), [], **changes) == []


def test_overfitting_is_noted_instead() -> None:
    """More iterations would make it worse."""
    test = _curve([3.0, 2.0, 1.5, 1.8, 2.1, 2.4], every=20)
    (warning,) = _fit(_curve(FALLING), test)
    assert "the loss on the test set was at its best in iteration 40 of 100" in warning
    assert "60 % larger at the end" in warning
    assert "lower training.max_iter" in warning
    best = BestPotential(ladder_step=0, cycle=0, iteration=42, loss=1.4, last_loss=2.4)
    (warning,) = _fit(_curve(FALLING), test, second_set="validation", best=best)
    assert "validation part" in warning
    assert "the potential of iteration 42 is published" in warning


@pytest.mark.parametrize("losses", [[3, 2, 1.5, 1.52, 1.53, 1.54], [3, 2, 1.8, 1.6, 1.4, 1.5]])
def test_noise_at_the_end_is_no_overfitting(losses: list[float]) -> None:
    assert _fit(_curve(LEVEL), _curve(losses, every=20)) == []


def test_only_the_last_ladder_step_counts() -> None:
    curve = [*_curve(FALLING), *_curve(LEVEL, ladder_step=1)]
    assert _fit(curve, []) == []
