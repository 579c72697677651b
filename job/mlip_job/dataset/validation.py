"""Accept or reject rows, with reasons; stop if too many are rejected or the rest can't be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from ase.neighborlist import primitive_neighbor_list

from mlip_job.dataset.geometry import bound_distances, complete_cells, with_vacuum
from mlip_job.dataset.rows import Structures, UnreadableRow, name_rows
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.dataset.entries import Entries
    from mlip_job.dataset.rows import BoolArray, FloatArray, Row, StructureRow

COINCIDENCE = 1e-3
"""Å. Atoms closer than this are one atom stored twice: no bond is a hundredth of that short."""

_NEAR = 3.5
"""Å. Nearly every atom of condensed matter has a neighbour this close; looking there first saves
most of the time that a search up to the cutoff takes."""

_ISOLATED = 9.0
"""Å. An atom whose images are so far away has the energy of an isolated one, to a meV or so."""

MIN_VOLUME = 1e-6
"""Å³, of slabs Å² and of wires Å. Periodic cells below it are flat."""

MAX_LENGTH = 1e9
"""Å. Distances of atoms that are further out are lost in rounding."""


class Rejection(StrEnum):
    """Reason to reject a row; the value is shown to the user."""

    UNREADABLE = "values can't be decoded (an array of the wrong size, or JSON nested too deep)"
    SINGLE_PRECISION = "forces in single precision (float32): store them as float64"
    NO_ATOMS = "no atoms"
    UNKNOWN_ELEMENT = "atom of no known element"
    BAD_GEOMETRY = "positions or cell not finite, beyond 1e9 Å, or misshapen"
    FLAT_CELL = "periodic cell without volume, or periodic vectors without area or length"
    NO_ENERGY = "no energy"
    BAD_ENERGY = "energy not finite"
    NO_FORCES = "no forces"
    MISSHAPEN_FORCES = "forces misshapen"
    BAD_FORCES = "forces not finite"
    COINCIDING_ATOMS = "atoms at the same place"
    LONELY_ATOM = "atom without a neighbour within the cutoff"
    LARGE_FORCE = "force above max_force"


@dataclass(frozen=True, eq=False)
class Findings:
    """Results of a page: its structures with the energies to train on, and places of some.

    `free` are structures whose free energy that is. `references` are isolated atoms: they give
    reference energies, and are not trained on. `apart` are rejected structures of one element in
    which no atom has a neighbour within the cutoff: their energy per atom is nearly that of an
    isolated atom.
    """

    structures: Structures
    free: BoolArray
    rejected: dict[int, Rejection]
    references: list[int]
    apart: list[int]


def shape_problem(row: Row) -> Rejection | None:
    """Return why a row makes no structure, or None."""
    if isinstance(row, UnreadableRow):
        return Rejection.SINGLE_PRECISION if row.single_precision else Rejection.UNREADABLE
    if len(row.numbers) == 0:
        return Rejection.NO_ATOMS
    return None if row.positions.shape == (len(row.numbers), 3) else Rejection.BAD_GEOMETRY


def geometry_problem(row: Row, cutoff: float) -> Rejection | None:
    """Check a row without its labels; return the reason to reject it, or None.

    An atom without a neighbour within `cutoff` (Å) is a reason, even in a structure of one atom.
    """
    problem = shape_problem(row)
    if problem is not None or isinstance(row, UnreadableRow):
        return problem
    problem = _geometry_problems(Structures.of_rows([row])).get(0)
    return problem or _bond_problem(*_neighbours(row, cutoff))


class Validator:
    """Apply the rules to pages of rows; the first violated rule is a row's rejection.

    Every atom needs a neighbour within the cutoff (Å): pacemaker silently drops other structures.
    The energy to train on is the free energy, if preferred and stored. `max_force` is in eV/Å.
    """

    def __init__(self, cutoff: float, *, prefer_free_energy: bool, max_force: float | None) -> None:
        self._cutoff = cutoff
        self._prefer_free_energy = prefer_free_energy
        self._max_force = max_force
        self.min_distance = float("inf")
        """Å, the smallest distance of two atoms in an accepted row."""

    def examine(self, rows: Sequence[StructureRow]) -> Findings:
        """Check rows without a `shape_problem`.

        Distances are bounded for all structures at once, and measured only where this does not
        settle them, or may give the smallest distance so far.
        """
        free = np.array([row.free_energy is not None for row in rows], dtype=np.bool_)
        free &= self._prefer_free_energy
        energies = [row.free_energy if f else row.energy for row, f in zip(rows, free, strict=True)]
        structures = replace(
            Structures.of_rows(rows), energies=np.array(energies, dtype=np.float64)
        )
        rejected = _geometry_problems(structures)
        for index in np.flatnonzero(~np.isfinite(structures.energies)).tolist():
            missing = energies[index] is None
            rejected.setdefault(index, Rejection.NO_ENERGY if missing else Rejection.BAD_ENERGY)
        fit = ~self._have_bad_forces(structures)
        fit[list(rejected)] = False
        bonded, apart = bound_distances(with_vacuum(structures), fit, self._cutoff)
        found = Findings(structures, free, rejected, [], [])
        for index in np.argsort(apart, kind="stable").tolist():
            settled = bonded[index] and apart[index] >= self.min_distance
            if index not in rejected and not settled:
                self._measure(rows[index], index, found)
        return found

    def _measure(self, row: StructureRow, index: int, found: Findings) -> None:
        """Check distances and forces.

        A single atom is a reference atom if it is not periodic, or has no image within twice the
        cutoff (at most 9 Å): a crystal stretched just past the cutoff is not one. It needs no
        forces: they are zero by symmetry, and many codes don't write them.
        """
        has_neighbour, min_distance = _neighbours(row, self._cutoff)
        alone = not has_neighbour.any()
        if len(row.numbers) == 1 and alone:
            reach = max(self._cutoff, min(2 * self._cutoff, _ISOLATED))
            if not _neighbours(row, reach)[0].any():
                found.references.append(index)
                return
        problem = _bond_problem(has_neighbour, min_distance) or self._forces_problem(row)
        if problem is None:
            self.min_distance = min(self.min_distance, min_distance)
            return
        found.rejected[index] = problem
        if alone and len(set(row.numbers.tolist())) == 1:
            found.apart.append(index)

    def _have_bad_forces(self, structures: Structures) -> BoolArray:
        with np.errstate(all="ignore"):  # of forces that are not finite
            lengths = np.linalg.norm(structures.forces, axis=1)
        most = np.inf if self._max_force is None else self._max_force
        bad: BoolArray = ~structures.all_atoms(np.isfinite(lengths) & (lengths <= most))
        return bad

    def _forces_problem(self, row: StructureRow) -> Rejection | None:
        if row.forces is None:
            return Rejection.NO_FORCES
        if 2 * row.forces.size == 3 * len(row.numbers):
            return Rejection.SINGLE_PRECISION  # read as half as many numbers of twice the size
        if row.forces.shape != (len(row.numbers), 3):
            return Rejection.MISSHAPEN_FORCES
        if not np.isfinite(row.forces).all():
            return Rejection.BAD_FORCES
        largest = float(np.linalg.norm(row.forces, axis=1).max())
        return Rejection.LARGE_FORCE if largest > (self._max_force or np.inf) else None


def _geometry_problems(structures: Structures) -> dict[int, Rejection]:
    """Return the reason to reject structures for elements, positions or cell, by place."""
    known = (structures.numbers > 0) & (structures.numbers < len(chemical_symbols))
    inside = (np.abs(structures.cells) < MAX_LENGTH).all(axis=(1, 2))
    inside &= structures.all_atoms(np.abs(structures.positions) < MAX_LENGTH)
    with np.errstate(all="ignore"):  # of cells that are not finite
        cells = complete_cells(structures.cells, structures.pbc)
        flat = np.abs(np.linalg.det(cells)) < MIN_VOLUME
    problems: dict[int, Rejection] = {}
    for bad, reason in (
        (~structures.all_atoms(known), Rejection.UNKNOWN_ELEMENT),
        (~inside, Rejection.BAD_GEOMETRY),
        (flat, Rejection.FLAT_CELL),
    ):
        for index in np.flatnonzero(bad).tolist():
            problems.setdefault(index, reason)
    return problems


def _bond_problem(has_neighbour: BoolArray, min_distance: float) -> Rejection | None:
    if min_distance < COINCIDENCE:
        return Rejection.COINCIDING_ATOMS
    return None if has_neighbour.all() else Rejection.LONELY_ATOM


def _neighbours(row: StructureRow, cutoff: float) -> tuple[BoolArray, float]:
    """Return which atoms have a neighbour within the cutoff, and the smallest distance (Å)."""
    cell: FloatArray = complete_cells(row.cell[None], row.pbc[None])[0]
    has_neighbour = np.zeros(len(row.numbers), dtype=np.bool_)
    min_distance = float("inf")
    for reach in (min(_NEAR, cutoff), cutoff):
        indices, distances = primitive_neighbor_list("id", row.pbc, cell, row.positions, reach)
        has_neighbour[indices] = True
        min_distance = min(min_distance, float(distances.min(initial=np.inf)))
        if has_neighbour.all():
            break
    return has_neighbour, min_distance


def require_group_key(entries: Entries, group_by: str | None) -> None:
    """Raise `DataError` if no row has the grouping key, which is probably misspelt."""
    if group_by is not None and not entries.groups:
        raise DataError(
            f"no row has the key_value_pair {group_by!r} that dataset.group_by names",
            hint="check its spelling, or set group_by: null",
        )


def require_configured_elements(
    entries: Entries, configured: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the elements of the data, sorted.

    Raise `DataError` if `configured` is a list and the data has other elements: pacemaker ignores
    atoms of elements that its potential lacks, and one that the data lacks shifts its ZBL pairs.
    """
    found = entries.elements()
    if isinstance(configured, str):
        return found
    for element in found:
        if element not in configured:
            raise DataError(
                f"the data holds {element} ({name_rows(entries.rows_with(element))}), "
                "which training.elements lacks",
                hint="add it, set elements: auto, or exclude the rows with database.select",
            )
    absent = [element for element in configured if element not in found]
    if absent:
        examples = "; ".join(f"{e}: {name_rows(entries.rows_with(e)[:3])}" for e in found)
        raise DataError(
            f"training.elements names {', '.join(absent)}, which no structure to train on holds "
            f"(the data has {examples})",
            hint="take it out, set elements: auto, or select rows that hold it",
        )
    return found
