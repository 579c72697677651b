"""The result of a fit: errors, learning curve and warnings."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from mlip_job.models import Errors, Frozen, is_unknown


def milli(value: float | None) -> float | None:
    """Return eV as meV; None for a number that is not finite."""
    return None if value is None or not math.isfinite(value) else 1000 * value


class LossShares(Frozen):
    """The terms of a loss as fractions of it.

    Regularisers are named by their coefficient (``l2_coeffs``, ``w0_rad``, …); none is zero.
    The share of the stress is None if it is not fitted.
    """

    energy: float
    forces: float
    stress: float | None = Field(None, exclude_if=is_unknown)
    regularisers: dict[str, float] = Field(default_factory=dict)

    @property
    def regularisation(self) -> float:
        """Of all regularisers together."""
        return sum(self.regularisers.values())


class CurvePoint(Errors):
    """One iteration; it counts from 0 in every ladder step and cycle."""

    ladder_step: int
    cycle: int
    iteration: int

    @property
    def step(self) -> tuple[int, int]:
        """Ladder step and cycle."""
        return self.ladder_step, self.cycle


def curve_point(errors: Errors, iteration: int, ladder_step: int = 0, cycle: int = 0) -> CurvePoint:
    """Return the errors of an iteration as a point of a learning curve."""
    return CurvePoint(
        ladder_step=ladder_step,
        cycle=cycle,
        iteration=iteration,
        loss=errors.loss,
        rmse_energy_mev_per_atom=errors.rmse_energy_mev_per_atom,
        rmse_force_mev_per_angstrom=errors.rmse_force_mev_per_angstrom,
        rmse_stress_gpa=errors.rmse_stress_gpa,
    )


class FitCycle(Frozen):
    """One cycle of one ladder step."""

    ladder_step: int
    cycle: int
    functions: int | None
    iterations: int
    final_loss: float | None


class BestPotential(Frozen):
    """The iteration whose potential is the result, if that is not the last one.

    Losses are on the second set and without regularisation; `last_loss` is None if it was not
    measured.
    """

    ladder_step: int
    cycle: int
    iteration: int
    loss: float
    last_loss: float | None


class SetSizes(Frozen):
    """Structures of one set: in the files, with neighbours, and after weighting."""

    found: int | None
    kept: int | None
    fitted: int | None


class RunSummary(Frozen):
    """The result of a fit; None is unknown.

    Attributes
    ----------
    status
        ``succeeded``: final potential saved, at least one iteration, a finite loss that fell; or a
        start potential that was already at a minimum. ``failed``: it ended otherwise.
        ``incomplete``: its log just stops.
    cause
        Why it failed or what is missing.
    exit_code
        From a file ``exit_code`` in the directory, if there is one.
    train, test
        Errors of the result: of the last ladder step and its best cycle.
    loss_shares
        Terms of the training loss of the result.
    kappa
        Pacemaker's weight of the forces in the loss, as it read or chose it.
    second_set
        The set that the trainer used as its test set; `test`, `test_curve` and `structures` are of
        that.
    best
        The iteration whose potential is the result, if it is not the last one.
    iterations
        Over all ladder steps and cycles.
    cycles
        Every cycle of every ladder step; without a ladder and with one cycle just one.
    structures
        By ``train`` and ``test``.
    timings_s
        Seconds in each phase, by the log's stamps.
    warnings
        Warnings for the user.
    """

    schema_version: Literal[1] = 1
    status: Literal["succeeded", "failed", "incomplete"]
    cause: str | None
    exit_code: int | None
    train: Errors | None
    test: Errors | None
    loss_shares: LossShares | None = None
    kappa: float | None = None
    second_set: Literal["test", "validation"] = "test"
    best: BestPotential | None = None
    iterations: int | None
    functions: int | None
    parameters: int | None
    ladder: bool | None
    cycles: tuple[FitCycle, ...]
    early_stopping: str | None
    optimiser_message: str | None
    structures: dict[Literal["train", "test"], SetSizes]
    versions: dict[str, str]
    timings_s: dict[str, float]
    train_curve: tuple[CurvePoint, ...]
    test_curve: tuple[CurvePoint, ...]
    warnings: tuple[str, ...]


class LinearStart(Frozen):
    """The linear fit that a fit started from, as stored in checkpoints and manifests.

    Attributes
    ----------
    structures, atoms
        Of the training set, without what a weighting leaves out.
    functions
        Number of coefficients.
    loss
        On these structures, without regularisation: (1-κ)·MSE(E/atom, eV) + κ·mean|ΔF|² (eV/Å),
        weighted as in the fit.
    ridge
        Weight of the squared coefficients: ``l2_coeffs``, or a larger one that was better on
        structures that were held out.
    undetermined
        Blocks, as ``Al Li``, of which the data have no structure; their coefficients are 0.
    """

    structures: int
    atoms: int
    functions: int
    loss: float
    ridge: float | None = None
    undetermined: tuple[str, ...] = ()
    loss_shares: LossShares | None = None
