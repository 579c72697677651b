"""Fingerprints of structures: equal for the same atoms in the same places.

There are two. `fingerprint` takes the atoms as they are stored: it orders the split and is what an
index remembers, so it must never change. `crystals` is the same for all ways to store one crystal
that differ by lattice translations of atoms or by their order: structures that share it never lie
on both sides of the split. A rigid translation, a rotation or another choice of the cell gives
another structure for both.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.dataset.periodicity import complete_cells

if TYPE_CHECKING:
    from mlip_job.dataset.row import FloatArray, StructureRow
    from mlip_job.dataset.structures import Structures

CRYSTAL_BYTES = 16

_STEP = 1e-4
"""Å. Coarse against the rounding of stored positions, which could put twins on different steps."""

_DIVISIBLE = 5040

_DECIMALS = 8
"""Lengths are compared to 1e-8 Å."""


def fingerprint(row: StructureRow) -> str:
    """Return the sha256 of elements, periodicity, cell and positions, as 64 hex digits.

    Cell vectors of directions without periodicity don't count: they mean nothing. Labels (energy,
    forces), ids and keys don't count either, so that two calculations of one structure share
    their fingerprint.
    """
    digest = hashlib.sha256()
    digest.update(row.numbers.astype("<i4").tobytes())
    digest.update(row.pbc.astype("u1").tobytes())
    digest.update(_rounded(np.where(row.pbc[:, None], row.cell, 0.0)))
    digest.update(_rounded(row.positions))
    return digest.hexdigest()


def fingerprints(structures: Structures) -> bytes:
    """Return the fingerprints of structures as bytes, one after the other."""
    numbers = memoryview(structures.numbers.astype("<i4").tobytes())
    pbc = structures.pbc.astype("u1").tobytes()
    cells = _rounded(np.where(structures.pbc[:, :, None], structures.cells, 0.0))
    positions = memoryview(_rounded(structures.positions))
    bounds = structures.starts.tolist()
    digests = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        parts = (
            numbers[4 * start : 4 * end],
            pbc[3 * index : 3 * index + 3],
            cells[72 * index : 72 * index + 72],
            positions[24 * start : 24 * end],
        )
        digests.append(hashlib.sha256(b"".join(parts)).digest())
    return b"".join(digests)


def crystals(structures: Structures) -> bytes:
    """Return 16 bytes for each structure, which the order and the images of its atoms don't change.

    Fractional coordinates are counted in steps of about 1e-4 Å modulo the cell, and atoms sorted
    by number and place. A cell has a multiple of 5040 steps, so that halves, thirds, … tenths of
    it, where atoms of ideal crystals are, lie on a step and not between two.
    """
    owners = np.repeat(np.arange(len(structures)), structures.counts)
    periodic = structures.pbc[:, :, None]
    cells = complete_cells(structures.cells, structures.pbc)
    lengths = np.linalg.norm(cells, axis=2)
    whole = _DIVISIBLE * np.maximum(1, np.rint(lengths / (_STEP * _DIVISIBLE)))
    steps = np.where(structures.pbc, whole, 1 / _STEP)
    places = np.einsum("ij,ijk->ik", structures.positions, np.linalg.inv(cells)[owners])
    counts = np.rint(places * steps[owners])
    counts = np.where(structures.pbc[owners], np.mod(counts, steps[owners]), counts)
    counts = counts.astype("<i8")
    order = np.lexsort((*counts.T[::-1], structures.numbers, owners))
    numbers = memoryview(structures.numbers[order].astype("<i4").tobytes())
    atoms = memoryview(counts[order].tobytes())
    frames = memoryview(np.rint(np.where(periodic, cells / _STEP, 0.0)).astype("<i8").tobytes())
    pbc = structures.pbc.astype("u1").tobytes()
    digests = []
    for index, (start, end) in enumerate(pairwise(structures.starts.tolist())):
        digest = hashlib.blake2b(pbc[3 * index : 3 * index + 3], digest_size=CRYSTAL_BYTES)
        digest.update(frames[72 * index : 72 * index + 72])
        digest.update(numbers[4 * start : 4 * end])
        digest.update(atoms[24 * start : 24 * end])
        digests.append(digest.digest())
    return b"".join(digests)


def _rounded(lengths: FloatArray) -> bytes:
    # Adding 0.0 turns -0.0 into 0.0.
    return (np.round(lengths, _DECIMALS) + 0.0).astype("<f8").tobytes()
