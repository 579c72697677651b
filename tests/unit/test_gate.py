"""Accepted and rejected evaluations."""

from __future__ import annotations

from typing import Literal

import pytest

from mlip_job.config import GateConfig
from mlip_job.config.job import verdict_word
from mlip_job.evaluation.evaluate import judge
from mlip_job.evaluation.results import DynamicsCheck, ErrorPair, ParentComparison, Verdict
from tests.evaluations import make_uniform_side

TEST = make_uniform_side(5.0)  # 5 meV/atom, 50 meV/Å


def _parent(energy: float, force: float) -> ParentComparison:
    """Return a comparison with a predecessor whose errors were 10 meV/atom and 100 meV/Å."""
    return ParentComparison(
        generation=3,
        structures=7,
        energy_mev_per_atom=ErrorPair(old=10, new=energy, change=energy / 10 - 1),
        force_mev_per_angstrom=ErrorPair(old=100, new=force, change=force / 100 - 1),
    )


def _dynamics(verdict: Verdict, *, unstable: bool = False) -> DynamicsCheck:
    return DynamicsCheck(
        verdict=verdict,
        unstable=unstable,
        message="it drifts",
        structure="row 1",
        atoms=32,
        steps=10,
        timestep_fs=1.0,
        temperature_k=300.0,
        drift_mev_per_atom_per_ps=9.0,
    )


def test_limits_without_a_test_set_reject() -> None:
    """They can't be checked; without limits nothing is required."""
    verdict = judge(GateConfig(max_force_rmse_mev=1000), None, None, [])
    assert not verdict.accepted
    assert "nothing was held out" in verdict.reasons[0]
    assert judge(GateConfig(), None, None, []).accepted


def test_without_limits_all_is_accepted() -> None:
    """Nothing to compare with, nothing required."""
    verdict = judge(GateConfig(), TEST, None, [_dynamics("failed")])
    assert (verdict.accepted, verdict.reasons, verdict.limits_set) == (True, (), False)


@pytest.mark.parametrize(
    ("gate", "word"),
    [
        (GateConfig(), "published, no gate set"),
        (GateConfig(max_regression=0.1), "published, no gate set"),
        (GateConfig(max_energy_rmse_mev=5.0), "accepted"),
        (GateConfig(max_force_rmse_mev=50.0), "accepted"),
        (GateConfig(require_physics=True), "accepted"),
        (GateConfig(max_force_rmse_mev=49.0), "rejected"),
    ],
)
def test_accepted_needs_a_limit(gate: GateConfig, word: str) -> None:
    """A comparison with the predecessor alone does not show how good a potential is."""
    found = judge(gate, TEST, _parent(8.0, 90.0), ())
    said = verdict_word(accepted=found.accepted, limits_set=found.limits_set, unchecked=False)
    assert said == word


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (("skipped", "skipped"), "accepted, stability not checked"),
        (("skipped", "passed"), "accepted"),
        (("passed", "passed"), "accepted"),
        (("skipped", "failed"), "accepted"),  # it drifts, which is noted but not limited
    ],
)
def test_a_check_that_was_not_possible_is_not_claimed(
    verdicts: tuple[Verdict, ...], word: str
) -> None:
    """The verdict says so if no check of its kind was made; the reason is kept."""
    found = judge(GateConfig(max_force_rmse_mev=50.0), TEST, None, list(map(_dynamics, verdicts)))
    unchecked = verdicts == ("skipped", "skipped")
    assert found.unchecked == (("it drifts",) if unchecked else ())
    said = verdict_word(accepted=True, limits_set=True, unchecked=bool(found.unchecked))
    assert said == word
    assert verdict_word(accepted=True, limits_set=False, unchecked=True) == "published, no gate set"


def test_errors_that_are_no_numbers_are_over_any_limit() -> None:
    """NaN compares false with everything."""
    side = make_uniform_side(float("nan"))
    limits = GateConfig(max_energy_rmse_mev=5.0, max_force_rmse_mev=5.0)
    found = judge(limits, side, _parent(float("nan"), float("nan")), ())
    assert (found.accepted, len(found.reasons)) == (False, 4)


