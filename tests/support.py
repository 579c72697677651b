"""Small labelled structures and the ASE databases that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


def labelled(atoms: Atoms, **results: Any) -> Atoms:
    """Return a copy with these results (energy in eV, forces in eV/Å, …)."""
    copy: Atoms = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def with_emt(atoms: Atoms) -> Atoms:
    """Return a copy with energy, free energy, unconstrained forces and stress of ASE's EMT."""
    copy = atoms.copy()
    copy.calc = EMT()
    copy.get_forces(apply_constraint=False)
    if copy.pbc.all():
        copy.get_stress(apply_constraint=False)
    results = {
        name: copy.calc.results[name]
        for name in ("energy", "free_energy", "forces", "stress")
        if name in copy.calc.results
    }
    return labelled(atoms, **results)


def rattled(count: int, *, symbols: Iterable[str] = ("Cu",), seed: int = 0) -> list[Atoms]:
    """Return `count` different four-atom fcc cells, with the elements in turn on their sites."""
    symbols = list(symbols)
    rng = np.random.default_rng(seed)
    structures = []
    for number in range(count):
        atoms = bulk("Cu", cubic=True, a=3.6 + 0.2 * rng.random())
        atoms.symbols = [symbols[(number + site) % len(symbols)] for site in range(len(atoms))]
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
        structures.append(with_emt(atoms))
    return structures


@contextmanager
def open_for_writing(target: Path | str) -> Iterator[Any]:
    """Open an ASE database (a file or a URL with its password) for writing."""
    name = str(target)
    database = ase.db.connect(name) if "://" in name else ase.db.connect(name, type="db")
    with database:
        yield database


def write_database(
    target: Path | str, structures: Iterable[Atoms], *, status: str = "completed", **pairs: Any
) -> list[int]:
    """Append rows that share their key_value_pairs; return their ids."""
    with open_for_writing(target) as database:
        return [database.write(atoms, status=status, **pairs) for atoms in structures]
