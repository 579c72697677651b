"""Slabs and wires: structures that are periodic in one or two directions.

Pacemaker and its evaluator take structures that are periodic in all directions or in none. Vacuum
in the other directions makes a slab or a wire periodic in all of them, and changes no energy of a
potential whose cutoff is shorter than the vacuum.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from ase import Atoms

    from mlip_job.dataset.row import BoolArray, FloatArray, StructureRow
    from mlip_job.dataset.structures import IndexArray, Structures

VACUUM = 20.0
"""Å between the images of a slab or a wire: the largest cutoff that a configuration may ask for.
It is fixed, so that the structure depends on neither the cutoff nor the generation."""

_SLAB, _WIRE = 2, 1


def is_partly_periodic(pbc: BoolArray) -> BoolArray:
    """Return which structures are slabs or wires; the last axis of `pbc` is that of directions."""
    directions = pbc.sum(axis=-1)
    partly: BoolArray = (directions == _SLAB) | (directions == _WIRE)
    return partly


def complete_cells(cells: FloatArray, pbc: BoolArray) -> FloatArray:
    """Return cells with unit vectors in the directions without periodicity.

    They are perpendicular to the periodic vectors and to each other, and the cells of slabs and
    wires are right-handed. A cell whose periodic vectors span no plane or line has no volume.

    Parameters
    ----------
    cells
        Å, shape (structures, 3, 3). Vectors of directions without periodicity don't count.
    pbc
        Shape (structures, 3).
    """
    complete: FloatArray = np.where(pbc[:, :, None], cells, np.eye(3))
    directions = pbc.sum(axis=1)
    for first in range(3):
        second, third = (first + 1) % 3, (first + 2) % 3
        slabs = (directions == _SLAB) & ~pbc[:, first]
        complete[slabs, first] = _units(np.cross(cells[slabs, second], cells[slabs, third]))
        wires = (directions == _WIRE) & pbc[:, first]
        axes = _units(cells[wires, first])
        across = np.eye(3)[np.abs(axes).argmin(axis=1)]
        across = _units(across - np.sum(across * axes, axis=1, keepdims=True) * axes)
        complete[wires, second], complete[wires, third] = across, np.cross(axes, across)
    return complete


def with_vacuum(structures: Structures) -> Structures:
    """Return structures with slabs and wires made fully periodic by vacuum.

    Positions are unchanged. The stress is removed, since it refers to a volume that contains
    arbitrary vacuum.
    """
    partly = is_partly_periodic(structures.pbc)
    if not partly.any():
        return structures
    with np.errstate(all="ignore"):  # of non-finite values, which are rejected later
        cells = complete_cells(structures.cells, structures.pbc)
        owners = np.repeat(np.arange(len(structures)), structures.counts)
        heights = np.einsum("ij,ikj->ik", structures.positions, cells[owners])
        starts = structures.starts[:-1]
        extents = np.maximum.reduceat(heights, starts) - np.minimum.reduceat(heights, starts)
        cells *= np.where(structures.pbc, 1.0, extents + VACUUM)[:, :, None]
    return replace(
        structures,
        cells=np.where(partly[:, None, None], cells, structures.cells),
        pbc=structures.pbc | partly[:, None],
        stresses=np.where(partly[:, None], np.nan, structures.stresses),
    )


def atoms_with_vacuum(atoms: Atoms) -> Atoms:
    """Return a slab or a wire as `with_vacuum` does, without calculator; else the same atoms."""
    pbc = np.array(atoms.pbc, dtype=np.bool_)
    if not is_partly_periodic(pbc) or len(atoms) == 0:
        return atoms
    (cell,) = complete_cells(atoms.cell.array[None], pbc[None])
    heights = atoms.positions @ cell.T
    cell *= np.where(pbc, 1.0, np.ptp(heights, axis=0) + VACUUM)[:, None]
    padded: Atoms = atoms.copy()
    padded.set_cell(cell)
    padded.pbc = True
    return padded


def neighbours(row: StructureRow, reach: float) -> tuple[IndexArray, IndexArray, FloatArray]:
    """Return pairs of atoms within `reach` (Å), and the vectors from the first to the second."""
    (cell,) = complete_cells(row.cell[None], row.pbc[None])
    inverse = np.linalg.inv(cell)
    fractions = row.positions @ inverse
    fractions[:, row.pbc] %= 1.0
    margins = reach * np.linalg.norm(inverse, axis=0)
    images = np.where(row.pbc, np.ceil(margins), 0).astype(np.int64)
    shifts = np.array(list(product(*(range(-n, n + 1) for n in images.tolist()))), np.float64)
    places = (fractions[None] + shifts[:, None]).reshape(-1, 3)
    atoms = np.tile(np.arange(len(fractions)), len(shifts))
    margins = np.where(row.pbc, margins + 1e-9, np.inf)
    near = ((places > -margins) & (places < 1 + margins)).all(axis=1)
    places, atoms = places[near] @ cell, atoms[near]
    centres = fractions @ cell
    found = cKDTree(centres).sparse_distance_matrix(
        cKDTree(places), reach, output_type="coo_matrix"
    )
    first, second = found.row, found.col
    vectors = places[second] - centres[first]
    apart = np.square(vectors).sum(axis=1) > 1e-12  # noqa: PLR2004 - an atom is not its neighbour
    return first[apart].astype(np.int64), atoms[second[apart]], vectors[apart]


def _units(vectors: FloatArray) -> FloatArray:
    """Return normalised vectors; zero vectors are unchanged."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: FloatArray = vectors / np.where(lengths > 0, lengths, 1.0)
    return units