def test_a_verdict_of_an_older_version_is_not_made_better() -> None:
    """It did not record whether there were limits."""
    assert verdict_word(accepted=True, limits_set=None, unchecked=False) == "published"
    assert verdict_word(accepted=False, limits_set=None, unchecked=False) == "rejected"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_energy_rmse_mev": 5.0}, None),
        ({"max_energy_rmse_mev": 4.9}, "the energy RMSE on the test set is 5 meV/atom, more than"),
        ({"max_force_rmse_mev": 50.0}, None),
        ({"max_force_rmse_mev": 49.0}, "the force RMSE on the test set is 50 meV/Å, more than"),
    ],
)
def test_limits_hold_for_the_test_set(limits: dict[str, float], reason: str | None) -> None:
    """A value equal to its limit passes."""
    verdict = judge(GateConfig(**limits), TEST, None, ())
    assert verdict.accepted == (reason is None)
    if reason is not None:
        assert verdict.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("energy", "force", "count"),
    [(8.0, 90.0, 0), (12.0, 120.0, 0), (12.1, 90.0, 1), (8.0, 120.1, 1), (99.0, 999.0, 2)],
)
def test_regression_is_limited_for_energies_and_forces(
    energy: float, force: float, count: int
) -> None:
    """By default to 20 % above the predecessor's errors on the same structures."""
    verdict = judge(GateConfig(), TEST, _parent(energy, force), ())
    assert len(verdict.reasons) == count
    assert verdict.accepted == (count == 0)
    for reason in verdict.reasons:
        assert "7 test structures shared with gen_03" in reason
    assert judge(GateConfig(max_regression=None), TEST, _parent(energy, force), ()).accepted


def test_a_perfect_predecessor_can_be_equalled() -> None:
    """Without division by its error of zero."""
    pair = ErrorPair(old=0.0, new=0.0, change=None)
    parent = ParentComparison(
        generation=1, structures=1, energy_mev_per_atom=pair, force_mev_per_angstrom=pair
    )
    assert judge(GateConfig(), TEST, parent, ()).accepted


@pytest.mark.parametrize(("verdict", "accepted"), [("passed", 1), ("skipped", 1), ("failed", 0)])
def test_physics_counts_where_it_is_required(verdict: Verdict, accepted: int) -> None:
    """A check that was not possible does not reject."""
    found = judge(GateConfig(require_physics=True), TEST, None, [_dynamics(verdict)])
    assert found.accepted == bool(accepted)
    if not accepted:
        assert found.reasons == ("a physics check failed: it drifts",)


@pytest.mark.parametrize(
    ("energy", "force", "accepted"), [(0.7, 4.9, True), (0.71, 4.9, False), (0.7, 5.1, False)]
)
def test_differences_below_the_resolution_of_the_data_are_no_regression(
    energy: float, force: float, *, accepted: bool
) -> None:
    """Half a meV/atom and 2 meV/Å, however good the predecessor is."""
    parent = ParentComparison(
        generation=1,
        structures=6,
        energy_mev_per_atom=ErrorPair(old=0.2, new=energy, change=None),
        force_mev_per_angstrom=ErrorPair(old=3.0, new=force, change=None),
    )
    assert judge(GateConfig(), TEST, parent, ()).accepted == accepted


@pytest.mark.parametrize(
    ("required", "of_drift", "of_collapse"),
    [("stability", True, False), (True, False, False), (False, True, True)],
)
def test_a_collapse_is_rejected_by_default(
    required: bool | Literal["stability"], *, of_drift: bool, of_collapse: bool
) -> None:
    """A failed check of stability is required by default; others only if configured."""
    assert GateConfig().require_physics == "stability"
    gate = GateConfig(require_physics=required)
    assert judge(gate, TEST, None, [_dynamics("failed")]).accepted == of_drift
    found = judge(gate, TEST, None, [_dynamics("failed", unstable=True)])
    assert found.accepted == of_collapse
    if required == "stability":
        assert found.reasons == ("a physics check of stability failed: it drifts",)
