"""Every way in which a row can be unfit for training has its own reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlip_job.dataset.rows import StructureRow
from mlip_job.dataset.twins import fingerprint
from mlip_job.dataset.validation import Rejection, RowRules, examine

RULES = RowRules(cutoff=5.0, prefer_free_energy=True, max_force=None)
NAN, INF = float("nan"), float("inf")


def dimer(**changes: Any) -> StructureRow:
    """Return a copper dimer, 2.2 Å long, with all its labels."""
    row = StructureRow(
        id=7,
        numbers=np.array([29, 29], dtype=np.int32),
        positions=np.array([[0.0, 0.0, 0.0], [2.2, 0.0, 0.0]]),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=np.bool_),
        energy=-1.0,
        free_energy=-1.1,
        forces=np.array([[0.3, 0.4, 0.0], [-0.3, -0.4, 0.0]]),
        stress=None,
        key_value_pairs={},
    )
    return replace(row, **changes)


def single(**changes: Any) -> StructureRow:
    """Return one copper atom without forces."""
    return dimer(
        **{"numbers": np.array([29], dtype=np.int32), "positions": np.zeros((1, 3)), "forces": None}
        | changes
    )


PERIODIC = {"pbc": np.ones(3, dtype=np.bool_), "cell": np.diag([4.0, 4.0, 4.0])}


def test_good_row() -> None:
    """A molecule with all its labels is accepted and measured."""
    finding = examine(dimer(), RULES)
    assert finding.rejection is None
    assert not finding.is_reference
    assert finding.max_force == pytest.approx(0.5)
    assert finding.min_distance == pytest.approx(2.2)


def test_periodic_images_are_neighbours() -> None:
    """A lone atom in a small periodic cell has its own images as neighbours."""
    finding = examine(single(forces=np.zeros((1, 3)), **PERIODIC), RULES)
    assert finding.rejection is None
    assert not finding.is_reference
    assert finding.min_distance == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"energy": None, "free_energy": None}, Rejection.NO_ENERGY),
        ({"free_energy": NAN}, Rejection.BAD_ENERGY),
        ({"free_energy": -INF}, Rejection.BAD_ENERGY),
        ({"forces": None}, Rejection.NO_FORCES),
        ({"forces": np.zeros((3, 3))}, Rejection.MISSHAPEN_FORCES),
        ({"forces": np.zeros(6)}, Rejection.MISSHAPEN_FORCES),
        ({"forces": np.full((2, 3), NAN)}, Rejection.BAD_FORCES),
        ({"forces": np.array([[0, 0, INF], [0, 0, 0]])}, Rejection.BAD_FORCES),
        ({"pbc": np.array([True, True, False]), "cell": np.ones((3, 3))}, Rejection.FLAT_CELL),
        ({"pbc": np.ones(3, dtype=np.bool_)}, Rejection.FLAT_CELL),
        ({"positions": np.full((2, 3), NAN)}, Rejection.BAD_GEOMETRY),
        ({"positions": np.zeros((3, 3))}, Rejection.BAD_GEOMETRY),
        ({"positions": np.full((2, 3), 1e200)}, Rejection.BAD_GEOMETRY),
        ({"cell": np.eye(3) * 1e12}, Rejection.BAD_GEOMETRY),
        ({"cell": np.full((3, 3), INF)}, Rejection.BAD_GEOMETRY),
        ({"positions": np.zeros((2, 3))}, Rejection.COINCIDING_ATOMS),
        ({"positions": np.array([[0, 0, 0], [5.1, 0, 0]])}, Rejection.LONELY_ATOM),
        ({"numbers": np.array([29, 0], dtype=np.int32)}, Rejection.UNKNOWN_ELEMENT),
        ({"numbers": np.array([29, 500], dtype=np.int32)}, Rejection.UNKNOWN_ELEMENT),
        ({"numbers": np.zeros(0, np.int32), "positions": np.zeros((0, 3))}, Rejection.NO_ATOMS),
    ],
    ids=lambda value: value.name if isinstance(value, Rejection) else "",
)  # fmt: skip
def test_rejections(changes: dict[str, Any], reason: Rejection) -> None:
    """One fault in an otherwise good row gives exactly its reason."""
    assert examine(dimer(**changes), RULES).rejection is reason


def test_one_lonely_atom_of_many() -> None:
    """A single atom out of reach spoils the structure: pacemaker would drop it in silence."""
    row = dimer(
        numbers=np.array([29, 29, 29], dtype=np.int32),
        positions=np.array([[0.0, 0, 0], [2.2, 0, 0], [20.0, 0, 0]]),
        forces=np.zeros((3, 3)),
    )
    assert examine(row, RULES).rejection is Rejection.LONELY_ATOM


def test_neighbours_between_the_near_shell_and_the_cutoff() -> None:
    """A bond longer than the first search radius but shorter than the cutoff is found."""
    row = dimer(positions=np.array([[0.0, 0, 0], [4.5, 0, 0]]))
    assert examine(row, RULES).min_distance == pytest.approx(4.5)
    assert examine(row, replace(RULES, cutoff=4.0)).rejection is Rejection.LONELY_ATOM


def test_max_force() -> None:
    """The limit is on the length of the force vector, and is itself allowed."""
    assert examine(dimer(), replace(RULES, max_force=0.51)).rejection is None
    assert examine(dimer(), replace(RULES, max_force=0.49)).rejection is Rejection.LARGE_FORCE


@pytest.mark.parametrize("box", [{}, {**PERIODIC, "cell": np.eye(3) * 12.0}])
def test_isolated_atom_is_a_reference(box: dict[str, Any]) -> None:
    """One atom alone needs an energy and nothing else, in vacuum as in a large box."""
    finding = examine(single(**box), RULES)
    assert finding.rejection is None
    assert finding.is_reference
    assert finding.energy == -1.1
    assert examine(single(energy=None, free_energy=None, **box), RULES).rejection is not None


def test_which_energy() -> None:
    """The free energy where it is wanted and stored, else the energy."""
    assert examine(dimer(), RULES).energy == -1.1
    assert examine(dimer(), RULES).is_free_energy
    assert examine(dimer(), replace(RULES, prefer_free_energy=False)).energy == -1.0
    fallback = examine(dimer(free_energy=None), RULES)
    assert (fallback.energy, fallback.is_free_energy) == (-1.0, False)


def test_fingerprint_ignores_noise_and_labels() -> None:
    """Noise below 1e-8 Å, the sign of zero, a molecule's cell and labels make no difference."""
    noisy = dimer(positions=np.array([[-0.0, 0.0, 1e-10], [2.2, -0.0, 0.0]]), energy=5.0, id=8)
    boxed = dimer(cell=np.eye(3) * 20)
    assert fingerprint(dimer()) == fingerprint(noisy) == fingerprint(boxed)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": np.array([[0.0, 0, 0], [2.2001, 0, 0]])},
        {"numbers": np.array([29, 28], dtype=np.int32)},
        PERIODIC,
    ],
    ids=["moved", "other element", "periodic"],
)
def test_fingerprint_tells_structures_apart(changes: dict[str, Any]) -> None:
    """Other positions, elements or periodicity give another fingerprint."""
    assert fingerprint(dimer(**changes)) != fingerprint(dimer())
