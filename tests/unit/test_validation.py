"""Every reason for rejecting a row is reported separately."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from mlip_job.dataset.rows import Row, StructureRow, Structures, UnreadableRow
from mlip_job.dataset.twins import fingerprints
from mlip_job.dataset.validation import Rejection, Validator, geometry_problem

NAN, INF = float("nan"), float("inf")


def dimer(**changes: Any) -> StructureRow:
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
    return dimer(
        **{"numbers": np.array([29], dtype=np.int32), "positions": np.zeros((1, 3)), "forces": None}
        | changes
    )


class Judged(NamedTuple):
    """Result for one row; `reason` is None if it is accepted."""

    reason: Rejection | None
    is_reference: bool = False
    energy: float = NAN
    is_free_energy: bool = False
    min_distance: float = INF


def judge(
    row: Row,
    *,
    cutoff: float = 5.0,
    prefer_free_energy: bool = True,
    max_force: float | None = None,
) -> Judged:
    """Validate one row."""
    validator = Validator(cutoff, prefer_free_energy=prefer_free_energy, max_force=max_force)
    found = validator.examine([row])
    if found.rejected:
        assert found.rejected.keys() == {row.id}
        return Judged(found.rejected[row.id])
    (fit,) = found.accepted or found.references
    return Judged(
        reason=None,
        is_reference=not found.accepted,
        energy=fit.energy or NAN,
        is_free_energy=fit.energy == fit.free_energy,
        min_distance=validator.min_distance,
    )


PERIODIC = {"pbc": np.ones(3, dtype=np.bool_), "cell": np.diag([4.0, 4.0, 4.0])}


def test_accepted() -> None:
    """A molecule, and a lone atom in a small periodic cell, which has its own images."""
    assert judge(dimer()) == (None, False, -1.1, True, pytest.approx(2.2))
    crystal = judge(single(forces=np.zeros((1, 3)), **PERIODIC))
    assert crystal == (None, False, -1.1, True, pytest.approx(4.0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"energy": None, "free_energy": None}, Rejection.NO_ENERGY),
        ({"energy": NAN, "free_energy": None}, Rejection.BAD_ENERGY),
        ({"free_energy": NAN}, Rejection.BAD_ENERGY),
        ({"free_energy": -INF}, Rejection.BAD_ENERGY),
        ({"forces": None}, Rejection.NO_FORCES),
        ({"forces": np.zeros((3, 3))}, Rejection.MISSHAPEN_FORCES),
        ({"forces": np.zeros(6)}, Rejection.MISSHAPEN_FORCES),
        ({"forces": np.zeros((1, 3))}, Rejection.SINGLE_PRECISION),
        ({"forces": np.full((2, 3), NAN)}, Rejection.BAD_FORCES),
        ({"forces": np.array([[0, 0, INF], [0, 0, 0]])}, Rejection.BAD_FORCES),
        ({"pbc": np.array([True, True, False]), "cell": np.ones((3, 3))}, Rejection.FLAT_CELL),
        ({"pbc": np.ones(3, dtype=np.bool_)}, Rejection.FLAT_CELL),
        ({"positions": np.full((2, 3), NAN)}, Rejection.BAD_GEOMETRY),
        ({"positions": np.zeros((3, 3))}, Rejection.BAD_GEOMETRY),
        ({"positions": np.full((2, 3), 1e200)}, Rejection.BAD_GEOMETRY),
        ({"cell": np.eye(3) * 1e12}, Rejection.BAD_GEOMETRY),
        ({"cell": np.full((3, 3), INF)}, Rejection.BAD_GEOMETRY),
        ({"pbc": np.array([True, True, False]), "cell": np.diag([5, 5, INF])},
         Rejection.BAD_GEOMETRY),
        ({"positions": np.zeros((2, 3))}, Rejection.COINCIDING_ATOMS),
        ({"positions": np.array([[0, 0, 0], [5.1, 0, 0]])}, Rejection.LONELY_ATOM),
        ({"numbers": np.array([29, 0], dtype=np.int32)}, Rejection.UNKNOWN_ELEMENT),
        ({"numbers": np.array([29, 500], dtype=np.int32)}, Rejection.UNKNOWN_ELEMENT),
        ({"numbers": np.zeros(0, np.int32), "positions": np.zeros((0, 3))}, Rejection.NO_ATOMS),
    ],
    ids=lambda value: value.name if isinstance(value, Rejection) else "",
)  # fmt: skip
def test_rejections(changes: dict[str, Any], reason: Rejection) -> None:
    """One fault in an otherwise valid row gives exactly its reason."""
    assert judge(dimer(**changes)).reason is reason


def test_unreadable_rows() -> None:
    assert judge(UnreadableRow(3)).reason is Rejection.UNREADABLE
    assert judge(UnreadableRow(3, single_precision=True)).reason is Rejection.SINGLE_PRECISION


def test_one_lonely_atom_of_many() -> None:
    """A single isolated atom makes the structure invalid: pacemaker would drop it silently."""
    row = dimer(
        numbers=np.array([29, 29, 29], dtype=np.int32),
        positions=np.array([[0.0, 0, 0], [2.2, 0, 0], [20.0, 0, 0]]),
        forces=np.zeros((3, 3)),
    )
    assert judge(row).reason is Rejection.LONELY_ATOM


def test_neighbours_between_the_near_shell_and_the_cutoff() -> None:
    """A bond longer than the first search radius but shorter than the cutoff is found."""
    row = dimer(positions=np.array([[0.0, 0, 0], [4.5, 0, 0]]))
    assert judge(row).min_distance == pytest.approx(4.5, abs=1e-5)
    assert judge(row, cutoff=4.0).reason is Rejection.LONELY_ATOM


def test_max_force() -> None:
    """The limit applies to the length of the force vector, and is itself allowed."""
    assert judge(dimer(), max_force=0.51).reason is None
    assert judge(dimer(), max_force=0.49).reason is Rejection.LARGE_FORCE


@pytest.mark.parametrize("box", [{}, {**PERIODIC, "cell": np.eye(3) * 12.0}])
def test_isolated_atom_is_a_reference(box: dict[str, Any]) -> None:
    """One atom alone needs only an energy, in vacuum as in a large box."""
    assert judge(single(**box))[:4] == (None, True, -1.1, True)
    assert judge(single(energy=None, free_energy=None, **box)).reason is Rejection.NO_ENERGY


def test_which_energy() -> None:
    """The free energy if wanted and stored, else the energy; it never replaces one."""
    assert judge(dimer(), prefer_free_energy=False)[2:4] == (-1.0, False)
    assert judge(dimer(free_energy=None))[2:4] == (-1.0, False)
    assert judge(dimer(energy=None), prefer_free_energy=False).reason is Rejection.NO_ENERGY


def test_geometry_without_labels() -> None:
    """Candidates need no labels, but neighbours: a single atom can't be graded."""
    unlabelled = {"energy": None, "free_energy": None, "forces": None}
    assert geometry_problem(dimer(**unlabelled), 5.0) is None
    assert geometry_problem(single(**unlabelled), 5.0) is Rejection.LONELY_ATOM
    flat = dimer(**unlabelled, pbc=np.ones(3, dtype=np.bool_))
    assert geometry_problem(flat, 5.0) is Rejection.FLAT_CELL


def fingerprint(row: StructureRow) -> bytes:
    return fingerprints(Structures.of_rows([row]))


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
