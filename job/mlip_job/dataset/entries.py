"""In-memory data of the accepted rows, in columns, and the spool for the rest."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase.data import chemical_symbols
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from pathlib import Path

    from mlip_job.dataset.rows import (
        BoolArray,
        Composition,
        FloatArray,
        IndexArray,
        IntArray,
        Structures,
    )

    FingerprintArray = np.ndarray[Any, np.dtype[np.void]]

FINGERPRINT = np.dtype("V32")
"""A sha256; arrays of them sort as their hex digits do."""

_COMPARED_AT_ONCE = 10_000


@dataclass(frozen=True, eq=False)
class Entries:
    """Data of rows for split, reference energies and checks, at a few dozen bytes each.

    Energies are those to train on, eV. The tuples have the distinct values, the codes which of them
    an entry has, -1 for none; `sides` are those of the key that decides the split. `crystal_codes`
    are equal for twins (see `twins`); None where equal fingerprints are the only ones.
    """

    row_ids: IndexArray
    fingerprints: FingerprintArray
    energies: FloatArray
    groups: tuple[str, ...]
    group_codes: IntArray
    compositions: tuple[Composition, ...]
    composition_codes: IntArray
    config_types: tuple[str, ...]
    config_type_codes: IntArray
    sides: tuple[str, ...]
    side_codes: IntArray
    crystal_codes: IndexArray | None = None

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.row_ids)

    @property
    def atoms(self) -> IndexArray:
        """Number of atoms of each."""
        counts = [sum(count for _, count in composition) for composition in self.compositions]
        return np.array(counts, dtype=np.int64)[self.composition_codes]

    @cached_property
    def structures(self) -> IndexArray:
        """Number of the structure of each; the numbers have the order of the fingerprints."""
        prints = self.fingerprints
        order = np.argsort(prints, kind="stable")
        differs = np.zeros(len(self), dtype=np.bool_)
        for first in range(1, len(self), _COMPARED_AT_ONCE):  # so that few are copied
            near = prints[order[first - 1 : first + _COMPARED_AT_ONCE]]
            differs[first : first + _COMPARED_AT_ONCE] = near[1:] != near[:-1]
        numbers = np.empty(len(self), dtype=np.int64)
        numbers[order] = np.cumsum(differs)
        return numbers

    @cached_property
    def twins(self) -> IndexArray:
        """Number of the crystal of each; equal fingerprints share it."""
        if self.crystal_codes is None:
            return self.structures
        return joined(self.structures, self.crystal_codes)

    @property
    def reduced_codes(self) -> IndexArray:
        """Number of the reduced composition of each: the same for a supercell."""
        numbers: dict[Composition, int] = {}
        codes = []
        for composition in self.compositions:
            common = math.gcd(*(count for _, count in composition))
            reduced = tuple((z, count // common) for z, count in composition)
            codes.append(numbers.setdefault(reduced, len(numbers)))
        return np.array(codes, dtype=np.int64)[self.composition_codes]

    def holding(self, element: str) -> BoolArray:
        """Return which entries have an element."""
        number = chemical_symbols.index(element)
        holds = [any(z == number for z, _ in composition) for composition in self.compositions]
        return np.array(holds, dtype=np.bool_)[self.composition_codes]

    def rows_with(self, element: str) -> list[int]:
        """Return the ids of the rows with an element."""
        rows: list[int] = self.row_ids[self.holding(element)].tolist()
        return rows

    def count_by_composition(self, chosen: BoolArray | None = None) -> dict[Composition, int]:
        """Return how many of the chosen entries are of each composition."""
        codes = self.composition_codes if chosen is None else self.composition_codes[chosen]
        counts = np.bincount(codes, minlength=len(self.compositions)).tolist()
        return {c: n for c, n in zip(self.compositions, counts, strict=True) if n}

    def count_config_types(self, chosen: BoolArray) -> dict[str, int]:
        """Return how many of the chosen entries are of each config type, by name."""
        codes = self.config_type_codes[chosen]
        counts = np.bincount(codes[codes >= 0], minlength=len(self.config_types)).tolist()
        return {name: n for name, n in sorted(zip(self.config_types, counts, strict=True)) if n}

    def elements(self, chosen: BoolArray | None = None) -> tuple[str, ...]:
        """Return the elements of the chosen entries, sorted."""
        found = {z for composition in self.count_by_composition(chosen) for z, _ in composition}
        return tuple(sorted(chemical_symbols[z] for z in found))


def joined(labels: IndexArray, others: IndexArray | IntArray) -> IndexArray:
    """Return a number for each entry: entries that share either label share the number.

    Labels count from 0 without gaps, as the numbers do; -1 in `others` is none.
    """
    tied = others >= 0
    if not tied.any():
        return labels
    first = int(labels.max(initial=-1)) + 1
    nodes = first + int(others.max(initial=-1)) + 1
    ends = (labels[tied], first + others[tied])
    graph = coo_array((np.ones(len(ends[0]), dtype=np.bool_), ends), shape=(nodes, nodes))
    components = connected_components(graph, directed=False)[1]
    numbers: IndexArray = components[labels].astype(np.int64)
    return numbers


class _Codes:
    """Numbers for values, in order of first appearance."""

    def __init__(self, most: int) -> None:
        self._numbers: dict[Any, int] = {}
        self._of_entries = np.empty(most, dtype=np.int32)

    def put(self, place: slice, things: Sequence[Hashable | None]) -> None:
        numbers = self._numbers
        self._of_entries[place] = [
            -1 if thing is None else numbers.setdefault(thing, len(numbers)) for thing in things
        ]

    def columns(self, entries: int) -> tuple[tuple[Any, ...], IntArray]:
        return tuple(self._numbers), self._of_entries[:entries]


class EntryCollector:
    """Collects at most `most` entries, page by page.

    Columns are allocated once, as growing ones would be copied repeatedly; the system commits
    memory only when it is written.
    """

    def __init__(self, most: int) -> None:
        self._count = 0
        self._row_ids = np.empty(most, dtype=np.int64)
        self._fingerprints = np.empty(most, dtype=FINGERPRINT)
        self._energies = np.empty(most, dtype=np.float64)
        self._groups, self._compositions = _Codes(most), _Codes(most)
        self._config_types, self._sides = _Codes(most), _Codes(most)

    def add(
        self,
        *,
        row_ids: Sequence[int] | IndexArray,
        fingerprints: bytes,
        energies: Sequence[float] | FloatArray,
        groups: Sequence[str | None],
        compositions: Sequence[Composition],
        config_types: Sequence[str | None],
        sides: Sequence[str | None],
    ) -> None:
        """Add a page of them; `fingerprints` follow each other."""
        place = slice(self._count, self._count + len(row_ids))
        self._count = place.stop
        self._row_ids[place] = row_ids
        self._fingerprints[place] = np.frombuffer(fingerprints, FINGERPRINT)
        self._energies[place] = energies
        self._groups.put(place, groups)
        self._compositions.put(place, compositions)
        self._config_types.put(place, config_types)
        self._sides.put(place, sides)

    def entries(self) -> Entries:
        """Return the collected entries."""
        return Entries(
            self._row_ids[: self._count],
            self._fingerprints[: self._count],
            self._energies[: self._count],
            *self._groups.columns(self._count),
            *self._compositions.columns(self._count),
            *self._config_types.columns(self._count),
            *self._sides.columns(self._count),
        )


class Spool:
    """Structures in a local file, in the order of the entries: appended once, then read back.

    The database is read a single time, so that memory does not grow with the structures and rows
    that are added meanwhile do no harm.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, structures: Structures) -> None:
        """Add structures at the end."""
        pickle.dump(structures, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[tuple[Structures, slice]]:
        """Yield the structures added so far, some at a time, and the places of their entries."""
        self._file.flush()
        first = 0
        with self._path.open("rb") as file:
            while file.peek(1):
                structures: Structures = pickle.load(file)  # noqa: S301 - written by this job
                yield structures, slice(first, first + len(structures))
                first += len(structures)
