"""One row of an ASE database, as plain arrays."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
