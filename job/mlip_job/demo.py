"""A small ASE database of labelled structures, made with ASE's EMT potential.

Like a real one, it has several kinds of structures, and rows that can't be trained on.
EMT (K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996)) describes the fcc
metals Al, Cu, Ag, Au, Ni, Pd and Pt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, reference_states
from ase.db import connect

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FIRST_GENERATION = "training.max_iter=0"
"""The first generation is a linear fit, from which pacemaker starts for the second one."""

EMT_ELEMENTS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")

# How many of each kind the first generation has; the second one sees half as many more.
_FUNCTIONS, _ITERATIONS = 30, 100
_STRAINED, _RATTLED, _DEFECTIVE, _SURFACES = 24, 24, 8, 8


def write_demo_database(path: Path, elements: Sequence[str], *, seed: int = 42) -> None:
    """Write an SQLite database with the structures of two generations.

    Every row has ``status``, ``config_type`` and ``generation``: the loop's iteration that
    requested it, so that ``generation<=1`` always selects what the first generation was trained on.

    Raises
    ------
    ConfigError
        If EMT lacks an element, or the file exists.
    """
    unknown = [e for e in elements if e not in EMT_ELEMENTS]
    if unknown or not elements:
        raise ConfigError(
            f"--elements: EMT has no parameters for {', '.join(unknown) or 'no element'}",
            hint=f"choose from {', '.join(EMT_ELEMENTS)}",
        )
    if path.exists():
        raise ConfigError(f"{path} exists; the demo does not overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with connect(path) as database:
        for generation, share in ((1, 1.0), (2, 0.5)):
            for config_type, atoms in _structures(elements, share, rng):
                atoms.calc = EMT()
                atoms.get_forces()
                database.write(
                    atoms, status="completed", config_type=config_type, generation=generation
                )
        _write_unusable(database, elements, rng)


def demo_config(elements: Sequence[str]) -> str:
    """Return the configuration of the demo's second generation, for two CPU cores.

    The first one has `FIRST_GENERATION` as well.
    """
    family = "-".join(e.lower() for e in sorted(elements))
    return f"""\
family: demo-{family}

database:
  url: structures.db
  # Each generation is trained on the rows that the loop had asked for by then.
  select: status=completed,generation<={{generation}}

storage:
  url: store

training:
  cutoff: 5.0
  # Small, so that the fit takes a minute on a laptop; potentials for use have hundreds.
  functions_per_element: {_FUNCTIONS}
  max_iter: {_ITERATIONS}
"""


def _structures(
    elements: Sequence[str], share: float, rng: np.random.Generator
) -> Iterator[tuple[str, Atoms]]:
    if share == 1.0:
        for element in elements:
            yield "isolated_atom", Atoms(element)
    for _ in range(round(share * _STRAINED)):
        atoms = _crystal(elements, 1, rng)
        strain = np.eye(3) + rng.normal(scale=0.04, size=(3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        yield "strained", atoms
    for _ in range(round(share * _RATTLED)):
        yield "rattled", _rattled(_crystal(elements, 1, rng), 0.15, rng)
    for _ in range(round(share * _DEFECTIVE)):
        atoms = _crystal(elements, 2, rng)
        del atoms[int(rng.integers(len(atoms)))]
        yield "vacancy", _rattled(atoms, 0.08, rng)
    for index in range(round(share * _SURFACES)):
        slab = _slab(elements, rng)
        if index == 0:
            # Forces on constrained atoms are data too.
            slab.set_constraint(FixAtoms(indices=[0, 1]))
        yield "surface", slab


def _write_unusable(database: Any, elements: Sequence[str], rng: np.random.Generator) -> None:
    """Add rows that a run must reject: failed calculations, and one without forces."""
    for _ in range(3):
        atoms = _rattled(_crystal(elements, 1, rng), 0.3, rng)
        database.write(atoms, status="failed", config_type="rattled", generation=1)
    atoms = _crystal(elements, 1, rng)
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    database.write(atoms, status="completed", config_type="bulk", generation=1)


def _lattice_constant(elements: Sequence[str]) -> float:
    states = [reference_states[atomic_numbers[e]] or {} for e in elements]
    return float(np.mean([float(str(state["a"])) for state in states]))


def _crystal(elements: Sequence[str], repeat: int, rng: np.random.Generator) -> Atoms:
    """Return a cubic fcc cell with the elements at random on its sites."""
    atoms = bulk(elements[0], "fcc", a=_lattice_constant(elements), cubic=True)
    return _mixed(atoms.repeat(repeat), elements, rng)


def _slab(elements: Sequence[str], rng: np.random.Generator) -> Atoms:
    slab = fcc111(elements[0], (2, 2, 3), a=_lattice_constant(elements), vacuum=6.0)
    slab.pbc = True
    return _rattled(_mixed(slab, elements, rng), 0.08, rng)


def _mixed(atoms: Atoms, elements: Sequence[str], rng: np.random.Generator) -> Atoms:
    atoms.symbols[:] = list(rng.choice(list(elements), size=len(atoms)))
    return atoms


def _rattled(atoms: Atoms, scale: float, rng: np.random.Generator) -> Atoms:
    atoms.positions += rng.normal(scale=scale, size=atoms.positions.shape)
    return atoms
