"""How near the atoms of many structures are to each other: bounds that are cheap to find.

`validation.examine` makes a neighbour list of each structure, which would take longer than all the
rest of an export. Here the distances of all pairs are found for many structures of one size at
once, in single precision and for the nearest images only. That proves nearly every structure fit;
the others are left to `examine`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

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
    for batch in _batches(structures, sound):
        atoms = structures.starts[batch.members][:, None] + np.arange(batch.atoms)
        cells = structures.cells[batch.members] if batch.periodic else None
        squares, reach = _nearest(structures.positions[atoms], cells, batch.images)
        found.bonded[batch.members] = squares.max(axis=1) < (cutoff - _MARGIN) ** 2
        closest = np.sqrt(squares.min(axis=1).astype(np.float64)) - _MARGIN
        found.apart[batch.members] = np.clip(np.minimum(closest, reach), 0, None)
    return found


@dataclass(frozen=True)
class _Batch:
    """Structures with as many atoms, of which as many images are looked at."""

    members: IndexArray
    atoms: int
    periodic: bool
    images: int


def _batches(structures: Structures, sound: BoolArray) -> Iterator[_Batch]:
    periodic = np.all(structures.pbc, axis=1)
    images = np.zeros(len(structures), dtype=np.int64)
    images[sound & periodic] = _heights(structures.cells[sound & periodic]) < _LOW_CELL
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


def _heights(cells: FloatArray) -> FloatArray:
    """Return the smallest of the three heights of each cell, Å."""
    heights: FloatArray = 1 / np.linalg.norm(np.linalg.inv(cells), axis=1).max(axis=1, initial=0)
    return heights


def _nearest(
    positions: FloatArray, cells: FloatArray | None, images: int
) -> tuple[SingleArray, FloatArray]:
    """Return the squares of small distances in structures of one size.

    Parameters
    ----------
    positions
        Å, shape (structures, atoms, 3).
    cells
        Å, or None where they are not periodic.
    images
        How many images to look at in each direction, besides the nearest.

    Returns
    -------
    squares
        Å², shape (structures, atoms): for each atom the smallest to half of the others, each pair
        being looked at from one side. The smallest of them all is the smallest of the structure.
    reach
        Å. Shorter distances than this have not been missed: where a vector is shorter than half
        the height of a cell, its components along the cell's vectors are less than a half, and
        rounding them finds it.
    """
    if cells is None:
        points = positions - positions.mean(axis=1, keepdims=True)
        extent = np.abs(points).max(axis=(1, 2))
        reach = np.full(len(positions), np.inf)
    else:
        points = positions @ np.linalg.inv(cells)
        points -= np.floor(points)
        extent = np.abs(cells).max(axis=(1, 2))
        reach = (images + 0.5) * _heights(cells)
    squares = _squares(np.ascontiguousarray(points.transpose(0, 2, 1), np.float32), cells, images)
    squares[extent > _LARGEST] = np.inf
    return squares, np.where(extent > _LARGEST, 0.0, reach)


def _squares(points: SingleArray, cells: FloatArray | None, images: int) -> SingleArray:
    """Return the smallest squared distance from each atom to the half of the atoms behind it."""
    structures, _, atoms = points.shape
    # With its first image an atom is its own neighbour too, 0 places behind itself.
    places = slice(0 if images else 1, atoms // 2 + 1)
    around = sliding_window_view(np.concatenate([points, points], axis=2), atoms, axis=2)
    differences = around[:, :, places] - points[:, :, None, :]
    best = np.full((structures, atoms), np.inf, dtype=np.float32)
    if differences.size == 0:
        return best
    if cells is not None:
        differences -= np.rint(differences)
    for offset in product(range(-images, images + 1), repeat=3):
        vectors = differences.reshape(structures, 3, -1)
        if any(offset):
            vectors = vectors + np.array(offset, dtype=np.float32)[None, :, None]
        if cells is not None:
            vectors = cells.transpose(0, 2, 1).astype(np.float32) @ vectors
        squares = np.square(vectors).sum(axis=1).reshape(structures, -1, atoms)
        if images and not any(offset):
            squares[:, 0] = np.inf
        np.minimum(best, squares.min(axis=1), out=best)
    return best
