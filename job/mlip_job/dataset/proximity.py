"""How near the atoms of many structures are to each other: bounds that are cheap to find.

`validation.examine` makes a neighbour list of each structure, which would take longer than all the
rest of an export. Here the distances of all pairs are found for many structures of one size at
once, in single precision and for the nearest images only. That proves nearly every structure fit;
the others are left to `examine`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.dataset.row import BoolArray, FloatArray
    from mlip_job.dataset.structures import IndexArray, Structures

    SingleArray = np.ndarray[Any, np.dtype[np.float32]]

_MARGIN = 1e-3
"""Å. Far above the error of single precision over `_LARGEST` Å."""

_LARGEST = 1000.0
"""Å. Nothing is said of structures that reach further."""

_LOW_CELL = 5.5
"""Å. The nearest image of each pair is not enough in cells that are lower than this."""

_PAIRS_AT_ONCE = 40_000
"""Three coordinates of so many pairs are half a megabyte, which a processor's cache holds."""

_MOST_PAIRS = 500_000
"""Of one structure (a thousand atoms); beyond that a neighbour list is faster."""


@dataclass(frozen=True)
class Proximity:
    """What is certain of each structure.

    Attributes
    ----------
    bonded
        Whether each atom has a neighbour within the cutoff; false where that is not known.
    apart
        Å. No two atoms are closer; 0 where nothing is known.
    """

    bonded: BoolArray
    apart: FloatArray


def find_proximity(structures: Structures, sound: BoolArray, cutoff: float) -> Proximity:
    """Bound the distances in structures.

    Parameters
    ----------
    structures
        All of them.
    sound
        Which to look at: their lengths have to be finite, they are periodic in all directions or
        in none, and periodic cells have a volume.
    cutoff
        Å.
    """
    found = Proximity(np.zeros(len(structures), dtype=np.bool_), np.zeros(len(structures)))
    lattices = _Lattices.of(structures, sound)
    work = _Work()
    for batch in _batches(structures, sound, lattices):
        members = batch.members
        atoms = structures.starts[members][:, None] + np.arange(batch.atoms)
        cells = structures.cells[members] if batch.periodic else None
        points, extents = lattices.points(structures.positions[atoms], cells, members)
        squares = _squares(points, cells, batch.images, work)
        known = extents <= _LARGEST
        closest = np.sqrt(squares.min(axis=1).astype(np.float64)) - _MARGIN
        reach = (batch.images + 0.5) * lattices.heights[members] if batch.periodic else np.inf
        found.bonded[members] = known & (squares.max(axis=1) < (cutoff - _MARGIN) ** 2)
        found.apart[members] = np.where(known, np.clip(np.minimum(closest, reach), 0, None), 0.0)
    return found


@dataclass(frozen=True)
class _Batch:
    """Structures with as many atoms, of which as many images are looked at."""

    members: IndexArray
    atoms: int
    periodic: bool
    images: int


@dataclass(frozen=True)
class _Lattices:
    """What is needed of the cells of all structures; those that are not periodic have unit cells.

    Attributes
    ----------
    inverses
        Of the cells, 1/Å.
    heights
        The smallest of the three heights of each cell, Å.
    """

    inverses: FloatArray
    heights: FloatArray

    @classmethod
    def of(cls, structures: Structures, sound: BoolArray) -> Self:
        periodic = sound & np.all(structures.pbc, axis=1)
        inverses = np.linalg.inv(np.where(periodic[:, None, None], structures.cells, np.eye(3)))
        return cls(inverses, 1 / np.linalg.norm(inverses, axis=1).max(axis=1, initial=1e-300))

    def points(
        self, positions: FloatArray, cells: FloatArray | None, members: IndexArray
    ) -> tuple[SingleArray, FloatArray]:
        """Return positions, along the cell's vectors where there is one, and how far they reach.

        The shape of the first is (structures, 3, atoms), the second are in Å.
        """
        if cells is not None:
            points = positions @ self.inverses[members]
            points -= np.floor(points)
            extents = np.abs(cells).max(axis=(1, 2))
        else:
            points = positions - positions.mean(axis=1, keepdims=True)
            extents = np.abs(points).max(axis=(1, 2))
        return np.ascontiguousarray(points.transpose(0, 2, 1), np.float32), extents


