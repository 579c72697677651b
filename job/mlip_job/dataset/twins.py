"""Equal structures: fingerprints of what is stored, and twins.

Twins describe the same crystal or molecule, however they are stored, and never lie on both sides of
the split. They may differ by noise of 1e-5 Å, by lattice
translations and the order of atoms, by rigid motions, and by the choice of the cell: other vectors,
swapped axes, a left-handed cell, a supercell.

Cheap numbers give candidates: in the same cell its lengths and angles and moduli of sums over the
atoms, which no translation changes; in other cells labels that don't depend on the cell (volume and
energy per atom, statistics of the forces). For the few candidates the environments of all atoms
are compared.

Fingerprints determine the split and are stored in the index, so they must never change.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from mlip_job.dataset.geometry import complete_cells, neighbours
from mlip_job.dataset.labels import shortened
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mlip_job.dataset.rows import (
        Entries,
        FloatArray,
        IndexArray,
        IntArray,
        StructureRow,
        Structures,
    )

    Describe = Callable[[int], Mapping[str, str]]


_LABELS, _COLUMNS = 6, 19
"""Of a signature: labels that don't depend on the cell; with cell and sums over atoms."""

_LENGTH = 2e-4
"""Å. Candidates in the same cell differ by less."""

_ENERGY = 1e-3
"""eV/atom. Candidates in other cells differ by less, as with other k-points."""

_VOLUME = 1e-4
"""Relative, likewise."""

_FORCE = 3e-3
_RELATIVE_FORCE = 5e-3
"""eV/Å and relative, likewise."""

_WAVES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 2, 3))
"""Phases of atoms are summed for these multiples of the reciprocal vectors."""

_FREE = 37.0
"""Å. Period of the phases along directions without periodicity; any other would do."""

_REACH = 5.0
"""Å. Radius of the compared environments; larger if the nearest neighbours are far."""

_SHELLS = 1.3
"""Of the distance to the furthest nearest neighbour: the least reach."""

_SAME = 3e-5
"""Tolerance of the descriptors of environments: ten times the effect of noise of 1e-5 Å. An atom
that moves by 0.001 Å changes them by more."""

_NEAREST = 9
"""Candidates of a structure, itself included."""

_QUERIES = 1000
"""Structures looked up at once, so that memory stays flat."""

_DECIMALS = 8
"""Lengths are compared to 1e-8 Å."""


def fingerprints(structures: Structures) -> bytes:
    """Return the fingerprints of structures as bytes, one after the other.

    Each is the sha256 of elements, periodicity, cell and positions. Cell vectors of directions
    without periodicity, labels (energy, forces), ids and keys are ignored, so that two calculations
    of one structure share their fingerprint.
    """
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


class TwinFinder:
    """Find twins in a stream of structures."""

    def __init__(self) -> None:
        self._tables: list[FloatArray] = [np.zeros((0, _COLUMNS))]
        self._directions: list[IndexArray] = [np.zeros(0, dtype=np.int64)]

    def add(self, structures: Structures) -> None:
        """Add accepted structures as stored, with the energies to train on."""
        self._tables.append(_signatures(structures))
        self._directions.append(structures.pbc.sum(axis=1))

    def join(self, entries: Entries, pages: Iterable[Structures]) -> Entries:
        """Return all entries, with `crystal_codes`.

        The pages hold all structures again; those of slabs may have vacuum now.
        """
        _, first, numbers = np.unique(entries.structures, return_index=True, return_inverse=True)
        kinds = 4 * entries.reduced_codes + np.concatenate(self._directions)
        table = np.concatenate(self._tables)
        self._tables.clear()
        table, kinds = table[first], kinds[first]
        described: dict[int, FloatArray] = {}
        ties = [np.zeros((0, 2), dtype=np.int64)]
        distinct = np.arange(len(first))
        while not described or len(ties[-1]):
            pairs = distinct[_candidates(table[distinct], kinds[distinct])]
            if len(pairs) == 0:
                break
            if not described:
                chosen, start = np.unique(first[pairs]), 0
                for page in pages:
                    low, high = np.searchsorted(chosen, (start, start + len(page)))
                    for place in chosen[low:high].tolist():
                        described[place] = _describe(page.row(place - start))
                    start += len(page)
            near = [
                bool(np.abs(described[a] - described[b]).max() < _SAME)
                for a, b in first[pairs].tolist()
            ]
            ties.append(pairs[np.array(near, dtype=np.bool_)])
            # The nearest candidates of many twins are each other: look again without these.
            distinct = np.setdiff1d(distinct, ties[-1][:, 1])
        rows, columns = np.concatenate(ties).T
        graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(first), len(first)))
        _, labels = connected_components(graph, directed=False)
        return replace(entries, crystal_codes=labels.astype(np.int64)[numbers])


