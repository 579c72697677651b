"""In-memory data of the accepted rows, and the spool for the rest."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase.data import chemical_symbols
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from mlip_job.dataset.references import Composition
    from mlip_job.dataset.rows import BoolArray, FloatArray, IndexArray, IntArray, Structures

    FingerprintArray = np.ndarray[Any, np.dtype[np.void]]


FINGERPRINT = np.dtype("V32")
"""A sha256; arrays of them sort as their hex digits do."""

_COMPARED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """Data of a row for split, reference energies and checks.

    Attributes
    ----------
    row_id
        Id in the database.
    fingerprint
        Equal for identical structures; 64 hex digits.
    group
        Trajectory or parent structure, or None for a row that forms its own group.
    composition
        Pairs of atomic number and count, sorted.
    energy
        eV, the energy to train on.
    config_type
        Type of the structure, or None.
    side
        Value of the key that decides its side of the split, or None.
    crystal
        Equal for twins (see `twins`); by default that of no other fingerprint.
    """

    row_id: int
    fingerprint: str
    group: str | None = None
    composition: Composition = ()
    energy: float = 0.0
    config_type: str | None = None
    side: str | None = None
    crystal: str | None = None


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries in columns, at a few dozen bytes each.

    Attributes
    ----------
    row_ids, energies
        See `Entry`.
    fingerprints
        As bytes.
    groups, compositions, config_types, sides
        The distinct values of each.
    group_codes, composition_codes, config_type_codes, side_codes
        Which of these an entry has; -1 for none.
    crystal_codes
        Equal for twins; None where equal fingerprints are the only ones.
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

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Entries:
        """Put entries into columns."""
        collector = EntryCollector(len(entries))
        for entry in entries:
            collector.add(
                row_ids=[entry.row_id],
                fingerprints=bytes.fromhex(entry.fingerprint),
                energies=[entry.energy],
                groups=[entry.group],
                compositions=[entry.composition],
                config_types=[entry.config_type],
                sides=[entry.side],
            )
        crystals = [entry.crystal or entry.fingerprint for entry in entries]
        codes = np.unique(np.array(crystals, dtype=np.str_), return_inverse=True)[1]
        return replace(collector.entries(), crystal_codes=codes)

    @property
    def atoms(self) -> IndexArray:
        """Number of atoms of each."""
        counts = [sum(count for _, count in composition) for composition in self.compositions]
        return np.array(counts, dtype=np.int64)[self.composition_codes]

    @cached_property
    def structures(self) -> IndexArray:
        """Number of the structure of each; the numbers have the order of the fingerprints."""
        return _numbered(self.fingerprints)

    @cached_property
    def twins(self) -> IndexArray:
        """Number of the crystal of each; equal fingerprints share it."""
        structures, crystals = self.structures, self.crystal_codes
        if crystals is None:
            return structures
        first = int(structures.max(initial=-1)) + 1
        nodes = first + int(crystals.max(initial=-1)) + 1
        ties = (np.ones(len(self), dtype=np.bool_), (structures, first + crystals))
        _, numbers = connected_components(coo_array(ties, shape=(nodes, nodes)), directed=False)
        twins: IndexArray = numbers[structures].astype(np.int64)
        return twins

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
        """Return a mask of the entries with an element."""
        number = chemical_symbols.index(element)
        holds = [any(z == number for z, _ in composition) for composition in self.compositions]
        return np.array(holds, dtype=np.bool_)[self.composition_codes]

    def count_by_composition(self, chosen: BoolArray | None = None) -> dict[Composition, int]:
        """Return how many of the chosen entries are of each composition."""
        codes = self.composition_codes if chosen is None else self.composition_codes[chosen]
        counts = np.bincount(codes, minlength=len(self.compositions)).tolist()
        return {c: n for c, n in zip(self.compositions, counts, strict=True) if n}

    def elements(self, chosen: BoolArray | None = None) -> tuple[str, ...]:
        """Return the elements of the chosen entries, sorted."""
        found = {z for composition in self.count_by_composition(chosen) for z, _ in composition}
        return tuple(sorted(chemical_symbols[z] for z in found))


def _numbered(prints: FingerprintArray) -> IndexArray:
    """Return a number for each; equal ones share it, and the numbers have their order."""
    order = np.argsort(prints, kind="stable")
    differs = np.zeros(len(prints), dtype=np.bool_)
    for first in range(1, len(prints), _COMPARED_AT_ONCE):  # so that few are copied
        near = prints[order[first - 1 : first + _COMPARED_AT_ONCE]]
        differs[first : first + _COMPARED_AT_ONCE] = near[1:] != near[:-1]
    numbers = np.empty(len(prints), dtype=np.int64)
    numbers[order] = np.cumsum(differs)
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
    """Collects entries page by page.

    Parameters
    ----------
    most
        Maximum number of entries. Columns are allocated once, as growing ones would be copied
        repeatedly; the system commits memory only when it is written.
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
        groups, group_codes = self._groups.columns(self._count)
        compositions, composition_codes = self._compositions.columns(self._count)
        config_types, config_type_codes = self._config_types.columns(self._count)
        sides, side_codes = self._sides.columns(self._count)
        return Entries(
            row_ids=self._row_ids[: self._count],
            fingerprints=self._fingerprints[: self._count],
            energies=self._energies[: self._count],
            groups=groups,
            group_codes=group_codes,
            compositions=compositions,
            composition_codes=composition_codes,
            config_types=config_types,
            config_type_codes=config_type_codes,
            sides=sides,
            side_codes=side_codes,
        )


class Spool:
    """Structures in a local file: appended once, then read back in the same order.

    The database is read a single time, so that memory does not grow with the structures and rows
    that are added meanwhile do no harm.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, structures: Structures) -> None:
        """Add structures at the end."""
        pickle.dump(structures, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def read(self) -> SpooledStructures:
        """Return the structures added so far."""
        self._file.flush()
        return SpooledStructures(self._path)


@dataclass(frozen=True)
class SpooledStructures:
    """The structures of a spool, in the order of the entries; any process of the job reads them."""

    path: Path

    def __iter__(self) -> Iterator[tuple[Structures, slice]]:
        """Yield some at a time, and the places of their entries."""
        first = 0
        with self.path.open("rb") as file:
            while file.peek(1):
                structures: Structures = pickle.load(file)  # noqa: S301 - written by this job
                yield structures, slice(first, first + len(structures))
                first += len(structures)
