"""Whether a fit went on for too long, or not for long enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.training.run_summary import CurvePoint, RunSummary

_FEWEST_ITERATIONS = 20
_LONG_BEFORE = 0.7  # of the iterations
_WORSE = 0.05
_LAST_PART = 0.1
_STILL_FALLING = 0.05


def convergence_warnings(fit: RunSummary) -> Iterator[str]:
    """Yield whether a fit overfitted, or else would have gone on to improve.

    Only the last ladder step and cycle count: what was published comes from there.
    """
    train, second = _last_part(fit.train_curve), _last_part(fit.test_curve)
    if not train or train[-1][0] < _FEWEST_ITERATIONS:
        return
    said = _overfitting(fit, second)
    if said is None and fit.early_stopping is None:
        said = _falling(train)
    if said is not None:
        yield said


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
        else "what is published overfits: lower training.max_iter, fit fewer functions, or set "
        "training.validation_fraction"
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
