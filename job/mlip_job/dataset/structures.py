"""Arrays of many structures, for reading, checking, storing and writing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import numpy as np

from mlip_job.dataset.row import BoolArray, FloatArray, IntArray, Row, StructureRow, UnreadableRow

if TYPE_CHECKING:
    from collections.abc import Sequence

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
