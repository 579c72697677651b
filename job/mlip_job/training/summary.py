"""The result of a fit: errors, learning curve, terms of its loss, and warnings with a remedy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mlip_job.config.training import REGULARISATION
from mlip_job.models import Errors, Frozen, is_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.config import TrainingConfig


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
    train, test
        Errors of the result: of the last ladder step and its best cycle.
    loss_shares
        Terms of the training loss of the result.
    kappa
        Pacemaker's weight of the forces in the loss, as it read or chose it.
    second_set
        The set that `test`, `test_curve` and `structures` describe.
    best
        The iteration whose potential is the result, if it is not the last one.
    iterations
        Over all ladder steps and cycles.
    timings_s
        Seconds in each phase, by the log's stamps.
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


# -- terms and convergence of the loss ------------------------------------------------------------

DIVERGED = (
    "it diverged: the loss is not finite; look for structures with extreme forces "
    "(dataset.max_force), reduce the basis or, for pacemaker, raise fit.loss.L2_coeffs in "
    "training.overrides, then run with --fresh"
)

_LEAST_ENERGY = 0.05
_GOOD_ENERGY, _GOOD_FORCE = 1.0, 2.0
"""meV/atom and meV/Å: resolution of the reference data; smaller errors are no improvement."""
_MOST_REGULARISATION = 0.3
_BALANCED_ENERGY = 0.2  # of energies and forces together: what the advice aims at
_BALANCED_REGULARISATION = 0.1
_WORTH_LOWERING = 0.05  # a regulariser's share


def kappa(energy_weight: float, force_weight: float) -> float:
    r"""Return pacemaker's kappa for the weights a and b of energies and forces.

    Pacemaker minimises :math:`(1-κ) \sum_s w_s (ΔE_s/n_s)^2 + κ \sum_s \sum_i w_{si} |ΔF_{si}|^2`
    plus regularisation, with each set of weights normalised to 1 (`pyace.lossfuncspec`,
    `pyace.preparedata.normalize_energy_forces_weights`). So minimising

        a · MSE(E/atom) + b · mean(\|ΔF\|²)

    with energies per atom in eV, forces in eV/Å, the mean over atoms of the squared *length* of
    the force error (three times the mean square per component), and both means weighted where the
    weighting is not uniform, is exactly κ = b / (a + b).
    """
    return force_weight / (energy_weight + force_weight)


def shares(
    energy: float, forces: float, regularisers: Mapping[str, float], stress: float | None = None
) -> LossShares | None:
    """Return the terms of a loss as fractions of it; None for a loss of zero.

    `stress` is None if it is not fitted.
    """
    total = energy + forces + (stress or 0.0) + sum(regularisers.values())
    if not total > 0:
        return None
    return LossShares(
        energy=energy / total,
        forces=forces / total,
        stress=None if stress is None else stress / total,
        regularisers={name: term / total for name, term in regularisers.items() if term},
    )


def describe_shares(found: LossShares) -> str:
    """Return the shares in one line, the largest regulariser first."""
    regularisers = sorted(found.regularisers.items(), key=lambda item: -item[1])
    stress = [] if found.stress is None else [("stress", found.stress)]
    terms = [("energy", found.energy), ("forces", found.forces), *stress, *regularisers]
    return ", ".join(f"{name} {_percent(share)}" for name, share in terms)


def share_warnings(
    found: LossShares, training: TrainingConfig, kappa: float, errors: Errors | None = None
) -> Iterator[str]:
    """Yield a warning with a remedy if the energy term is negligible, or regularisation dominates.

    If the training errors are small, a small share of the energies or a dominant regularisation is
    no problem.
    """
    energy_error = errors.rmse_energy_mev_per_atom if errors is not None else None
    good = energy_error is not None and energy_error < _GOOD_ENERGY
    if 0 < found.energy < _LEAST_ENERGY and kappa < 1 and not good:
        yield (
            f"energies make up {_percent(found.energy)} of the final loss, so that the fit hardly "
            f"improves them: {_energy_remedy(found, training, kappa)}"
        )
    if found.regularisation > _MOST_REGULARISATION and not _nothing_to_gain(errors):
        yield (
            f"regularisation makes up {_percent(found.regularisation)} of the final loss, at the "
            f"expense of the errors: lower {_regularisation_remedy(found, training)}"
        )


def _nothing_to_gain(errors: Errors | None) -> bool:
    """Return whether both errors are below the resolution of the reference data."""
    if errors is None:
        return False
    energy, force = errors.rmse_energy_mev_per_atom, errors.rmse_force_mev_per_angstrom
    good_energy = energy is not None and energy < _GOOD_ENERGY
    return good_energy and force is not None and force < _GOOD_FORCE


def _energy_remedy(found: LossShares, training: TrainingConfig, kappa: float) -> str:
    # For constant errors, the shares of energies and forces go as (1-κ) and κ.
    wanted = _BALANCED_ENERGY / (1 - _BALANCED_ENERGY)
    ratio = (1 - kappa) / kappa * wanted * (found.forces + (found.stress or 0.0)) / found.energy
    aim = f"{_percent(_BALANCED_ENERGY)} with these errors, regularisation apart"
    if "kappa" in training.override("loss", default={}):
        return f"lower fit.loss.kappa in training.overrides to {1 / (1 + ratio):.2g} ({aim})"
    weight = float(f"{training.force_weight * ratio:.2g}")
    return f"raise training.energy_weight from {training.energy_weight:g} to {weight:g} ({aim})"


def _regularisation_remedy(found: LossShares, training: TrainingConfig) -> str:
    rest = 1 - found.regularisation
    wanted = _BALANCED_REGULARISATION / (1 - _BALANCED_REGULARISATION) * rest
    factor = wanted / found.regularisation
    large = sorted((-share, name) for name, share in found.regularisers.items())
    return ", ".join(
        _lower(name, factor, training) for share, name in large if -share >= _WORTH_LOWERING
    )


def _lower(name: str, factor: float, training: TrainingConfig) -> str:
    key = {"l1_coeffs": "L1_coeffs", "l2_coeffs": "L2_coeffs"}.get(name, name)
    value = training.override("loss", key, default=REGULARISATION.get(key))
    if not isinstance(value, float):
        return f"fit.loss.{key} in training.overrides to {factor:.1g} of it"
    return f"fit.loss.{key} in training.overrides from {value:g} to {value * factor:.1g}"


def _percent(share: float) -> str:
    """Return a share with two digits, or three if it is large."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.3g} %"  # noqa: PLR2004


