"""Cells, slabs and wires, neighbours, and bounds on the distances of many structures.

Pacemaker and its evaluator take structures that are periodic in all directions or in none. Vacuum
in the other directions makes a slab or a wire periodic in all of them, and changes no energy of a
potential whose cutoff is shorter than the vacuum.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ase import Atoms

    from mlip_job.dataset.rows import BoolArray, FloatArray, IndexArray, StructureRow, Structures

    SingleArray = np.ndarray[Any, np.dtype[np.float32]]

VACUUM = 20.0
"""Å between the images of a slab or a wire: the largest cutoff that a configuration may ask for.
It is fixed, so that the structure depends on neither the cutoff nor the generation."""

_SLAB, _WIRE = 2, 1

_MARGIN = 1e-3
"""Å. Far above the error of single precision over `_LARGEST` Å."""

_EPSILON = 1e-6
"""Of the lengths of the cell: several times the rounding of a fraction in single precision."""

_LARGEST = 1000.0
"""Å. Larger structures are not covered."""

_NEAR = 3.5
"""Å. Most atoms have a neighbour as near."""

_LOW_CELL = 5.5
"""Å. The nearest image of each pair is not enough in cells that are lower than this."""

_PAIRS_AT_ONCE = 40_000
"""Their three coordinates take half a megabyte, which a processor's cache holds."""

_MOST_PAIRS = 500_000
"""Of one structure (a thousand atoms); beyond that a neighbour list is faster."""


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
    """Return each atom's distance to its nearest neighbour, Å; infinity from `reach` on."""
    nearest = np.full(len(row.numbers), np.inf)
    for near in (min(_NEAR, reach), reach):
        first, _, vectors = neighbours(row, near)
        np.minimum.at(nearest, first, np.linalg.norm(vectors, axis=1))
        if np.isfinite(nearest).all():
            break
    return np.where(nearest < reach, nearest, np.inf)


def _units(vectors: FloatArray) -> FloatArray:
    """Return normalised vectors; zero vectors are unchanged."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: FloatArray = vectors / np.where(lengths > 0, lengths, 1.0)
    return units


def bound_distances(
    structures: Structures, sound: BoolArray, cutoff: float
) -> tuple[BoolArray, FloatArray]:
    """Return whether all atoms have a neighbour within the cutoff, and the least distance, both Å.

    Bounds in single precision, false and 0 if unknown. Neighbour lists of all structures would take
    longer than the rest of an export; this settles nearly all of them. Only `sound` structures are
    examined: those with finite positions and cells that are not flat, in all directions periodic or
    in none.
    """
    periodic = sound & np.all(structures.pbc, axis=1)
    cells = np.where(periodic[:, None, None], structures.cells, np.eye(3))
    free = sound & ~periodic
    if free.any():
        cells[free] *= _box_edges(structures.take(free))[:, None, None]
    inverses = np.linalg.inv(cells)
    heights = 1 / np.linalg.norm(inverses, axis=1)
    lengths = np.linalg.norm(cells, axis=2)
    margins = _MARGIN + lengths.sum(axis=1) * _EPSILON
    images = (periodic[:, None] & (heights < _LOW_CELL)).astype(np.int64)
    small = lengths.max(axis=1, initial=0.0) <= _LARGEST
    nearest, loneliest = (np.full(len(structures), np.inf) for _ in range(2))
    for members, atoms, around in _batches(structures.counts, images, sound & small):
        places = structures.starts[members][:, None] + np.arange(atoms)
        fractions = np.mod(structures.positions.take(places, axis=0) @ inverses[members], 1.0)
        squares = _nearest_squares(fractions, cells[members], around)
        nearest[members], loneliest[members] = squares.min(axis=1), squares.max(axis=1)
    certain = ((images + 0.5) * heights).min(axis=1, initial=np.inf)
    apart = np.minimum(np.sqrt(nearest), certain) - margins
    bonded = np.sqrt(loneliest) + margins < cutoff
    return bonded, np.where(np.isfinite(nearest), apart.clip(min=0.0), 0.0)


def _box_edges(structures: Structures) -> FloatArray:
    """Return edges of boxes in which no image of an atom is nearer than the atom itself, Å."""
    firsts = structures.starts[:-1]
    spans = np.maximum.reduceat(structures.positions, firsts)
    spans -= np.minimum.reduceat(structures.positions, firsts)
    edges: FloatArray = 4 * spans.max(axis=1) + 1
    return edges


def _batches(
    counts: IndexArray, images: IndexArray, chosen: BoolArray
) -> Iterator[tuple[IndexArray, int, tuple[int, ...]]]:
    """Yield batches of structures with equal numbers of atoms and images."""
    kinds = np.column_stack([counts, images])
    for atoms, *around in np.unique(kinds[chosen], axis=0).tolist():
        pairs = atoms**2 * 3 ** sum(around)
        if pairs > _MOST_PAIRS:
            continue
        members = np.flatnonzero(chosen & (kinds == (atoms, *around)).all(axis=1))
        size = max(1, _PAIRS_AT_ONCE // atoms**2)
        for first in range(0, len(members), size):
            yield members[first : first + size], atoms, tuple(around)


def _nearest_squares(
    fractions: FloatArray, cells: FloatArray, images: tuple[int, ...]
) -> SingleArray:
    """Return the square of the distance to each atom's nearest neighbour, Å².

    The nearest image of each pair is that whose components along the cell's vectors are at most a
    half. Of a vector that is shorter than half the height of the cell they are: no shorter
    distance than this is missed, nor one than 3/2 of it in a direction with `images`, the number of
    images to examine in addition to the nearest. Fractional coordinates are from 0 to 1, shape
    (structures, atoms, 3).
    """
    structures, atoms, _ = fractions.shape
    points = np.ascontiguousarray(fractions.transpose(0, 2, 1), dtype=np.float32)
    vectors = points[:, :, None, :] - points[:, :, :, None]
    vectors -= np.rint(vectors)
    to_lengths = cells.transpose(0, 2, 1).astype(np.float32)
    nearest = to_lengths @ vectors.reshape(structures, 3, -1)
    best: SingleArray = np.full((structures, atoms), np.inf, dtype=np.float32)
    offsets = list(product(*(range(-n, n + 1) for n in images)))
    # The other half has the same pairs, with the atoms exchanged.
    for offset in offsets[len(offsets) // 2 :]:
        lengths = nearest + to_lengths @ np.array(offset, dtype=np.float32)[:, None]
        squares = np.einsum("ijk,ijk->ik", lengths, lengths).reshape(structures, atoms, atoms)
        if not any(offset):
            squares[:, range(atoms), range(atoms)] = np.inf
        np.minimum(best, squares.min(axis=1), out=best)
        np.minimum(best, squares.min(axis=2), out=best)
    return best
