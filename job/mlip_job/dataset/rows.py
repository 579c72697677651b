"""One row of an ASE database, as plain arrays."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import numpy as np
from ase import Atoms
from ase.stress import full_3x3_to_voigt_6_stress

if TYPE_CHECKING:
    from collections.abc import Sequence


FloatArray = np.ndarray[Any, np.dtype[np.float64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int32]]

_SHOWN = 10
"""Row ids in a message."""


CHARGE_KEYS = ("total_charge", "net_charge", "charge_state", "charge")
"""Keys, in lower case, that name the charge of a structure; ASE reserves ``charge`` itself."""

_CHARGE = re.compile(r"(?P<before>[+-]?)(?P<size>\d+(?:\.\d+)?)?(?P<after>[+-]?)")


@dataclass(frozen=True, eq=False)
class StructureRow:
    """One labelled structure as stored, without defaults.

    Attributes
    ----------
    id
        Row id in the database.
    numbers
        Atomic numbers, shape (n,).
    positions
        Å, shape (n, 3).
    cell
        Å, shape (3, 3), one vector per row.
    pbc
        Periodicity along the three vectors, shape (3,).
    energy, free_energy
        eV, or None if the row has none.
    forces
        eV/Å in whatever shape is stored, (n, 3) if all is well, or None. They are those of the
        calculator: constraints of the structure don't set them to zero.
    stress
        eV/Å³ in Voigt order (xx, yy, zz, yz, xz, xy), shape (6,), or None where none is stored or
        the stored value is invalid.
    key_value_pairs
        The row's own keys.
    charge
        Elementary charges, as the row says: ASE's initial charges added up, or one of the keys
        `CHARGE_KEYS`.
    lost_stress
        Whether the stored stress is invalid: wrong size, single precision or not finite.
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
    charge: float = 0.0
    lost_stress: bool = False

    def atoms(self) -> Atoms:
        """Return the structure without labels, in a right-handed cell."""
        return right_handed(
            Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)
        )


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


@dataclass(frozen=True)
class UnreadableRow:
    """A row that ASE can't decode, such as one whose forces are no multiple of three numbers.

    Attributes
    ----------
    id
        Row id in the database.
    single_precision
        Whether its forces are stored as float32, which ASE reads as half as many numbers.
    """

    id: int
    single_precision: bool = False


Row = StructureRow | UnreadableRow


def name_rows(ids: Sequence[int]) -> str:
    """Return "row 3", or "rows 3, 4 and 7 more" if there are many."""
    shown = ", ".join(str(id_) for id_ in ids[:_SHOWN])
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"row{'s' if len(ids) > 1 else ''} {shown}{more}"


def convert_row(row: Any) -> StructureRow:
    """Copy an ``ase.db.row.AtomsRow``; the back ends differ in types, order and writability.

    Raises
    ------
    ValueError
        If positions or cell have a wrong shape.
    """
    numbers = np.array(row.numbers, dtype=np.int32).reshape(-1)
    forces = row.get("forces")
    stress = _voigt(row.get("stress"))
    return StructureRow(
        id=int(row.id),
        numbers=numbers,
        positions=np.array(row.positions, dtype=np.float64).reshape(-1, 3),
        cell=np.array(row.cell, dtype=np.float64).reshape(3, 3),
        pbc=np.array(row.pbc, dtype=np.bool_).reshape(3),
        energy=_number(row.get("energy")),
        free_energy=_number(row.get("free_energy")),
        forces=None if forces is None else np.array(forces, dtype=np.float64),
        stress=stress,
        key_value_pairs={key: row.key_value_pairs[key] for key in sorted(row.key_value_pairs)},
        charge=_charge(row),
        lost_stress=stress is None and row.get("stress") is not None,
    )


def _charge(row: Any) -> float:
    given = (value for key, value in row.key_value_pairs.items() if key.lower() in CHARGE_KEYS)
    stated = [charge for charge in map(stated_charge, given) if charge]
    initial = row.get("initial_charges")
    return stated[0] if stated else 0.0 if initial is None else float(np.sum(initial))


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


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _voigt(stress: Any) -> FloatArray | None:
    if stress is None:
        return None
    array = np.array(stress, dtype=np.float64)
    if array.size == 9:  # noqa: PLR2004 - a full tensor
        array = np.array(full_3x3_to_voigt_6_stress(array.reshape(3, 3)), dtype=np.float64)
    return array if array.shape == (6,) and bool(np.isfinite(array).all()) else None


IndexArray = np.ndarray[Any, np.dtype[np.int64]]
ObjectArray = np.ndarray[Any, np.dtype[np.object_]]

VOIGT = 6
"""Components of a stress."""

_OF_ATOMS = ("numbers", "positions", "forces")
_ENERGIES = ("energy", "free_energy")


