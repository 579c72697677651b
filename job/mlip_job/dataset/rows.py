"""Structures between the reader and the writers: a row, columns of many rows, and their entries.

`Entries` stay in memory, at a few dozen bytes each; the structures wait in a `Spool`.
"""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from pathlib import Path

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int32]]
IndexArray = np.ndarray[Any, np.dtype[np.int64]]
ObjectArray = np.ndarray[Any, np.dtype[np.object_]]
FingerprintArray = np.ndarray[Any, np.dtype[np.void]]

Side = Literal["train", "test"]
SIDES: tuple[Side, Side] = ("train", "test")

FINGERPRINT = np.dtype("V32")
"""A sha256; arrays of them sort as their hex digits do."""

Composition = tuple[tuple[int, int], ...]
"""Pairs of atomic number and count, sorted: ``((28, 1), (29, 3))`` is Cu3Ni."""

VOIGT = 6
"""Components of a stress."""

CHARGE_KEYS = ("total_charge", "net_charge", "charge_state", "charge")
"""Keys, in lower case, that name the charge of a structure; ASE reserves ``charge`` itself."""

_CHARGE = re.compile(r"(?P<before>[+-]?)(?P<size>\d+(?:\.\d+)?)?(?P<after>[+-]?)")
_SHOWN = 10
"""Row ids in a message."""
_REMEMBERED = 4096
_OF_ATOMS = ("numbers", "positions", "forces")


@dataclass(frozen=True, eq=False)
class StructureRow:
    """One labelled structure as stored, without defaults.

    Å, eV, eV/Å and eV/Å³; the vectors of `cell` are its rows. The forces have the stored shape,
    (n, 3) if it is right. They are those of the calculator: constraints of the structure don't set
    them to zero. The stress is in Voigt order (xx, yy, zz, yz, xz, xy); None and `lost_stress` if
    the stored one is invalid: wrong size, single precision or not finite.
    """

    id: int
    numbers: IntArray
    positions: FloatArray
    cell: FloatArray
    pbc: BoolArray
    energy: float | None = None
    free_energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    key_value_pairs: dict[str, Any] = field(default_factory=dict)
    lost_stress: bool = False

    def atoms(self) -> Atoms:
        """Return the structure without labels, in a right-handed cell."""
        return right_handed(
            Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)
        )


@dataclass(frozen=True)
class UnreadableRow:
    """A row that ASE can't decode, such as one whose forces are no multiple of three numbers.

    `single_precision`: its forces are stored as float32, which ASE reads as half as many numbers.
    """

    id: int
    single_precision: bool = False


Row = StructureRow | UnreadableRow


