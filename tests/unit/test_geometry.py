"""Distances to nearest neighbours are those of ASE's neighbour lists."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_job.dataset.geometry import nearest_in_large_cells, nearest_neighbours
from mlip_job.dataset.rows import Structures
from tests.datasets import labelled_rows
from tests.support import labelled

CUTOFF = 5.0


def structures_of(*atoms: Atoms) -> Structures:
    return Structures.of_rows(
        labelled_rows(labelled(a, energy=0.0, forces=np.zeros((len(a), 3))) for a in atoms)
    )


def require_true(structures: Structures, *, settled: bool = False) -> None:
    quick = nearest_in_large_cells(structures, np.ones(len(structures), dtype=np.bool_))
    for index in range(len(structures)):
        row = structures.row(index)
        cell = row.cell if row.pbc.any() else np.eye(3)
        first, lengths = primitive_neighbor_list("id", row.pbc, cell, row.positions, CUTOFF)
        expected = np.full(len(row.numbers), np.inf)
        np.minimum.at(expected, first, lengths)
        found = nearest_neighbours(row, CUTOFF)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        large = quick[structures.starts[index] : structures.starts[index + 1]]
        if settled:
            np.testing.assert_allclose(large, expected, atol=3e-5)
        known = large < CUTOFF - 1e-3
        np.testing.assert_allclose(large[known], expected[known], atol=1e-4)


@st.composite
def random_atoms(draw: st.DrawFn) -> Atoms:
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
def test_distances_are_right(atoms: list[Atoms]) -> None:
    """In small, large, skewed, left-handed and absent cells."""
    volumes = [abs(np.linalg.det(each.cell)) for each in atoms]
    usable = [each for each, volume in zip(atoms, volumes, strict=True) if volume > 0.1]
    if usable:
        require_true(structures_of(*usable))


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu", cubic=True).repeat((2, 2, 2)),
        bulk("NaCl", "rocksalt", a=5.64).repeat((2, 2, 2)),
        fcc111("Cu", (3, 3, 4), vacuum=8, periodic=True),
        molecule("H2O"),
        molecule("C60"),
    ],
    ids=lambda atoms: f"{atoms.symbols}-{'periodic' if atoms.pbc.any() else 'free'}",
)
def test_common_structures_need_no_neighbour_list(atoms: Atoms) -> None:
    """Supercells, slabs, molecules."""
    atoms = atoms.copy()
    atoms.pbc = atoms.pbc.any()
    atoms.rattle(0.05, seed=1)
    require_true(structures_of(atoms, atoms), settled=True)


def test_lone_atoms_are_not_bonded() -> None:
    """One atom in a box, two too far apart, a molecule with one distant atom."""
    apart = Atoms("Cu2", [(0, 0, 0), (CUTOFF + 0.1, 0, 0)])
    left = Atoms("Cu3", [(0, 0, 0), (2.2, 0, 0), (20, 0, 0)])
    boxed = Atoms("Cu", cell=[15, 15, 15], pbc=True)
    structures = structures_of(Atoms("Cu"), boxed, apart, left)
    require_true(structures)


def test_large_or_unsound_structures_are_left_to_neighbour_lists() -> None:
    """Thousands of atoms, single atoms, and invalid numbers."""
    large = bulk("Cu", cubic=True).repeat((8, 8, 8))
    structures = structures_of(large, bulk("Cu"), bulk("Cu", cubic=True))
    assert np.isinf(nearest_in_large_cells(structures, np.array([True, True, False]))).all()
