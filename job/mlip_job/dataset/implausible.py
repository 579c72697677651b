"""Labels that are accepted, and can hardly be right: zeroed and huge forces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.neighborlist import primitive_neighbor_list

from mlip_job.dataset.row import name_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.dataset.row import BoolArray, FloatArray
    from mlip_job.dataset.structures import Structures

HUGE_FORCE = 100.0
"""eV/Å. Atoms on each other, or a calculation that did not converge, and no state of matter."""

_NOT_RELAXED = 0.05
"""eV/Å. Where all forces are smaller and rounded, those of some atoms may be zero by that."""

_DIGIT = 1e-4
"""eV/Å. The last digit of forces that are stored rounded."""

_NEAR = 5.0
"""Å, within which the surroundings of an atom are looked at."""

_LOPSIDED = 0.002
"""Of the most that the surroundings of an atom can lie on one side; positions are rounded."""


def have_zeroed_forces(structures: Structures, cutoff: float) -> BoolArray:
    """Tell in which structures forces are exactly zero where symmetry does not explain it.

    ``Atoms.get_forces()`` returns such for fixed atoms, or along fixed directions. The force on an
    atom vanishes by symmetry only where its neighbours are on all sides alike.

    Parameters
    ----------
    structures
        Periodic in all directions or in none.
    cutoff
        Å, of the potential: forces don't reach further.
    """
    zero = structures.forces == 0
    zeroed = np.zeros(len(structures), dtype=np.bool_)
    if not zero.any():
        return zeroed
    starts = structures.starts[:-1]
    largest = np.maximum.reduceat(np.abs(structures.forces).max(axis=1), starts)
    suspect = np.logical_or.reduceat(zero.any(axis=1), starts) & (largest > 0)
    for index in np.flatnonzero(suspect).tolist():
        atoms = slice(structures.starts[index], structures.starts[index + 1])
        rounded = _are_rounded(structures.forces[atoms])
        if rounded and largest[index] <= _NOT_RELAXED:
            continue
        lopsided = _lopsidedness(structures, index, min(cutoff, _NEAR))
        whole = zero[atoms].all(axis=1) & (np.linalg.norm(lopsided, axis=1) > _LOPSIDED)
        components = zero[atoms] & (np.abs(lopsided) > _LOPSIDED)
        zeroed[index] = bool(whole.any() or (components.any() and not rounded))
    return zeroed


def _are_rounded(forces: FloatArray) -> bool:
    """Tell whether forces have so few digits that small ones may be zero by rounding."""
    scaled = forces / _DIGIT
    return bool((np.abs(scaled - np.rint(scaled)) < 1e-6).all())  # noqa: PLR2004 - of a digit


def _lopsidedness(structures: Structures, index: int, reach: float) -> FloatArray:
    """Return to which side of each atom its neighbours are, as vectors of length 0 to 1.

    It is a weighted mean of the directions to them, shape (atoms, 3). The weight falls to zero at
    `reach` and tells elements apart, so that the mean vanishes wherever the force has to.
    """
    row = structures.row(index)
    cell = row.cell if row.pbc.all() else np.eye(3)
    first, second, distances, vectors = primitive_neighbor_list(
        "ijdD", row.pbc, cell, row.positions, reach
    )
    weights = (1 - distances / reach) ** 2 * row.numbers[second]
    total = np.bincount(first, weights, minlength=len(row.numbers))
    directions = vectors * (weights / distances)[:, None]
    sums = [np.bincount(first, part, minlength=len(row.numbers)) for part in directions.T]
    lopsided: FloatArray = np.transpose(sums) / np.where(total > 0, total, 1.0)[:, None]
    return lopsided


def have_huge_forces(structures: Structures) -> BoolArray:
    """Tell in which structures some atom has a force above `HUGE_FORCE`."""
    lengths = np.linalg.norm(structures.forces, axis=1)
    huge: BoolArray = np.maximum.reduceat(lengths, structures.starts[:-1]) > HUGE_FORCE
    return huge


def note_zeroed_forces(rows: Sequence[int]) -> str:
    """Return the note on rows with zeroed forces."""
    return (
        f"forces of exactly zero, which symmetry does not explain, on some atoms ({len(rows)}: "
        f"{name_rows(rows)}): those of fixed atoms (FixAtoms)? Energies and forces contradict each "
        "other there; store the forces of atoms.get_forces(apply_constraint=False) in a "
        "SinglePointCalculator, or deselect the rows"
    )


def note_huge_forces(rows: Sequence[int], largest: float) -> str:
    """Return the note on rows with huge forces; `largest` is in eV/Å."""
    return (
        f"forces above {HUGE_FORCE:g} eV/Å, up to {largest:.4g} ({len(rows)}: {name_rows(rows)}): "
        "such structures are hardly right and dominate the fit; dataset.max_force, for example "
        f"{HUGE_FORCE / 2:g}, leaves them out"
    )