@dataclass(frozen=True, eq=False)
class Structures:
    """Structures in columns, in the order of their ids.

    The arrays of the atoms (numbers, and positions and forces of shape (atoms, 3)) follow each
    other: those of structure i are at ``starts[i]:starts[i + 1]``. Å, eV, eV/Å and eV/Å³; cells
    have one vector per row, stresses Voigt order. Energies are those to train on. Missing labels
    are NaN. `pairs` are the key_value_pairs; of accepted structures, and in the files of a dataset,
    only ``group`` and ``config_type``.
    """

    ids: IndexArray
    starts: IndexArray
    numbers: IntArray
    positions: FloatArray
    forces: FloatArray
    cells: FloatArray
    pbc: BoolArray
    energies: FloatArray
    stresses: FloatArray
    pairs: ObjectArray

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.ids)

    @property
    def counts(self) -> IndexArray:
        """Number of atoms of each."""
        return np.diff(self.starts)

    @property
    def owners(self) -> IndexArray:
        """Place of the structure of each atom."""
        return np.repeat(np.arange(len(self)), self.counts)

    @classmethod
    def of_rows(cls, rows: Sequence[StructureRow]) -> Self:
        """Join rows that have one or more atoms; take their energies, not their free energies."""
        none = np.full(VOIGT, np.nan)
        forces = [
            np.full((len(row.numbers), 3), np.nan)
            if row.forces is None or row.forces.shape != (len(row.numbers), 3)
            else row.forces
            for row in rows
        ]
        return cls(
            ids=np.array([row.id for row in rows], dtype=np.int64),
            starts=starts_of([len(row.numbers) for row in rows]),
            numbers=_concatenated([row.numbers for row in rows], (0,), np.int32),
            positions=_concatenated([row.positions for row in rows], (0, 3), np.float64),
            forces=_concatenated(forces, (0, 3), np.float64),
            cells=np.array([row.cell for row in rows], dtype=np.float64).reshape(-1, 3, 3),
            pbc=np.array([row.pbc for row in rows], dtype=np.bool_).reshape(-1, 3),
            energies=np.array([row.energy for row in rows], dtype=np.float64),
            stresses=np.array(
                [none if row.stress is None else row.stress for row in rows], dtype=np.float64
            ).reshape(-1, VOIGT),
            pairs=np.array([row.key_value_pairs for row in rows], dtype=np.object_),
        )

    def row(self, index: int) -> StructureRow:
        """Return one structure; its energy is the one to train on."""
        atoms = slice(self.starts[index], self.starts[index + 1])
        energy, stress = float(self.energies[index]), self.stresses[index]
        return StructureRow(
            id=int(self.ids[index]),
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=self.cells[index],
            pbc=self.pbc[index],
            energy=None if math.isnan(energy) else energy,
            forces=self.forces[atoms],
            stress=None if np.isnan(stress).any() else stress,
            key_value_pairs=self.pairs[index],
        )

    def take(self, chosen: BoolArray) -> Self:
        """Return the structures for which `chosen` is true."""
        if chosen.all():
            return self
        # Indices are faster than masks for rows of several numbers.
        places, atoms = np.flatnonzero(chosen), np.flatnonzero(np.repeat(chosen, self.counts))
        columns = {
            each.name: getattr(self, each.name).take(
                atoms if each.name in _OF_ATOMS else places, axis=0
            )
            for each in fields(self)
            if each.name != "starts"
        }
        return type(self)(starts=starts_of(self.counts[chosen]), **columns)

    def all_atoms(self, flags: BoolArray) -> BoolArray:
        """Return which structures have all atoms flagged; an atom may have several flags."""
        if len(self) == 0 or flags.all():
            return np.ones(len(self), dtype=np.bool_)
        of_atoms = flags if flags.ndim == 1 else np.all(flags, axis=1)
        every: BoolArray = np.logical_and.reduceat(of_atoms, self.starts[:-1])
        return every

    def largest(self, of_atoms: FloatArray) -> FloatArray:
        """Return the largest of the values of each structure's atoms."""
        if len(self) == 0:
            return np.zeros(0)
        most: FloatArray = np.maximum.reduceat(of_atoms, self.starts[:-1])
        return most

    def right_handed(self) -> Self:
        """Return them in right-handed cells, see `right_handed`."""
        left = np.linalg.det(self.cells) < 0
        if not left.any():
            return self
        swapped = [1, 0, 2]
        return replace(
            self,
            cells=np.where(left[:, None, None], self.cells[:, swapped], self.cells),
            pbc=np.where(left[:, None], self.pbc[:, swapped], self.pbc),
        )

    def compositions(self) -> list[Composition]:
        """Return the composition of each."""
        kinds = len(chemical_symbols)
        table = np.bincount(self.owners * kinds + self.numbers, minlength=len(self) * kinds)
        table = table.reshape(len(self), kinds)
        present = np.flatnonzero(table.any(axis=0))
        numbers = tuple(present.tolist())
        return [_composition(numbers, counts.tobytes()) for counts in table[:, present]]

    def count_force_components(self) -> int:
        """Return the number of force components that don't vanish by symmetry.

        In strained or compressed crystals most do; DFT leaves up to 1 meV/Å of these.
        """
        return int(np.count_nonzero(np.abs(self.forces) > 1e-3))  # noqa: PLR2004 - eV/Å


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
        numbers: IndexArray = np.unique(self.fingerprints, return_inverse=True)[1]
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


