"""Suspicious labels are distinguished from those explained by symmetry."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.morse import MorsePotential
from ase.spacegroup import crystal

from mlip_job.dataset.labels import have_net_forces, have_zeroed_forces, names_method
from mlip_job.dataset.rows import Structures, stated_charge
from tests.datasets import labelled_rows
from tests.support import rattled, with_emt


def structures(*many: Atoms) -> Structures:
    """Return labelled structures in columns."""
    return Structures.of_rows(labelled_rows(many))


def fixed_slab() -> Atoms:
    """Return a slab whose lower layers were stored with the constraint applied."""
    slab = fcc111("Cu", (2, 2, 4), a=3.6, vacuum=8.0, periodic=True)
    slab.positions[slab.get_tags() < 3] += np.random.default_rng(1).normal(scale=0.08, size=(8, 3))
    slab = with_emt(slab)
    slab.calc.results["forces"][slab.get_tags() >= 3] = 0.0
    return slab


def one_fixed_atom() -> Atoms:
    """Return a crystal out of equilibrium with one zeroed force."""
    (atoms,) = rattled(1)
    atoms.calc.results["forces"][2] = 0.0
    return atoms


def fixed_direction() -> Atoms:
    """Return a crystal with one atom fixed along z only."""
    (atoms,) = rattled(1)
    atoms.calc.results["forces"][2, 2] = 0.0
    return atoms


def relaxed_with_fixed_atom() -> Atoms:
    """Return a crystal with small forces, as after a relaxation, one of them zeroed."""
    (atoms,) = rattled(1)
    atoms.calc.results["forces"] *= 0.03 / np.abs(atoms.calc.results["forces"]).max()
    atoms.calc.results["forces"][2] = 0.0
    return atoms


@pytest.mark.parametrize(
    "make", [fixed_slab, one_fixed_atom, fixed_direction, relaxed_with_fixed_atom]
)
def test_zeroed_forces(make: Callable[[], Atoms]) -> None:
    """Forces of exactly zero on fixed atoms are found, and only in the rows that have them."""
    found, missing = have_zeroed_forces(structures(*rattled(2, seed=3), make(), *rattled(1)), 5.0)
    assert found.tolist() == [False, False, True, False]
    assert not missing.any()


def displaced() -> Atoms:
    """Return a large crystal with one displaced atom: distant atoms have no force."""
    atoms = bulk("Cu", cubic=True) * (5, 5, 5)
    atoms.positions[0] += 0.1
    return with_emt(atoms)


def rutile() -> Atoms:
    """Return rutile out of equilibrium: by symmetry the forces on titanium vanish."""
    atoms = crystal(
        ["Ti", "O"],
        [(0, 0, 0), (0.32, 0.32, 0)],
        spacegroup=136,
        cellpar=[4.6, 4.6, 2.96, 90, 90, 90],
    )
    atoms.calc = MorsePotential(epsilon=0.5, r0=2.0, rho0=4.0, rcut1=3.5, rcut2=4.5)
    forces = atoms.get_forces().round(8)
    assert not forces[:2].any()
    assert np.abs(forces[2:]).max() > 0.05
    atoms.calc.results["forces"] = forces
    return atoms


def stretched_molecule() -> Atoms:
    """Return carbon dioxide out of equilibrium: the force on carbon vanishes."""
    atoms = molecule("CO2")
    atoms.positions *= 1.1
    atoms = with_emt(atoms)
    atoms.calc.results["forces"] = atoms.calc.results["forces"].round(8)
    assert not atoms.calc.results["forces"][0].any()
    return atoms


def strained() -> Atoms:
    """Return a strained perfect crystal, in which all forces vanish."""
    atoms = with_emt(bulk("Cu", a=3.7, cubic=True))
    atoms.calc.results["forces"][:] = 0.0
    return atoms


def rounded() -> Atoms:
    """Return a crystal close to equilibrium whose forces have three digits."""
    (atoms,) = rattled(1)
    forces = atoms.calc.results["forces"]
    atoms.calc.results["forces"] = (forces * 0.003 / np.abs(forces).max()).round(3)
    assert not atoms.calc.results["forces"].all()
    return atoms


@pytest.mark.parametrize("make", [displaced, rutile, stretched_molecule, strained, rounded])
def test_forces_that_vanish_by_symmetry(make: Callable[[], Atoms]) -> None:
    """Symmetry and rounding also give forces of exactly zero: they are valid."""
    some, every = have_zeroed_forces(structures(make()), 5.0)
    assert not some.any()
    assert not every.any()


def test_missing_forces() -> None:
    """Zeros for all atoms are noted, except in perfect crystals, whose forces vanish."""
    (atoms,) = rattled(1)
    atoms.calc.results["forces"][:] = 0.0
    some, every = have_zeroed_forces(structures(strained(), atoms, bulk_atom()), 5.0)
    assert not some.any()
    assert every.tolist() == [False, True, False]


def bulk_atom() -> Atoms:
    """Return a cell of one atom, on which no force can act."""
    atoms = with_emt(bulk("Cu", a=3.7))
    atoms.calc.results["forces"][:] = 0.0
    return atoms


def test_net_forces() -> None:
    """Noise of DFT is accepted; a zeroed atom or a drift of 0.02 eV/Å gives a net force."""
    few = rattled(4)
    few[0].calc.results["forces"] += 0.005
    few[1].calc.results["forces"] += (0.02, 0.0, 0.0)
    few[2].calc.results["forces"][0] = 0.0
    assert have_net_forces(structures(*few)).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("value", "charge"),
    [
        (1, 1.0), (-2.0, -2.0), (0, 0.0), (math.nan, 0.0), (math.inf, 0.0), ("1+", 1.0),
        ("2-", -2.0), ("+", 1.0),
        ("-1", -1.0), ("0", 0.0), ("", 0.0), ("neutral", 0.0), (None, 0.0),
    ],
)  # fmt: skip
def test_stated_charge(value: object, charge: float) -> None:
    assert stated_charge(value) == charge


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("xc", True), ("xc_functional", True), ("dft_functional", True), ("Functional", True),
        ("level_of_theory", True), ("level", True), ("code", True), ("barcode", False),
        ("energy_level", False), ("calc_id", False), ("exchange", False),
    ],
)  # fmt: skip
def test_keys_that_name_a_method(key: str, named: bool) -> None:
    assert names_method(key) is named
