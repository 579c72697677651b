"""Terms and convergence of a fit's loss, with warnings that suggest a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.config.training import REGULARISATION
from mlip_job.training.summary import LossShares

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.config import TrainingConfig
    from mlip_job.models import Errors
    from mlip_job.training.summary import CurvePoint, RunSummary

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
    found: LossShares,
    training: TrainingConfig,
    kappa: float,
    errors: Errors | None = None,
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
        if point.loss is not None
        and (point.ladder_step, point.cycle) == (curve[-1].ladder_step, curve[-1].cycle)
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
