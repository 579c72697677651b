"""The gate, which accepts or rejects a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mlip_job.evaluation.results import GateVerdict
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.config import GateConfig
    from mlip_job.evaluation.results import (
        ErrorPair,
        ParentComparison,
        PhysicsCheck,
        SetEvaluation,
    )


_NEGLIGIBLE_MEV_PER_ATOM, _NEGLIGIBLE_MEV_PER_ANGSTROM = 0.5, 2.0
"""Differences below the accuracy of reference data; never a regression."""


def judge(
    gate: GateConfig,
    test: SetEvaluation | None,
    parent: ParentComparison | None,
    physics: Sequence[PhysicsCheck],
) -> GateVerdict:
    """Return the verdict; limits on test errors reject a potential without a test set."""
    reasons = (
        *(_too_large(gate, test) if test is not None else _unmeasured(gate)),
        *(_regressions(gate, parent) if parent is not None else ()),
        *_failed_checks(gate.require_physics, physics),
    )
    return GateVerdict(
        accepted=not reasons,
        reasons=reasons,
        limits_set=gate.has_limits,
        unchecked=tuple(_unchecked(physics)),
    )


def _unchecked(physics: Sequence[PhysicsCheck]) -> Iterator[str]:
    """Yield a reason for each kind of check (compression, dynamics) that was not possible."""
    for kind in ("energy_volume", "dynamics"):
        checks = [check for check in physics if check.kind == kind]
        if checks and all(check.verdict == "skipped" for check in checks):
            yield from dict.fromkeys(check.message for check in checks)


def _unmeasured(gate: GateConfig) -> Iterator[str]:
    if gate.max_energy_rmse_mev is not None or gate.max_force_rmse_mev is not None:
        yield "nothing was held out: the limits of the gate on test errors can't be judged"


def _too_large(gate: GateConfig, test: SetEvaluation) -> Iterator[str]:
    for what, unit, found, limit in (
        ("energy", "meV/atom", test.energy_mev_per_atom.rmse, gate.max_energy_rmse_mev),
        ("force", "meV/Å", test.force_mev_per_angstrom.rmse, gate.max_force_rmse_mev),
    ):
        if limit is not None and not found <= limit:  # NaN exceeds any limit
            yield (
                f"the {what} RMSE on the test set is {found:.4g} {unit}, "
                f"more than the {limit:g} that the gate allows"
            )


def _regressions(gate: GateConfig, parent: ParentComparison) -> Iterator[str]:
    if gate.max_regression is None:
        return
    pairs: tuple[tuple[str, str, ErrorPair, float], ...] = (
        ("energy", "meV/atom", parent.energy_mev_per_atom, _NEGLIGIBLE_MEV_PER_ATOM),
        ("force", "meV/Å", parent.force_mev_per_angstrom, _NEGLIGIBLE_MEV_PER_ANGSTROM),
    )
    for what, unit, pair, negligible in pairs:
        if not pair.new - pair.old <= max(gate.max_regression * pair.old, negligible):
            yield (
                f"the {what} RMSE on the {parent.structures} test structures shared with "
                f"{generation_name(parent.generation)} is {pair.new:.4g} {unit} after "
                f"{pair.old:.4g}: worse by more than {100 * gate.max_regression:g} %"
            )


def _failed_checks(
    required: bool | Literal["stability"],
    physics: Sequence[PhysicsCheck],
) -> Iterator[str]:
    for check in physics:
        if check.verdict == "failed" and (required is True or (required and check.unstable)):
            what = "check of stability" if check.unstable else "check"
            yield f"a physics {what} failed: {check.message}"
