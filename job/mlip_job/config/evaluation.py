"""How a finished potential is judged; nothing here changes it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlip_job.config.base import NonNegative, Part, Positive


class GateConfig(Part):
    """What a generation must fulfil to be accepted; null asks nothing. See docs/evaluation.md.

    Where no limit is set, it is published with the words "no gate set".
    """

    max_energy_rmse_mev: Positive | None = Field(
        None, description="meV/atom, on the test set. A larger RMSE rejects the generation."
    )
    max_force_rmse_mev: Positive | None = Field(
        None, description="meV/Å per component, on the test set."
    )
    max_regression: NonNegative | None = Field(
        0.2,
        description="How much larger than its predecessor's an RMSE on their common test set may "
        "be: 0.2 is 20 %.",
    )
    require_physics: bool | Literal["stability"] = Field(
        "stability",
        description="Which failed physics checks reject the generation too: stability (a crystal "
        "that collapses or flies apart, a dimer that attracts at short range), true (all), or "
        "false (none).",
    )

    @property
    def has_limits(self) -> bool:
        """Whether it asks something of the potential itself, not only of how it compares."""
        limits = (self.max_energy_rmse_mev, self.max_force_rmse_mev)
        return any(limit is not None for limit in limits) or self.require_physics is True


def verdict_word(*, accepted: bool, limits_set: bool | None, unchecked: bool) -> str:
    """Return what is said of a published generation.

    Parameters
    ----------
    accepted
        Whether the gate let it pass.
    limits_set
        See `GateConfig.has_limits`; None where an older version published it and that is not known.
    unchecked
        Whether a check of stability was not possible.
    """
    if not accepted:
        return "rejected"
    if limits_set is None:
        return "published"
    if not limits_set:
        return "published, no gate set"
    return "accepted, stability not checked" if unchecked else "accepted"


class EvaluationConfig(Part):
    """What is found out about a potential after its fit."""

    gate: GateConfig = GateConfig()
    active_set: bool | Literal["linear", "full"] = Field(
        True,
        description="Active set for extrapolation grades, published as potential.asi: true or "
        "linear, full (on all densities), or false.",
    )
    dynamics_steps: int = Field(
        200, ge=0, description="Steps of each test run at constant energy; 0 leaves them out."
    )

    @property
    def active_set_kind(self) -> Literal["linear", "full"] | None:
        """Which active set is to be made, or None."""
        if isinstance(self.active_set, bool):
            return "linear" if self.active_set else None
        return self.active_set