def _signatures(structures: Structures) -> FloatArray:
    """Return the numbers that identify candidates, shape (structures, `_LABELS` + places).

    Those of two candidates differ by less than 1, in all labels or in all places.
    """
    counts, starts = structures.counts, structures.starts[:-1]
    periodic = structures.pbc
    cells = complete_cells(structures.cells, periodic)
    volumes = np.abs(np.linalg.det(cells)) / counts
    lengths = np.linalg.norm(structures.forces, axis=1)
    forces = [
        np.maximum.reduceat(lengths, starts),
        np.minimum.reduceat(lengths, starts),
        np.add.reduceat(lengths, starts) / counts,
        np.sqrt(np.add.reduceat(np.square(lengths), starts) / counts),
    ]
    ratio = _RELATIVE_FORCE / _FORCE
    labels = [
        np.log(volumes) / _VOLUME,
        structures.energies / counts / _ENERGY,
        *(np.log1p(force * ratio) / _RELATIVE_FORCE for force in forces),
    ]
    frames = cells * np.where(periodic, 1.0, _FREE)[:, :, None]
    edges = np.linalg.norm(frames, axis=2)
    angles = [np.einsum("ij,ij->i", frames[:, k], frames[:, k - 1]) / edges[:, k] for k in range(3)]
    inverses = np.linalg.inv(frames)[structures.owners]
    fractions = np.einsum("ij,ijk->ik", structures.positions, inverses)
    weights = _weights(structures.numbers)
    sums = []
    for wave in _WAVES:
        phases = 2 * np.pi * (fractions @ np.array(wave))
        size = edges.min(axis=1) / (2 * np.pi * sum(wave) * np.sqrt(counts)) / _LENGTH
        parts = (np.add.reduceat(weights * f(phases), starts) for f in (np.cos, np.sin))
        sums.append(np.hypot(*parts) * size)
    places = [*(edges.T / _LENGTH), *(angle / _LENGTH for angle in angles), *sums]
    return np.stack([*labels, *places], axis=1)


