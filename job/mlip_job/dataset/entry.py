"""What is kept in memory of each accepted row, and the spool that holds the rest."""

from __future__ import annotations

import pickle
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase.data import chemical_symbols

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from mlip_job.dataset.reference_energies import Composition
    from mlip_job.dataset.row import BoolArray, FloatArray, IntArray
    from mlip_job.dataset.structures import IndexArray, Structures

    FingerprintArray = np.ndarray[Any, np.dtype[np.void]]

FINGERPRINT = np.dtype("V32")
"""A sha256; arrays of them sort as their hex digits do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The little that split, fit and checks need of a row.

    Attributes
    ----------
    row_id
        Id in the database.
    fingerprint
        Equal for identical structures; 64 hex digits.
    group
        Trajectory or parent structure, or None for a row that is a group of its own.
    composition
        Pairs of atomic number and count, sorted.
    energy
        eV, the energy to train on.
    config_type
        Type of the structure, or None.
    """

    row_id: int
    fingerprint: str
    group: str | None = None
    composition: Composition = ()
    energy: float = 0.0
    config_type: str | None = None


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries in columns: a few dozen bytes for each, however many there are.

    Attributes
    ----------
    row_ids, energies
        See `Entry`.
    fingerprints
        As bytes.
    groups, compositions, config_types
        What there is of each.
    group_codes, composition_codes, config_type_codes
        Which of these an entry has; -1 for none.
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

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.row_ids)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """Put entries into columns."""
        collector = EntryCollector()
        for entry in entries:
            collector.add(
                row_ids=[entry.row_id],
                fingerprints=bytes.fromhex(entry.fingerprint),
                energies=[entry.energy],
                groups=[entry.group],
                compositions=[entry.composition],
                config_types=[entry.config_type],
            )
        return collector.entries()

    @property
    def atoms(self) -> IndexArray:
        """Number of atoms of each."""
        counts = [sum(count for _, count in composition) for composition in self.compositions]
        return np.array(counts, dtype=np.int64)[self.composition_codes]

    def holding(self, element: str) -> BoolArray:
        """Tell which entries hold an element."""
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


@dataclass
class _Codes:
    """Numbers for things, in the order in which they first come."""

    numbers: dict[Any, int] = field(default_factory=dict)
    of_entries: array[int] = field(default_factory=lambda: array("i"))

    def extend(self, things: Iterable[Hashable | None]) -> None:
        numbers = self.numbers
        self.of_entries.extend(
            [-1 if thing is None else numbers.setdefault(thing, len(numbers)) for thing in things]
        )

    def columns(self) -> tuple[tuple[Any, ...], IntArray]:
        return tuple(self.numbers), np.array(self.of_entries, dtype=np.int32)


class EntryCollector:
    """Collects entries page by page."""

    def __init__(self) -> None:
        self._row_ids = array("q")
        self._fingerprints = bytearray()
        self._energies = array("d")
        self._groups, self._compositions, self._config_types = _Codes(), _Codes(), _Codes()

    def add(
        self,
        *,
        row_ids: Sequence[int],
        fingerprints: bytes,
        energies: Sequence[float],
        groups: Sequence[str | None],
        compositions: Sequence[Composition],
        config_types: Sequence[str | None],
    ) -> None:
        """Add a page of them; `fingerprints` follow each other."""
        self._row_ids.extend(row_ids)
        self._fingerprints += fingerprints
        self._energies.extend(energies)
        self._groups.extend(groups)
        self._compositions.extend(compositions)
        self._config_types.extend(config_types)

    def entries(self) -> Entries:
        """Return what was collected."""
        groups, group_codes = self._groups.columns()
        compositions, composition_codes = self._compositions.columns()
        config_types, config_type_codes = self._config_types.columns()
        return Entries(
            row_ids=np.array(self._row_ids, dtype=np.int64),
            fingerprints=np.frombuffer(self._fingerprints, FINGERPRINT),
            energies=np.array(self._energies, dtype=np.float64),
            groups=groups,
            group_codes=group_codes,
            compositions=compositions,
            composition_codes=composition_codes,
            config_types=config_types,
            config_type_codes=config_type_codes,
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

    def __iter__(self) -> Iterator[Structures]:
        self._file.flush()
        with self._path.open("rb") as file:
            while file.peek(1):
                yield pickle.load(file)  # noqa: S301 - written by this very process
