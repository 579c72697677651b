"""The cost of a potential is a mean over the test set, whatever its size."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from mlip_job.evaluation.potential import Potential, measure_speed


class Timed:
    """A potential that takes 50 µs per atom, except for one slow call."""

    def __init__(self, outliers: int) -> None:
        self.asked: list[int] = []
        self._outliers = outliers

    def evaluator_seconds(self, atoms: Atoms) -> float:
        self.asked.append(round(atoms.positions[:, 0].min()))
        slow = 100 if len(self.asked) <= self._outliers else 1
        return slow * 50e-6 * len(atoms)


def blocks(count: int) -> list[str]:
    texts = []
    for number in range(count):
        atoms = molecule("H2O")
        atoms.positions[:, 0] += number - atoms.positions[:, 0].min()
        atoms.info = {"row_id": number, "energy": -1.0}
        atoms.arrays["forces"] = atoms.positions * 0
        text = io.StringIO()
        write(text, atoms, format="extxyz")
        texts.append(text.getvalue())
    return texts


def measure(potential: Timed, structures: int, atoms: int) -> Any:
    texts = blocks(structures)
    return measure_speed(cast("Potential", potential), texts, structures=structures, atoms=atoms)


def test_cost_is_that_of_an_atom() -> None:
    """The first call does not count, and a slow repeat does not affect the median."""
    potential = Timed(outliers=21)
    speed = measure(potential, 100, 300)
    assert speed.evaluator_us_per_atom == pytest.approx(50.0)
    assert (speed.structures, speed.atoms, speed.repeats) == (20, 60, 5)
    assert speed.cpu


@pytest.mark.parametrize(
    ("structures", "atoms", "measured"),
    [(100, 300, list(range(0, 100, 5))), (10, 2500, [0, 5]), (3, 30_000, [0])],
)
def test_sample_is_spread_over_the_test_set(
    structures: int, atoms: int, measured: list[int]
) -> None:
    """At most twenty structures, fewer if they are large, and at least one."""
    potential = Timed(outliers=0)
    assert measure(potential, structures, atoms).structures == len(measured)
    assert potential.asked[1 : 1 + len(measured)] == measured