def _batches(structures: Structures, sound: BoolArray, lattices: _Lattices) -> Iterator[_Batch]:
    periodic = np.all(structures.pbc, axis=1)
    images = (periodic & (lattices.heights < _LOW_CELL)).astype(np.int64)
    alike: defaultdict[tuple[int, bool, int], list[int]] = defaultdict(list)
    kinds = zip(structures.counts.tolist(), periodic.tolist(), images.tolist(), strict=True)
    for index, (kind, is_sound) in enumerate(zip(kinds, sound.tolist(), strict=True)):
        if is_sound:
            alike[kind].append(index)
    for kind, members in alike.items():
        atoms, _, more_images = kind
        pairs = atoms * (atoms // 2 + 1) * (2 * more_images + 1) ** 3
        if pairs <= _MOST_PAIRS:
            size = max(1, _PAIRS_AT_ONCE // pairs)
            for first in range(0, len(members), size):
                yield _Batch(np.array(members[first : first + size]), *kind)


class _Work:
    """Memory that is used again: to ask the system for more takes as long as to fill it."""

    def __init__(self) -> None:
        self._memory = [np.empty(0, dtype=np.float32) for _ in range(3)]

    def array(self, which: int, *shape: int) -> SingleArray:
        size = math.prod(shape)
        if len(self._memory[which]) < size:
            self._memory[which] = np.empty(size, dtype=np.float32)
        return self._memory[which][:size].reshape(shape)


def _squares(
    points: SingleArray, cells: FloatArray | None, images: int, work: _Work
) -> SingleArray:
    """Return the squares of small distances in structures of one size.

    The nearest image of each pair is that whose components along the cell's vectors are at most a
    half. Of a vector that is shorter than half the height of the cell they are: no shorter
    distance than this is missed, nor one than 3/2 of it where the images around are looked at.

    Parameters
    ----------
    points
        See `_Lattices.points`.
    cells
        Å, or None where they are not periodic.
    images
        How many images to look at in each direction, besides the nearest.

    Returns
    -------
    SingleArray
        Å², shape (structures, atoms): for each atom the smallest to half of the others, each pair
        being looked at from one side. The smallest of them all is the smallest of the structure.
    """
    structures, _, atoms = points.shape
    # With its first image an atom is its own neighbour too, 0 places behind itself.
    first, last = 0 if images else 1, atoms // 2 + 1
    best = np.full((structures, atoms), np.inf, dtype=np.float32)
    if first == last:
        return best
    around = sliding_window_view(np.concatenate([points, points], axis=2), atoms, axis=2)
    shape = (structures, 3, last - first, atoms)
    differences, other = work.array(0, *shape), work.array(1, *shape)
    np.subtract(around[:, :, first:last], points[:, :, None, :], out=differences)
    if cells is not None:
        differences -= np.rint(differences, out=other)
    flat, vectors = (array.reshape(structures, 3, -1) for array in (differences, other))
    squares = work.array(2, structures, last - first, atoms)
    for offset in product(range(-images, images + 1), repeat=3):
        moved = flat + np.array(offset, dtype=np.float32)[:, None] if any(offset) else flat
        if cells is not None:
            np.matmul(cells.transpose(0, 2, 1).astype(np.float32), moved, out=vectors)
        else:
            vectors = moved
        np.einsum("ijk,ijk->ik", vectors, vectors, out=squares.reshape(structures, -1))
        if images and not any(offset):
            squares[:, 0] = np.inf
        np.minimum(best, squares.min(axis=1), out=best)
    return best