_FEWEST_ITERATIONS = 20
_LONG_BEFORE = 0.7  # of the iterations
_WORSE = 0.05
_LAST_PART = 0.1
_STILL_FALLING = 0.05


def convergence_warnings(fit: RunSummary) -> Iterator[str]:
    """Yield a warning if a fit overfitted, or stopped while the loss still fell.

    Only the last ladder step and cycle count: they give the published potential.
    """
    measured = [errors for errors in (fit.train, fit.test) if errors is not None]
    if measured and all(map(_nothing_to_gain, measured)):
        return
    train, second = _last_part(fit.train_curve), _last_part(fit.test_curve)
    if not train or train[-1][0] < _FEWEST_ITERATIONS:
        return
    warning = _overfitting(fit, second)
    if warning is None and fit.early_stopping is None:
        warning = _falling(train)
    if warning is not None:
        yield warning


def _last_part(curve: Sequence[CurvePoint]) -> list[tuple[int, float]]:
    """Return iterations and losses."""
    return [
        (point.iteration, point.loss)
        for point in curve
        if point.loss is not None and point.step == curve[-1].step
    ]


def _overfitting(fit: RunSummary, curve: Sequence[tuple[int, float]]) -> str | None:
    if not curve:
        return None
    (best, least), (last, loss) = min(curve, key=lambda point: point[1]), curve[-1]
    if best > _LONG_BEFORE * last or loss <= (1 + _WORSE) * least:
        return None
    measured = "validation part" if fit.second_set == "validation" else "test set"
    remedy = (
        f"the potential of iteration {fit.best.iteration} is published"
        if fit.best is not None
        else "the published potential overfits: lower training.max_iter, fit fewer functions, or "
        "set training.validation_fraction"
    )
    return (
        f"overfitting: the loss on the {measured} was at its best in iteration {best} of {last}, "
        f"and {100 * (loss / least - 1):.0f} % larger at the end; {remedy}"
    )


def _falling(curve: Sequence[tuple[int, float]]) -> str | None:
    last, loss = curve[-1]
    begin = (1 - _LAST_PART) * last
    before = next((value for iteration, value in curve if iteration >= begin), loss)
    if not before > 0 or loss >= (1 - _STILL_FALLING) * before:
        return None
    return (
        f"not converged: the training loss still fell by {100 * (1 - loss / before):.0f} % in the "
        f"last tenth of the {last} iterations; raise training.max_iter"
    )
