"""Cells, slabs and wires, and the distances between atoms.

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

    from mlip_job.dataset.rows import BoolArray, FloatArray, IndexArray, StructureRow, Structures

VACUUM = 20.0
"""Å between the images of a slab or a wire: the largest cutoff that a configuration may ask for.
It is fixed, so that the structure depends on neither the cutoff nor the generation."""

_SLAB, _WIRE = 2, 1

_PAIRS_AT_ONCE = 20_000
"""Their vectors take half a megabyte, which a processor's cache holds."""

_MOST_ATOMS = 250
"""Of a structure; beyond that a neighbour list is faster than all pairs."""

_LARGEST = 200.0
"""Å. In larger cells, single precision is off by more than 1e-4 Å."""


def is_partly_periodic(pbc: BoolArray) -> BoolArray:
    """Return which structures are slabs or wires; the last axis of `pbc` is that of directions."""
    directions = pbc.sum(axis=-1)
    partly: BoolArray = (directions == _SLAB) | (directions == _WIRE)
    return partly


def complete_cells(cells: FloatArray, pbc: BoolArray) -> FloatArray:
    """Return cells with unit vectors in the directions without periodicity.

    They are perpendicular to the periodic vectors and to each other, and the cells of slabs and
    wires are right-handed. A cell whose periodic vectors span no plane or line has no volume.
    Shapes (structures, 3, 3), Å, and (structures, 3).
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
    # An atom is not its own neighbour, but its images are.
    apart = (first != atoms[second]) | (np.square(vectors).sum(axis=1) > 1e-12)  # noqa: PLR2004
    return first[apart].astype(np.int64), atoms[second[apart]], vectors[apart]


def nearest_neighbours(row: StructureRow, reach: float) -> FloatArray:
    """Return each atom's distance to its nearest neighbour, Å; infinity beyond `reach`."""
    first, _, vectors = neighbours(row, reach)
    nearest = np.full(len(row.numbers), np.inf)
    np.minimum.at(nearest, first, np.linalg.norm(vectors, axis=1))
    return nearest


def nearest_in_large_cells(structures: Structures, sound: BoolArray) -> FloatArray:
    """Return the distances to the nearest neighbours of atoms in cells that are not small, Å.

    Infinity where this search is not enough: neighbour lists of all structures would take longer
    than the rest of an export, this settles nearly all. Only `sound` structures are examined, whose
    positions are finite and whose cells are not flat, and which are periodic in all directions or
    in none.
    """
    nearest = np.full(len(structures.numbers), np.inf)
    sound = sound & (structures.counts > 1) & (structures.counts <= _MOST_ATOMS)
    if not sound.any():
        return nearest
    firsts = structures.starts[:-1]
    with np.errstate(all="ignore"):  # of values that are huge or not finite
        spans = np.maximum.reduceat(structures.positions, firsts)
        spans -= np.minimum.reduceat(structures.positions, firsts)
        # In a box of four times its size, no image of an atom is nearer than the atom itself.
        boxes = (4 * spans.max(axis=1) + 1)[:, None, None] * np.eye(3)
        cells = np.where(structures.pbc[:, :1, None], structures.cells, boxes)
        sound = sound & (np.linalg.norm(cells, axis=2).max(axis=1) <= _LARGEST)
    inverses = np.linalg.inv(np.where(sound[:, None, None], cells, np.eye(3)))
    halves = 0.49 / np.linalg.norm(inverses, axis=1).max(axis=1)
    for count in np.unique(structures.counts[sound]).tolist():
        members = np.flatnonzero(sound & (structures.counts == count))
        size = max(1, _PAIRS_AT_ONCE // count**2)
        for start in range(0, len(members), size):
            part = members[start : start + size]
            atoms = structures.starts[part][:, None] + np.arange(count)
            fractions = (structures.positions[atoms] @ inverses[part]).transpose(0, 2, 1)
            points = np.ascontiguousarray(np.mod(fractions, 1.0), np.float32)
            vectors = points[:, :, None] - points[:, :, :, None]
            vectors -= np.rint(vectors)
            to_lengths = cells[part].transpose(0, 2, 1).astype(np.float32)
            lengths = to_lengths @ vectors.reshape(len(part), 3, -1)
            squares = np.square(lengths, out=lengths).sum(axis=1).reshape(-1, count, count)
            squares[:, range(count), range(count)] = np.inf
            found = np.sqrt(squares.min(axis=2))
            # No other image is within half the height of the cell.
            nearest[atoms] = np.where(found < halves[part][:, None], found, np.inf)
    return nearest


def _units(vectors: FloatArray) -> FloatArray:
    """Return normalised vectors; zero vectors are unchanged."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: FloatArray = vectors / np.where(lengths > 0, lengths, 1.0)
    return units