@dataclass(frozen=True, eq=False)
class Structures:
    """Structures with forces, in the order of their ids.

    The arrays of the atoms follow each other: those of structure i are at
    ``starts[i]:starts[i + 1]``.

    Attributes
    ----------
    ids
        Row ids in the database.
    starts
        Offset of the atoms of each structure, and the end: one more than structures.
    numbers
        Atomic numbers.
    positions, forces
        Å and eV/Å, shape (atoms, 3).
    cells
        Å, shape (structures, 3, 3), one vector per row.
    pbc
        Shape (structures, 3).
    energies, free_energies
        eV; valid only where `has_energy` and `has_free_energy` are true.
    stresses
        eV/Å³ in Voigt order, shape (structures, 6). NaN if there is none.
    pairs
        The key_value_pairs of each; of accepted structures, and in the files of a dataset, only
        ``group`` and ``config_type``.
    """

    ids: IndexArray
    starts: IndexArray
    numbers: IntArray
    positions: FloatArray
    forces: FloatArray
    cells: FloatArray
    pbc: BoolArray
    energies: FloatArray
    has_energy: BoolArray
    free_energies: FloatArray
    has_free_energy: BoolArray
    stresses: FloatArray
    pairs: ObjectArray

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.ids)

    @property
    def counts(self) -> IndexArray:
        """Number of atoms of each."""
        return np.diff(self.starts)

    @classmethod
    def of_rows(cls, rows: Sequence[StructureRow]) -> Self:
        """Join complete rows; see `is_complete`."""
        energies, free_energies = ([getattr(row, name) for row in rows] for name in _ENERGIES)
        stresses = [np.full(VOIGT, np.nan) if row.stress is None else row.stress for row in rows]
        return cls(
            ids=np.array([row.id for row in rows], dtype=np.int64),
            starts=starts_of([len(row.numbers) for row in rows]),
            numbers=_concatenated([row.numbers for row in rows], (0,), np.int32),
            positions=_concatenated([row.positions for row in rows], (0, 3), np.float64),
            forces=_concatenated([row.forces for row in rows], (0, 3), np.float64),
            cells=np.array([row.cell for row in rows], dtype=np.float64).reshape(-1, 3, 3),
            pbc=np.array([row.pbc for row in rows], dtype=np.bool_).reshape(-1, 3),
            energies=np.array(energies, dtype=np.float64),
            has_energy=present(energies),
            free_energies=np.array(free_energies, dtype=np.float64),
            has_free_energy=present(free_energies),
            stresses=np.array(stresses, dtype=np.float64).reshape(-1, VOIGT),
            pairs=np.array([row.key_value_pairs for row in rows], dtype=np.object_),
        )

    def row(self, index: int) -> StructureRow:
        """Return one structure."""
        atoms = slice(self.starts[index], self.starts[index + 1])
        stress = self.stresses[index]
        return StructureRow(
            id=int(self.ids[index]),
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=self.cells[index],
            pbc=self.pbc[index],
            energy=float(self.energies[index]) if self.has_energy[index] else None,
            free_energy=float(self.free_energies[index]) if self.has_free_energy[index] else None,
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

    def all_atoms(self, flags: BoolArray) -> BoolArray:
        """Return a mask of structures with all atoms flagged; an atom may have several flags."""
        if len(self) == 0 or flags.all():
            return np.ones(len(self), dtype=np.bool_)
        of_atoms = flags if flags.ndim == 1 else np.all(flags, axis=1)
        every: BoolArray = np.logical_and.reduceat(of_atoms, self.starts[:-1])
        return every

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

    def right_handed(self) -> Self:
        """Return them in right-handed cells.

        Pacemaker stops with "Extreme shape of unit cell" at a left-handed one. The same lattice
        with two of its vectors swapped is right-handed; positions, forces and stress are
        Cartesian and stay.
        """
        left = np.linalg.det(self.cells) < 0
        if not left.any():
            return self
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("cells", "pbc"):
            columns[name] = columns[name].copy()
            columns[name][left] = columns[name][left][:, [1, 0, 2]]
        return type(self)(**columns)


def is_complete(row: Row) -> TypeGuard[StructureRow]:
    """Return whether a row has atoms, and arrays of the right shape."""
    if isinstance(row, UnreadableRow):
        return False
    atoms = len(row.numbers)
    return (
        atoms > 0
        and row.positions.shape == (atoms, 3)
        and row.forces is not None
        and row.forces.shape == (atoms, 3)
    )


def starts_of(counts: Sequence[int] | IndexArray) -> IndexArray:
    """Return the offset of each block, and the end of the last one."""
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def present(values: Sequence[float | None]) -> BoolArray:
    """Return a mask of the values that are not None."""
    return np.array([value is not None for value in values], dtype=np.bool_)


def _concatenated(arrays: Sequence[Any], shape: tuple[int, ...], dtype: type) -> Any:
    return np.concatenate([np.zeros(shape, dtype), *arrays]).astype(dtype, copy=False)
