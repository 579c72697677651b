"""Structures between the reader and the writers: a row, and columns of many rows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int32]]
IndexArray = np.ndarray[Any, np.dtype[np.int64]]
ObjectArray = np.ndarray[Any, np.dtype[np.object_]]

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
    energy: float | None
    free_energy: float | None
    forces: FloatArray | None
    stress: FloatArray | None
    key_value_pairs: dict[str, str | int | float | bool]
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
            free_energy=None,
            forces=self.forces[atoms],
            stress=None if np.isnan(stress).any() else stress,
            key_value_pairs=self.pairs[index],
        )

    def take(self, chosen: BoolArray) -> Self:
        """Return the structures for which `chosen` is true."""
        if chosen.all():
            return self
        counts = self.counts
        # Indices are faster than masks for rows of several numbers.
        places, atoms = np.flatnonzero(chosen), np.flatnonzero(np.repeat(chosen, counts))
        columns = {
            field.name: getattr(self, field.name).take(
                atoms if field.name in _OF_ATOMS else places, axis=0
            )
            for field in fields(self)
            if field.name != "starts"
        }
        return type(self)(starts=starts_of(counts[chosen]), **columns)

    def part(self, place: slice) -> Self:
        """Return a slice of the structures, as views."""
        starts = self.starts[place.start : place.stop + 1]
        atoms = slice(starts[0], starts[-1])
        columns = {
            field.name: getattr(self, field.name)[atoms if field.name in _OF_ATOMS else place]
            for field in fields(self)
            if field.name != "starts"
        }
        return type(self)(starts=starts - starts[0], **columns)

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