def _candidates(table: FloatArray, kinds: IndexArray) -> IndexArray:
    """Return pairs of places in the table, shape (pairs, 2)."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    if len(table) < 2:  # noqa: PLR2004 - a pair
        return found[0]
    for columns in (table[:, :_LABELS], table[:, _LABELS:]):
        points = np.column_stack([2.0 * kinds, columns])
        tree = cKDTree(points)
        count = min(_NEAREST, len(points))
        for start in range(0, len(points), _QUERIES):
            part = points[start : start + _QUERIES]
            _, near = tree.query(part, k=range(1, count + 1), p=np.inf, distance_upper_bound=1.0)
            firsts = np.repeat(np.arange(start, start + len(part)), count)
            seconds = near.reshape(-1)
            wanted = (firsts != seconds) & (seconds < len(points))
            found.append(np.sort(np.column_stack([firsts[wanted], seconds[wanted]]), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _describe(row: StructureRow) -> FloatArray:
    """Return descriptors that depend only on the environments of the atoms.

    Each atom gets a weight for its element. Sums over neighbours are repeated, so that they tell
    arrangements of elements apart that have the same pairs.
    """
    reach = _REACH
    first, second, vectors = neighbours(row, reach)
    nearest = np.full(len(row.numbers), 2 * reach)
    distances = np.linalg.norm(vectors, axis=1)
    np.minimum.at(nearest, first, distances)
    if _SHELLS * nearest.max() > reach:
        reach = _SHELLS * float(nearest.max())
        first, second, vectors = neighbours(row, reach)
        distances = np.linalg.norm(vectors, axis=1)
    own, shares = _weights(row.numbers), (1 - distances / reach) ** 2

    def over_neighbours(values: FloatArray) -> FloatArray:
        sums: FloatArray = np.bincount(first, shares * values, minlength=len(own)).astype(float)
        return sums

    once = over_neighbours(own[second])
    mean = float(once.mean()) or 1.0
    twice = over_neighbours((own * once)[second]) / mean
    thrice = over_neighbours((own * twice)[second]) / mean
    sides = [over_neighbours(own[second] * d / distances) for d in vectors.T]
    numbers = [own * each / mean for each in (once, twice, thrice, np.linalg.norm(sides, axis=0))]
    return np.array(
        [f(each) for each in numbers for f in (np.min, np.max, np.mean, _root_mean_square)]
    )


def _root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _weights(numbers: IntArray) -> FloatArray:
    """Return numbers from 0.5 to 1.5 that tell elements apart."""
    weights: FloatArray = 0.5 + np.mod(numbers * 0.6180339887498949, 1.0)
    return weights


_LISTED = 10
"""Structures in the message."""

_DIFFERENCES = 6
"""Differences between rows in the message."""


def require_consistent_duplicates(entries: Entries, tolerance: float, describe: Describe) -> int:
    """Return how many rows repeat an earlier structure, stored in the same form or another.

    `describe` returns how a row was computed: names and values that may distinguish it.

    Raise `DataError` if rows of one structure have energies more than `tolerance` eV/atom apart.
    """
    twins, atoms = entries.twins, entries.atoms
    table = pd.DataFrame({"twin": twins, "energy": entries.energies / atoms})
    by_twin = table.groupby("twin", sort=False)["energy"]
    extremes = pd.DataFrame(
        {"low": by_twin.idxmin(), "high": by_twin.idxmax(), "rows": by_twin.size()}
    )
    low, high = table["energy"][extremes["low"]], table["energy"][extremes["high"]]
    found = extremes[high.to_numpy() - low.to_numpy() > tolerance]
    if found.empty:
        return len(entries) - len(extremes)
    texts, differences = [], Counter[str]()
    for low, high, rows in found[:_LISTED].to_numpy().tolist():
        ids = entries.row_ids[[low, high]].tolist()
        same_size = atoms[low] == atoms[high]
        energies = entries.energies if same_size else table["energy"]
        unit = "eV" if same_size else "eV/atom"
        more = f", {rows} rows in all" if rows > 2 else ""  # noqa: PLR2004 - the two named
        texts.append(
            f"rows {ids[0]} and {ids[1]}: {energies[low]:.6f} and {energies[high]:.6f} {unit}{more}"
        )
        differences.update(_differences(*map(describe, ids)))
    if len(found) == 1:
        stated = texts[0].replace(":", " hold the same structure with different energies:", 1)
    else:
        rest = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        stated = (
            f"{len(found)} structures have rows with different energies: {'; '.join(texts)}{rest}"
        )
    raise DataError(
        f"{stated}; {_most_frequent(differences, len(texts))} (rigid motions, the choice of the "
        "cell and the order of atoms make no other structure)",
        hint="keep one kind of calculation with database.select, "
        f"or exclude the wrong rows (dataset.duplicate_tolerance is {tolerance:g} eV/atom)",
    )


def _differences(low: Mapping[str, str], high: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*low, *high}):
        before, after = low.get(name, "none"), high.get(name, "none")
        if before != after:
            yield f"{name} ({shortened(before)} and {shortened(after)})"


def _most_frequent(differences: Counter[str], pairs: int) -> str:
    if not differences:
        return "nothing else that is stored tells them apart"
    texts = [
        text if count == pairs else f"{text} in {count} of {pairs} pairs"
        for text, count in differences.most_common(_DIFFERENCES)
    ]
    rest = f" and {len(differences) - len(texts)} more" if len(differences) > len(texts) else ""
    return f"they differ in {', '.join(texts)}{rest}"