class EntryCollector:
    """Collects entries page by page."""

    def __init__(self) -> None:
        none = np.zeros(0, np.int32)
        empty = (np.zeros(0, np.int64), np.zeros(0, FINGERPRINT), np.zeros(0), *[none] * 4)
        self._pages: list[tuple[Any, ...]] = [empty]
        self._codes: tuple[dict[Any, int], ...] = ({}, {}, {}, {})

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
        values = (groups, compositions, config_types, sides)
        codes = map(_encode, self._codes, values)
        self._pages.append(
            (row_ids, np.frombuffer(fingerprints, FINGERPRINT), np.asarray(energies), *codes)
        )

    def entries(self) -> Entries:
        """Return the collected entries."""
        ids, prints, energies, *codes = map(np.concatenate, zip(*self._pages, strict=True))
        coded: list[Any] = []
        for known, of_entries in zip(self._codes, codes, strict=True):
            coded += (tuple(known), of_entries)
        return Entries(ids, prints, energies, *coded)


def _encode(known: dict[Any, int], values: Sequence[Hashable | None]) -> IntArray:
    """Return numbers for values in order of first appearance, -1 for None."""
    numbers = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    return np.array(numbers, dtype=np.int32)


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


def right_handed(atoms: Atoms) -> Atoms:
    """Return a structure in a right-handed cell, unchanged if it already has one.

    Pacemaker stops with "Extreme shape of unit cell" at a left-handed one. The same lattice with
    two of its vectors swapped is right-handed; positions, forces and stress are Cartesian and stay.
    """
    if np.linalg.det(atoms.cell.array) >= 0:
        return atoms
    swapped: Atoms = atoms.copy()
    swapped.set_cell(atoms.cell.array[[1, 0, 2]])
    swapped.pbc = atoms.pbc[[1, 0, 2]]
    return swapped


def name_rows(ids: Sequence[int]) -> str:
    """Return "row 3", or "rows 3, 4 and 7 more" if there are many."""
    shown = ", ".join(str(id_) for id_ in ids[:_SHOWN])
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"row{'s' if len(ids) > 1 else ''} {shown}{more}"


def convert_row(row: Any) -> StructureRow:
    """Copy an ``ase.db.row.AtomsRow``; the back ends differ in types, order and writability.

    Raise `ValueError` if positions or cell have a wrong shape.
    """
    energy, free_energy, forces = (row.get(name) for name in ("energy", "free_energy", "forces"))
    stress = _voigt(row.get("stress"))
    return StructureRow(
        id=int(row.id),
        numbers=np.array(row.numbers, dtype=np.int32).reshape(-1),
        positions=np.array(row.positions, dtype=np.float64).reshape(-1, 3),
        cell=np.array(row.cell, dtype=np.float64).reshape(3, 3),
        pbc=np.array(row.pbc, dtype=np.bool_).reshape(3),
        energy=None if energy is None else float(energy),
        free_energy=None if free_energy is None else float(free_energy),
        forces=None if forces is None else np.array(forces, dtype=np.float64),
        stress=stress,
        key_value_pairs={key: row.key_value_pairs[key] for key in sorted(row.key_value_pairs)},
        lost_stress=stress is None and row.get("stress") is not None,
    )


def stated_charge(value: object) -> float:
    """Return the charge that the value of a key states: ``1``, ``'1+'`` or ``'-2'``; else 0."""
    if isinstance(value, str):
        match = _CHARGE.fullmatch(value.strip())
        if match is None or not match[0]:
            return 0.0
        size = float(match["size"] or 1)
        return -size if "-" in (match["before"], match["after"]) else size
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return 0.0


def starts_of(counts: Sequence[int] | IndexArray) -> IndexArray:
    """Return the offset of each block, and the end of the last one."""
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


@lru_cache(_REMEMBERED)
def _composition(numbers: tuple[int, ...], counts: bytes) -> Composition:
    pairs = zip(numbers, np.frombuffer(counts, np.int64).tolist(), strict=True)
    return tuple((number, count) for number, count in pairs if count)


def _voigt(stress: Any) -> FloatArray | None:
    if stress is None:
        return None
    array = np.array(stress, dtype=np.float64)
    if array.size == 9:  # noqa: PLR2004 - a full tensor
        array = np.array(full_3x3_to_voigt_6_stress(array.reshape(3, 3)), dtype=np.float64)
    return array if array.shape == (VOIGT,) and bool(np.isfinite(array).all()) else None


def _concatenated(arrays: Sequence[Any], shape: tuple[int, ...], dtype: type) -> Any:
    return np.concatenate([np.zeros(shape, dtype), *arrays]).astype(dtype, copy=False)
