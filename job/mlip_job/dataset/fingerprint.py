"""Fingerprints of structures: equal for the same atoms in the same places, as they are stored.

They order the split and are what an index remembers, so they must never change.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlip_job.dataset.row import FloatArray, StructureRow
    from mlip_job.dataset.structures import Structures

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


def _rounded(lengths: FloatArray) -> bytes:
    # Adding 0.0 turns -0.0 into 0.0.
    return (np.round(lengths, _DECIMALS) + 0.0).astype("<f8").tobytes()
