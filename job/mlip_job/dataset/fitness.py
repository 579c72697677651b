"""Which of many structures are fit for training, as far as that shows without their distances.

`validation.examine` has the rules, and says why a structure is not fit. What is accepted here is
accepted there too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from mlip_job.dataset.periodicity import complete_cells
from mlip_job.dataset.validation import MAX_LENGTH, MIN_VOLUME

if TYPE_CHECKING:
    from mlip_job.dataset.row import BoolArray, FloatArray
    from mlip_job.dataset.structures import Structures
    from mlip_job.dataset.validation import RowRules

VANISHING_FORCE = 1e-3
"""eV/Å. DFT leaves so much of a force that vanishes by symmetry."""


def choose_energies(structures: Structures, rules: RowRules) -> tuple[FloatArray, BoolArray]:
    """Return the energies to train on (eV, NaN for none), and which of them are free energies."""
    is_free = structures.has_free_energy & rules.prefer_free_energy
    energies = np.where(structures.has_energy, structures.energies, np.nan)
    return np.where(is_free, structures.free_energies, energies), is_free


def have_sound_geometry(structures: Structures) -> BoolArray:
    """Tell which are made of elements, in finite places, in cells that are not flat."""
    known = (structures.numbers > 0) & (structures.numbers < len(chemical_symbols))
    in_bounds = np.abs(structures.positions) < MAX_LENGTH
    bounded_cell = (np.abs(structures.cells) < MAX_LENGTH).all(axis=(1, 2))
    with np.errstate(all="ignore"):  # of cells that are not finite
        cells = complete_cells(structures.cells, structures.pbc)
        flat = np.abs(np.linalg.det(cells)) < MIN_VOLUME
    sound: BoolArray = bounded_cell & ~flat
    return sound & structures.all_atoms(known) & structures.all_atoms(in_bounds)


def have_labels(structures: Structures, rules: RowRules) -> BoolArray:
    """Tell which have an energy and forces to train on."""
    energies, _ = choose_energies(structures, rules)
    labelled = np.isfinite(energies) & structures.all_atoms(np.isfinite(structures.forces))
    if rules.max_force is not None:
        with np.errstate(all="ignore"):  # of forces that are not finite
            within = np.linalg.norm(structures.forces, axis=1) <= rules.max_force
        labelled &= structures.all_atoms(within)
    return labelled


def count_force_components(structures: Structures) -> int:
    """Return how many force components do not vanish: those a potential has to learn.

    By symmetry most do in crystals that are strained or compressed.
    """
    return int(np.count_nonzero(np.abs(structures.forces) > VANISHING_FORCE))


def largest_force(structures: Structures) -> float:
    """Return the length of the largest force on any atom, eV/Å."""
    x, y, z = np.square(structures.forces).T
    return float(np.sqrt((x + y + z).max()))
