"""Labels of another convention are distinguished from a poor potential."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase.units import GPa

from mlip_job.dataset.rows import FloatArray
from mlip_job.evaluation.measure import Contradictions, Measured

VOLUME = 47.0


def _measured(
    rng: np.random.Generator,
    *,
    force: float = 1.0,
    energy: float = 1.0,
    noise: float = 0.2,
    stress: Callable[[FloatArray], FloatArray] | None = None,
) -> Measured:
    forces = rng.normal(size=(4, 3))
    label = float(rng.normal(scale=0.1))
    true = rng.normal(scale=0.02, size=6)
    predicted = true + 0.1 * noise * rng.normal(scale=0.02, size=6)
    return Measured(
        row_id=1,
        formula="Cu4",
        config_type=None,
        symbols=np.array(["Cu"] * 4),
        energy_reference=-3.0 + label,
        energy_predicted=-3.0 + energy * label + noise * float(rng.normal(scale=0.1)),
        forces_reference=forces,
        forces_predicted=force * forces + noise * rng.normal(size=(4, 3)),
        stress=None if stress is None else (stress(true), predicted, VOLUME),
        shortest={},
        conversion=None,
        grade=None,
        reference_energy=-3.0,
    )


def _warnings(count: int = 30, **options: object) -> list[str]:
    rng, found = np.random.default_rng(1), Contradictions()
    for _ in range(count):
        found.add(_measured(rng, **options))  # type: ignore[arg-type]
    return list(found.warnings("test"))


def test_a_poor_potential_is_no_contradiction() -> None:
    """Errors of half the forces, energies and stresses, and labels that are all zero."""
    assert _warnings() == []
    assert _warnings(force=0.5, energy=0.5) == []
    assert _warnings(stress=lambda true: 0.6 * true) == []
    found = Contradictions()
    assert list(found.warnings("test")) == []


def test_gradients_in_place_of_forces_are_a_warning() -> None:
    (warning,) = _warnings(force=-0.6)
    assert warning.startswith("PREDICTED FORCES HAVE THE OPPOSITE SIGN")
    assert "on the test set" in warning
    assert "gradients" in warning


def test_forces_worse_than_zero_are_a_warning() -> None:
    """The direction is mostly right, but the error is larger than the forces."""
    (warning,) = _warnings(force=2.5)
    assert warning.startswith("PREDICTED FORCES ARE WORSE THAN ZERO")


def test_energies_are_compared_with_their_mean() -> None:
    """Without the reference energies, which would hide it."""
    (warning,) = _warnings(energy=-0.7)
    assert warning.startswith("PREDICTED ENERGIES ARE ANTICORRELATED")
    (warning,) = _warnings(energy=1.0, noise=1.5, force=4.0)[1:]
    assert warning.startswith("PREDICTED ENERGIES ARE WORSE THAN THEIR MEAN")


def test_a_handful_of_structures_is_no_correlation() -> None:
    """A few energies may correlate by chance; there are more forces."""
    assert _warnings(4, energy=-0.7) == []
    assert len(_warnings(4, force=-1.0)) == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (lambda true: -true, "THE OPPOSITE SIGN"),
        (lambda true: true / GPa, "the unit GPa"),
        (lambda true: -true / (0.1 * GPa), "the opposite sign AND the unit kbar"),
        (lambda true: true * VOLUME, "the unit eV, multiplied by the volume"),
        (lambda true: -true * VOLUME, "the opposite sign AND the unit eV"),
        (lambda true: true[[0, 1, 2, 5, 3, 4]], "the order xx, yy, zz, xy, yz, xz"),
        (lambda true: true[[0, 1, 2, 5, 4, 3]], "the order xx, yy, zz, xy, xz, yz"),
        (lambda true: true[[0, 5, 4, 1, 3, 2]], "the order xx, xy, xz, yy, yz, zz"),
        (
            lambda true: -10 * true[[0, 1, 2, 5, 3, 4]] / GPa,
            "the opposite sign AND the unit kbar AND the order xx, yy, zz, xy, yz, xz",
        ),
    ],
)
def test_stresses_of_another_convention_are_a_warning(
    given: Callable[[FloatArray], FloatArray], meant: str
) -> None:
    """The sign, unit and order for which they fit far better."""
    (warning,) = _warnings(stress=given)
    assert meant.lower() in warning.lower()
    assert "positive under tension" in warning
