"""Bounds on the distances in many structures are valid and tight."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_job.dataset.geometry import bound_distances, nearest_neighbours
from mlip_job.dataset.rows import Structures
from tests.datasets import labelled_rows
from tests.support import labelled

CUTOFF = 5.0


def structures_of(*atoms: Atoms) -> Structures:
    """Put structures into columns; their labels don't matter here."""
    return Structures.of_rows(
        labelled_rows(labelled(a, energy=0.0, forces=np.zeros((len(a), 3))) for a in atoms)
    )


def require_true(structures: Structures, *, proved: bool = False) -> None:
    """Compare the bounds with full neighbour lists; with `proved`, they have to be tight."""
    bonded, apart = bound_distances(structures, np.ones(len(structures), dtype=np.bool_), CUTOFF)
    for index in range(len(structures)):
        row = structures.row(index)
        cell = row.cell if row.pbc.any() else np.eye(3)
        for reach in (3.5, CUTOFF):  # the longer search takes most of the time
            first, distances = primitive_neighbor_list("id", row.pbc, cell, row.positions, reach)
            if len(set(first.tolist())) == len(row.numbers):
                break
        smallest = distances.min(initial=np.inf)
        expected = np.full(len(row.numbers), np.inf)
        np.minimum.at(expected, first, distances)
        np.testing.assert_allclose(nearest_neighbours(row, CUTOFF), expected, atol=1e-6)
        if bonded[index]:
            assert len(set(first.tolist())) == len(row.numbers)
        assert apart[index] <= smallest
        if proved:
            assert bonded[index]
            assert apart[index] > smallest - 0.005


@st.composite
def random_atoms(draw: st.DrawFn) -> Atoms:
    """Generate random atoms, in boxes of any shape or none, some of them far outside."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 12))
    size = draw(st.sampled_from([1.5, 2.5, 4.0, 7.0, 12.0, 30.0]))
    cell = np.diag(rng.uniform(0.5, 1.5, 3)) * size
    if draw(st.booleans()):
        cell += rng.uniform(-0.6, 0.6, (3, 3)) * size
    fractions = rng.random((count, 3)) * draw(st.sampled_from([1.0, 1.0, 40.0]))
    positions = fractions @ cell
    if draw(st.booleans()):
        positions += 1e4
    if count > 1 and draw(st.integers(0, 4)) == 0:
        positions[0] = positions[1] + draw(st.sampled_from([0.0, 1e-4, 0.01])) * np.ones(3)
    return Atoms(np.full(count, 29), positions=positions, cell=cell, pbc=draw(st.booleans()))


@settings(max_examples=40)
@given(st.lists(random_atoms(), min_size=1, max_size=4))
def test_bounds_are_valid(atoms: list[Atoms]) -> None:
    """In small, large, skewed, left-handed and absent cells."""
    volumes = [abs(np.linalg.det(each.cell)) for each in atoms]
    usable = [each for each, volume in zip(atoms, volumes, strict=True) if volume > 0.1]
    if usable:
        require_true(structures_of(*usable))


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu"),
        bulk("Cu", cubic=True),
        bulk("Cu").repeat((2, 2, 2)),
        bulk("Fe"),
        bulk("Mg"),
        bulk("Si").repeat((1, 1, 4)),
        bulk("Cu", cubic=True).repeat((1, 2, 5)),
        bulk("NaCl", "rocksalt", a=5.64).repeat((2, 2, 2)),
        fcc111("Cu", (3, 3, 4), vacuum=8, periodic=True),
        molecule("H2O"),
        molecule("C60"),
        bulk("Cu", cubic=True).repeat((5, 5, 5)),
    ],
    ids=lambda atoms: f"{atoms.symbols}-{'periodic' if atoms.pbc.any() else 'free'}",
)
def test_bounds_are_tight_for_common_structures(atoms: Atoms) -> None:
    """Primitive cells, supercells, slabs, molecules: none needs a neighbour list."""
    atoms = atoms.copy()
    atoms.pbc = atoms.pbc.any()
    atoms.rattle(0.05, seed=1)
    require_true(structures_of(atoms, atoms), proved=True)


def test_positions_are_rounded_to_the_safe_side() -> None:
    """In cells so long that single precision matters, bonds are not too long."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(200):
        bond = rng.normal(size=3)
        positions = rng.random(3) * 900 + [[0, 0, 0], 2.5 * bond / np.linalg.norm(bond)]
        pairs.append(Atoms("Cu2", positions, cell=[900, 900, 900], pbc=True))
    bonded, apart = bound_distances(structures_of(*pairs), np.ones(200, dtype=np.bool_), 2.502)
    assert (apart <= 2.5).all()
    assert (apart > 2.48).all()
    assert not bonded.any()  # 2.5 Å is too close to the cutoff for single precision


def test_lone_atoms_are_not_bonded() -> None:
    """One atom in a box, two too far apart, a molecule with one distant atom."""
    apart = Atoms("Cu2", [(0, 0, 0), (CUTOFF + 0.1, 0, 0)])
    left = Atoms("Cu3", [(0, 0, 0), (2.2, 0, 0), (20, 0, 0)])
    boxed = Atoms("Cu", cell=[15, 15, 15], pbc=True)
    structures = structures_of(Atoms("Cu"), boxed, apart, left)
    bonded, _ = bound_distances(structures, np.ones(4, dtype=np.bool_), CUTOFF)
    assert not bonded.any()
    require_true(structures)


def test_large_or_unsound_structures_have_no_bounds() -> None:
    """Thousands of atoms, millimetres, and invalid numbers."""
    large = bulk("Cu", cubic=True).repeat((8, 8, 8))
    far = Atoms("Cu2", [(0, 0, 0), (1e7, 0, 0)])
    thin = Atoms("Cu2", [(0, 0, 0), (0, 0, 1e4)], cell=[4, 4, 2e4], pbc=True)
    fine = bulk("Cu", cubic=True)
    sound = np.array([True, True, True, False])
    bonded, apart = bound_distances(structures_of(large, far, thin, fine), sound, CUTOFF)
    assert not bonded.any()
    assert not apart.any()


def test_the_cutoff_itself_is_too_far() -> None:
    """As in ASE's lists and pacemaker: a neighbour is nearer than the cutoff."""
    structures = structures_of(Atoms("Cu", cell=[CUTOFF] * 3, pbc=True))
    assert np.isinf(nearest_neighbours(structures.row(0), CUTOFF)).all()
    assert not np.isinf(nearest_neighbours(structures.row(0), CUTOFF + 1e-6)).any()
