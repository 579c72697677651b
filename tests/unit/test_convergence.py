"""A fit that went on for too long is told from one that did not go on for long enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlip_job.training.loss import convergence_warnings
from mlip_job.training.summary import BestPotential, CurvePoint, RunSummary

if TYPE_CHECKING:
    from collections.abc import Iterable


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
    fit = RunSummary(
        status="succeeded",
        cause=None,
        exit_code=0,
        train=None,
        test=None,
        iterations=100,
        functions=10,
        parameters=20,
        ladder=False,
        cycles=(),
        early_stopping=None,
        optimiser_message=None,
        structures={},
        versions={},
        timings_s={},
        train_curve=tuple(train),
        test_curve=tuple(test),
        warnings=(),
    )
    return list(convergence_warnings(fit.model_copy(update=changes)))


FALLING, LEVEL = np.exp(-np.arange(101) / 50), 1 + np.exp(-np.arange(101) / 5)


def test_a_loss_that_still_falls_is_told() -> None:
    """By how much in the last tenth, and what to raise."""
    (said,) = _fit(_curve(FALLING), [])
    assert "still fell by 18 % in the last tenth of the 100 iterations" in said
    assert "raise training.max_iter" in said


@pytest.mark.parametrize(
    ("train", "changes"),
    [
        (LEVEL, {}),
        (FALLING, {"early_stopping": "EARLY STOPPING: too small changes"}),
        (FALLING[:15], {}),
        ([], {}),
    ],
)
def test_a_fit_that_came_to_its_end_is_left_alone(train: Any, changes: dict[str, Any]) -> None:
    """One that levels off, that was stopped, that is too short to tell, and a linear one."""
    assert _fit(_curve(train), [], **changes) == []


def test_overfitting_is_told_instead() -> None:
    """More iterations would make it worse."""
    test = _curve([3.0, 2.0, 1.5, 1.8, 2.1, 2.4], every=20)
    (said,) = _fit(_curve(FALLING), test)
    assert "the loss on the test set was at its best in iteration 40 of 100" in said
    assert "60 % larger at the end" in said
    assert "lower training.max_iter" in said
    best = BestPotential(ladder_step=0, cycle=0, iteration=42, loss=1.4, last_loss=2.4)
    (said,) = _fit(_curve(FALLING), test, second_set="validation", best=best)
    assert "validation part" in said
    assert "the potential of iteration 42 is published" in said


@pytest.mark.parametrize("losses", [[3, 2, 1.5, 1.52, 1.53, 1.54], [3, 2, 1.8, 1.6, 1.4, 1.5]])
def test_noise_at_the_end_is_no_overfitting(losses: list[float]) -> None:
    """A few percent, or a best point that is near the end."""
    assert _fit(_curve(LEVEL), _curve(losses, every=20)) == []


def test_only_the_last_ladder_step_counts() -> None:
    """Each begins above the end of the one before."""
    curve = [*_curve(FALLING), *_curve(LEVEL, ladder_step=1)]
    assert _fit(curve, []) == []
