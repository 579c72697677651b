"""Twins are found in any description of a crystal; other structures are not twins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import permute_axes

from mlip_job.dataset.rows import Structures
from mlip_job.dataset.twins import TwinFinder
from tests.datasets import Entry, entries_of, labelled_rows
from tests.support import rattled, with_emt


def twins(*many: Atoms) -> list[int]:
    """Return the crystal numbers of structures that come in two pages."""
    pages = [Structures.of_rows(labelled_rows(part)) for part in (many[:2], many[2:])]
    finder = TwinFinder()
    found = []
    for page in pages:
        finder.add(page)
        found += page.compositions()
    entries = entries_of(
        [
            Entry(row_id=n, fingerprint=f"{n:064x}", composition=composition)
            for n, composition in enumerate(found)
        ]
    )
    return finder.join(entries, pages).twins.tolist()


def noisy(atoms: Atoms, scale: float = 1e-5, seed: int = 5) -> Atoms:
    """Move all atoms by 1e-5 Å, and keep the labels."""
    copy = atoms.copy()
    copy.positions += np.random.default_rng(seed).normal(scale=scale, size=copy.positions.shape)
    copy.calc = SinglePointCalculator(copy, **atoms.calc.results)
    return copy


def noisy_with_other_labels(atoms: Atoms) -> Atoms:
    """Move all atoms by 1e-5 Å; the energy is wrong."""
    copy = noisy(atoms)
    copy.calc.results["energy"] += 1.0
    return copy


def unwrapped(atoms: Atoms) -> Atoms:
    """Move atoms by lattice vectors, and change their order."""
    copy = atoms.copy()
    shifts = np.random.default_rng(1).integers(-2, 3, size=(len(copy), 3))
    copy.positions += shifts @ copy.cell.array
    return with_emt(copy[np.random.default_rng(2).permutation(len(copy))])


def translated(atoms: Atoms) -> Atoms:
    """Translate all atoms."""
    copy = atoms.copy()
    copy.positions += (0.3, 0.7, 1.1)
    return with_emt(copy)


def translated_with_other_labels(atoms: Atoms) -> Atoms:
    """Translate all atoms, in another order; the energy is wrong."""
    copy = unwrapped(translated(atoms))
    copy.calc.results["energy"] += 1.0
    return copy


def rotated(atoms: Atoms) -> Atoms:
    """Rotate atoms and cell."""
    copy = atoms.copy()
    copy.rotate(37, (1, 2, 3), rotate_cell=True)
    return with_emt(copy)


def with_swapped_axes(atoms: Atoms) -> Atoms:
    """Rename the axes."""
    return with_emt(permute_axes(atoms, [1, 2, 0]))


def left_handed(atoms: Atoms) -> Atoms:
    """Swap two vectors of the cell."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array[[1, 0, 2]])
    return with_emt(copy)


def with_other_vectors(atoms: Atoms) -> Atoms:
    """Describe the lattice by other vectors."""
    copy = atoms.copy()
    copy.set_cell(np.array([[1, 0, 0], [1, 1, 0], [0, -2, 1]]) @ atoms.cell.array)
    return with_emt(copy)


def doubled(atoms: Atoms) -> Atoms:
    """Repeat the cell."""
    return with_emt(atoms.repeat((2, 1, 1)))


def in_a_supercell(atoms: Atoms) -> Atoms:
    """Repeat the cell along oblique vectors."""
    return with_emt(make_supercell(atoms, [[1, 1, 0], [-1, 1, 0], [0, 0, 1]]))


DESCRIPTIONS = [
    noisy, noisy_with_other_labels, unwrapped, translated, translated_with_other_labels,
    rotated, with_swapped_axes, left_handed,
    with_other_vectors, doubled, in_a_supercell,
]  # fmt: skip


@pytest.mark.parametrize("describe", DESCRIPTIONS)
def test_another_description_is_a_twin(describe: Callable[[Atoms], Atoms]) -> None:
    alloy = bulk("CuAu", "rocksalt", a=5.0, cubic=True)
    alloy.rattle(0.08, seed=4)
    for atoms in (rattled(1)[0], with_emt(alloy), with_emt(bulk("Cu", a=3.7, cubic=True))):
        others = rattled(2, seed=9)
        found = twins(others[0], atoms, describe(atoms), others[1])
        assert found[1] == found[2]
        assert len(set(found)) == 3


def test_molecules() -> None:
    """Translated; the mirror image is a twin too, the stretched molecule is not."""
    water = molecule("H2O")
    stretched = water.copy()
    stretched.positions[0, 2] += 0.003
    found = twins(*map(with_emt, (water, translated(water), stretched)))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_noise_is_found_in_each_of_many() -> None:
    """None of sixty copies is missed, and none of the others is a twin."""
    many = rattled(60)
    found = twins(*many, *(noisy(atoms) for atoms in many))
    assert found[:60] == found[60:]
    assert len(set(found)) == 60


@pytest.mark.parametrize("seed", range(2))
def test_many_copies_of_each_are_found(seed: int) -> None:
    """More than are compared at first, in clusters of nearly equal energy; in random order."""
    rng = np.random.default_rng(seed)
    descriptions = (noisy, unwrapped, translated, rotated, doubled)
    copies, crystals = [], []
    for crystal, atoms in enumerate(rattled(4, seed=seed)):
        for shift in (0.0, 2e-3):  # eV
            kind = descriptions[rng.integers(len(descriptions))](atoms)
            for _ in range(15):
                copy = noisy(kind, scale=1e-7, seed=int(rng.integers(2**32)))
                copy.calc.results["energy"] += shift * len(copy) / len(atoms)
                copies.append(copy)
                crystals.append(crystal)
    order = rng.permutation(len(copies)).tolist()
    found = twins(*(copies[place] for place in order))
    assert len(set(zip(found, (crystals[place] for place in order), strict=True))) == 4
    assert len(set(found)) == 4


def test_near_structures_are_no_twins() -> None:
    """Small strains, small displacements of one atom, and another order of elements."""
    perfect = bulk("Cu", cubic=True) * (2, 2, 2)
    moved = perfect.copy()
    moved.positions[3, 0] += 0.005
    strained = perfect.copy()
    strained.set_cell(perfect.cell * 1.0005, scale_atoms=True)
    orders = []
    for places in ((0, 1), (0, 4), (0, 3), (0, 7, 9), (0, 1, 2)):
        orders.append(perfect.copy())
        orders[-1].numbers[list(places)] = 79
    many = [with_emt(atoms) for atoms in (perfect, moved, strained, *orders)]
    for atoms in many:  # labels must not be the distinction
        atoms.calc.results["energy"] = 0.0
        atoms.calc.results["forces"][:] = 0.0
    found = twins(*many)
    assert len({found[0], found[1], found[2]}) == 3
    assert len(set(found[3:])) >= 4
