"""Read the selected rows in one pass: reject each with a reason, or accept and spool it.

The pass fails if too many rows are rejected, or what is left can't be used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from mlip_job.dataset.geometry import (
    bound_distances,
    complete_cells,
    is_partly_periodic,
    nearest_neighbours,
    with_vacuum,
)
from mlip_job.dataset.labels import LabelChecks, names_method, note_labels_elsewhere
from mlip_job.dataset.rows import EntryCollector, Structures, UnreadableRow, name_rows
from mlip_job.dataset.twins import TwinFinder, fingerprints
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlip_job.config.job import DatasetConfig
    from mlip_job.dataset.database import Selected, StructureDatabase
    from mlip_job.dataset.rows import BoolArray, Entries, FloatArray, Row, Spool, StructureRow

COINCIDENCE = 1e-3
"""Å. Atoms closer than this are one atom stored twice: no bond is a hundredth of that short."""

_ISOLATED = 9.0
"""Å. An atom whose images are so far away has the energy of an isolated one, to a meV or so."""

MIN_VOLUME = 1e-6
"""Å³, of slabs Å² and of wires Å. Periodic cells below it are flat."""

MAX_LENGTH = 1e9
"""Å. Distances of atoms that are further out are lost in rounding."""

_REPORT_EVERY = 10000
"""Rows between progress messages."""

_UNLABELLED_READ = 10
"""Rows without energy, and without forces, in which labels under other names are looked for."""


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


class IsolatedAtom(NamedTuple):
    """A row of one isolated atom; energy in eV."""

    row_id: int
    element: str
    energy: float


@dataclass
class Collected:
    """Result of one pass over the database; rows are given by their ids.

    `references` are isolated atoms, of which `ions` are charged: their energy is no reference.
    `apart` has by element a rejected row whose atoms have no neighbour within the cutoff, and its
    energy in eV/atom: the highest, so that of the atoms furthest apart. `without_stress` are
    accepted rows that are periodic in all directions, `partly_periodic` slabs and wires, of which
    `dropped_stresses` had a stress. Forces are in eV/Å, distances in Å, of accepted rows.
    """

    database: str
    slow_because: str | None
    entries: Entries = field(init=False)
    references: list[IsolatedAtom] = field(default_factory=list)
    ions: list[int] = field(default_factory=list)
    apart: dict[str, tuple[int, float]] = field(default_factory=dict)
    lost_stresses: list[int] = field(default_factory=list)
    without_stress: list[int] = field(default_factory=list)
    partly_periodic: list[int] = field(default_factory=list)
    dropped_stresses: int = 0
    elsewhere_note: str | None = None
    label_notes: list[str] = field(default_factory=list)
    rejected: defaultdict[Rejection, list[int]] = field(default_factory=lambda: defaultdict(list))
    free_energies: int = 0
    force_components: int = 0
    max_force: float = 0.0
    min_distance: float = math.inf

    @property
    def rejected_count(self) -> int:
        """Number of rejected rows."""
        return sum(map(len, self.rejected.values()))

    @property
    def selected(self) -> int:
        """Number of rows read."""
        return len(self.entries) + len(self.references) + self.rejected_count

    def require_few_rejections(self, max_fraction: float) -> None:
        """Raise `DataError` if more than `max_fraction` of the rows are rejected, or all are."""
        candidates = self.selected - len(self.references)
        reasons = "; ".join(
            f"{reason}: {len(rows)} ({name_rows(rows)})"
            for reason, rows in sorted(self.rejected.items())
        )
        if self.rejected_count > max_fraction * candidates:
            raise DataError(
                f"{self.rejected_count} of {candidates} rows can't be trained on, more than "
                f"dataset.max_rejected_fraction ({max_fraction:g}) allows: {reasons}"
                + (f"; {self.elsewhere_note}" if self.elsewhere_note else ""),
                hint="correct them, exclude them with database.select, "
                "or raise dataset.max_rejected_fraction",
            )
        if len(self.entries) == 0:
            raise DataError(
                f"nothing is left to train on: {len(self.references)} isolated atoms"
                + (f"; {reasons}" if reasons else ""),
                hint="check database.select and training.cutoff",
            )

    def require_stresses(self) -> None:
        """Raise `DataError` if periodic rows lack the stress that is to be fitted."""
        if self.without_stress:
            raise DataError(
                f"training.stress_weight is set, but {len(self.without_stress)} of "
                f"{len(self.entries)} rows are periodic and have no stress "
                f"({name_rows(self.without_stress)})",
                hint="compute it, exclude these rows with database.select, or set "
                "training.stress_weight: 0",
            )


def collect_rows(
    source: StructureDatabase,
    selected: Selected,
    dataset: DatasetConfig,
    *,
    select: str,
    cutoff: float,
    spool: Spool,
    progress: Callable[[str], None],
) -> Collected:
    """Read, validate and spool the selected rows.

    Raise `DatabaseError` if the database fails; `DataError` if no row is selected.
    """
    collector = _Collector(source, dataset, spool, cutoff)
    read = 0
    for page in source.pages(selected):
        before, read = read, read + len(page)
        collector.add(page)
        if read // _REPORT_EVERY > before // _REPORT_EVERY:
            progress(f"read {read} of {len(selected.ids)} rows")
    if read == 0:
        statuses = source.count_by_status()
        counts = ", ".join(f"{status}: {count}" for status, count in statuses.items())
        raise DataError(
            f"{source.describe()}: no row is selected by {select!r}; "
            + (f"rows by status: {counts}" if statuses else "the database has no rows"),
            hint="check database.select" if statuses else None,
        )
    found = collector.finish(source)
    progress(
        f"{found.selected} rows: {len(found.entries)} accepted, {found.rejected_count} "
        f"rejected, {len(found.references)} isolated atoms"
    )
    return found


@dataclass(frozen=True)
class Findings:
    """Results of a page; energies are those to train on.

    `structures` and `accepted` are the same rows, in columns and one by one. `references` are
    isolated atoms, which give reference energies and are not trained on. `apart` are rejected rows
    of one element in which no atom has a neighbour within the cutoff: their energy per atom is
    nearly that of an isolated atom.
    """

    structures: Structures
    accepted: list[StructureRow]
    rejected: dict[int, Rejection]
    references: list[StructureRow]
    apart: list[StructureRow]


class Validator:
    """Apply the rules to rows; the first violated rule is a row's rejection.

    Every atom needs a neighbour within the cutoff (Å): pacemaker silently drops other structures.
    The energy to train on is the free energy, if preferred and stored. `max_force` is in eV/Å.
    """

    def __init__(self, cutoff: float, *, prefer_free_energy: bool, max_force: float | None) -> None:
        self._cutoff = cutoff
        self._prefer_free_energy = prefer_free_energy
        self._max_force = math.inf if max_force is None else max_force
        self.min_distance = math.inf
        """Å, the smallest distance of two atoms in an accepted row."""

    def examine(self, rows: Sequence[Row]) -> Findings:
        """Check a page: most rows all at once, the others one by one."""
        rejected: dict[int, Rejection] = {}
        whole: list[StructureRow] = []
        for row in rows:
            problem = shape_problem(row)
            if problem is not None:
                rejected[row.id] = problem
            elif not isinstance(row, UnreadableRow):
                prefer = self._prefer_free_energy and row.free_energy is not None
                whole.append(replace(row, energy=row.free_energy) if prefer else row)
        structures = Structures.of_rows(whole)
        fit, apart = self._check_together(structures)
        for index in np.argsort(apart, kind="stable").tolist():
            if fit[index] and apart[index] < self.min_distance:
                nearest = float(nearest_neighbours(whole[index], self._cutoff).min())
                self.min_distance = min(self.min_distance, nearest)
        found = Findings(structures, [], rejected, [], [])
        for index, row in enumerate(whole):
            fit[index] = fit[index] or self._is_fit(row, found)
            if fit[index]:
                found.accepted.append(row)
        return replace(found, structures=structures.take(fit))

    def _check_together(self, structures: Structures) -> tuple[BoolArray, FloatArray]:
        """Return which structures surely fit, and lower bounds of their shortest distances, Å."""
        inside_cells = (np.abs(structures.cells) < MAX_LENGTH).all(axis=(1, 2))
        structures = with_vacuum(structures)
        known = (structures.numbers > 0) & (structures.numbers < len(chemical_symbols))
        inside = np.abs(structures.positions).max(axis=1) < MAX_LENGTH
        with np.errstate(all="ignore"):  # of values that are not finite
            moderate = np.linalg.norm(structures.forces, axis=1) <= self._max_force
            moderate &= np.isfinite(structures.forces).all(axis=1)
            volumes = np.abs(np.linalg.det(structures.cells))
        usual = structures.all_atoms(known & inside & moderate) & np.isfinite(structures.energies)
        usual &= inside_cells
        directions = structures.pbc.sum(axis=1)
        usual &= (directions == 0) | ((directions == 3) & (volumes >= MIN_VOLUME))  # noqa: PLR2004
        bonded, apart = bound_distances(structures, usual, self._cutoff)
        return usual & bonded & (apart >= COINCIDENCE), apart

    def _is_fit(self, row: StructureRow, found: Findings) -> bool:
        """Check a row; if it is not fit to train on, add it to the findings.

        A single atom is a reference atom if it is not periodic, or has no image within twice the
        cutoff (at most 9 Å): a crystal stretched just past the cutoff is not one. It needs no
        forces: they are zero by symmetry, and many codes don't write them.
        """
        problem = _cell_problem(row)
        if problem is None and not math.isfinite(row.energy or 0.0):
            problem = Rejection.BAD_ENERGY
        if problem is None and row.energy is None:
            problem = Rejection.NO_ENERGY
        if problem is not None:
            found.rejected[row.id] = problem
            return False
        nearest = nearest_neighbours(row, self._cutoff)
        alone = bool(np.isinf(nearest).all())
        if alone and len(row.numbers) == 1:
            reach = max(self._cutoff, min(2 * self._cutoff, _ISOLATED))
            if np.isinf(nearest_neighbours(row, reach)).all():
                found.references.append(row)
                return False
        problem = _bond_problem(nearest) or self._forces_problem(row)
        if problem is None:
            self.min_distance = min(self.min_distance, float(nearest.min()))
            return True
        found.rejected[row.id] = problem
        if alone and len(set(row.numbers.tolist())) == 1:
            found.apart.append(row)
        return False

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
        return Rejection.LARGE_FORCE if largest > self._max_force else None


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
    return _cell_problem(row) or _bond_problem(nearest_neighbours(row, cutoff))


def _cell_problem(row: StructureRow) -> Rejection | None:
    if not ((row.numbers > 0) & (row.numbers < len(chemical_symbols))).all():
        return Rejection.UNKNOWN_ELEMENT
    lengths = np.abs(np.vstack([row.positions, row.cell]))
    if not (lengths < MAX_LENGTH).all():
        return Rejection.BAD_GEOMETRY
    volume = np.abs(np.linalg.det(complete_cells(row.cell[None], row.pbc[None])[0]))
    return Rejection.FLAT_CELL if volume < MIN_VOLUME else None


def _bond_problem(nearest: FloatArray) -> Rejection | None:
    if nearest.min() < COINCIDENCE:
        return Rejection.COINCIDING_ATOMS
    return Rejection.LONELY_ATOM if np.isinf(nearest).any() else None


class _Collector:
    """Fills a `Collected` page by page."""

    def __init__(
        self, source: StructureDatabase, dataset: DatasetConfig, spool: Spool, cutoff: float
    ) -> None:
        self._found = Collected(source.describe(), source.slow_because)
        free = dataset.energy == "free_energy"
        self._validator = Validator(cutoff, prefer_free_energy=free, max_force=dataset.max_force)
        self._dataset = dataset
        self._spool = spool
        self._entries = EntryCollector()
        self._twins = TwinFinder()
        self._labels = LabelChecks(cutoff, dataset.max_force)

    def add(self, rows: Sequence[Row]) -> None:
        """Accept or reject rows."""
        found, page = self._found, self._validator.examine(rows)
        for id_, reason in page.rejected.items():
            found.rejected[reason].append(id_)
        for row in page.references:
            self._labels.add_charge(row.id, row.key_value_pairs)
            found.references.append(IsolatedAtom(row.id, *_element_and_energy(row)))
        for row in page.apart:
            element, energy = _element_and_energy(row)
            if element not in found.apart or energy > found.apart[element][1]:
                found.apart[element] = row.id, energy
        found.lost_stresses += [row.id for row in page.accepted if row.lost_stress]
        if self._dataset.energy == "free_energy":
            found.free_energies += sum(row.free_energy is not None for row in page.accepted)
        if page.accepted:
            self._keep(page.structures)

    def finish(self, source: StructureDatabase) -> Collected:
        """Return the result, with what needs all rows, or some of them again."""
        found = self._found
        pages = (structures for structures, _ in self._spool)
        found.entries = self._twins.join(self._entries.entries(), pages)
        found.min_distance = self._validator.min_distance
        self._labels.charges = {**dict(source.charges()), **self._labels.charges}
        found.references.sort()
        found.ions = [a.row_id for a in found.references if a.row_id in self._labels.charges]
        for rows in found.rejected.values():
            rows.sort()
        unlabelled = [
            row
            for reason in (Rejection.NO_ENERGY, Rejection.NO_FORCES)
            for row in found.rejected.get(reason, [])[:_UNLABELLED_READ]
        ]
        places = (place for row in unlabelled for place in source.labels_elsewhere(row))
        found.elsewhere_note = note_labels_elsewhere(places)
        found.label_notes = self._labels.notes(
            source.methods(), source.data_values(names_method), found.elsewhere_note
        )
        return found

    def _keep(self, structures: Structures) -> None:
        """Spool accepted structures; ids and fingerprints are those of the rows as stored."""
        found, dataset = self._found, self._dataset
        groups, config_types, sides = (
            [_text(pairs, key) for pairs in structures.pairs]
            for key in (dataset.group_by, dataset.config_type, dataset.split_key)
        )
        padded = with_vacuum(structures)
        self._labels.add(padded)
        names = zip(groups, config_types, strict=True)
        pairs = [{"group": group, "config_type": config_type} for group, config_type in names]
        self._spool.append(replace(padded, pairs=np.array(pairs, np.object_)))
        self._entries.add(
            row_ids=structures.ids,
            fingerprints=fingerprints(structures),
            energies=structures.energies,
            groups=groups,
            compositions=structures.compositions(),
            config_types=config_types,
            sides=sides,
        )
        self._twins.add(structures)
        partly = is_partly_periodic(structures.pbc)
        has_stress = ~np.isnan(structures.stresses[:, 0])
        found.partly_periodic += structures.ids[partly].tolist()
        found.without_stress += structures.ids[structures.pbc.all(axis=1) & ~has_stress].tolist()
        found.dropped_stresses += int(np.count_nonzero(partly & has_stress))
        found.force_components += structures.count_force_components()
        largest = np.linalg.norm(structures.forces, axis=1).max()
        found.max_force = max(found.max_force, float(largest))


def _element_and_energy(row: StructureRow) -> tuple[str, float]:
    """Return the first element of a row, and its energy (eV/atom)."""
    return str(chemical_symbols[row.numbers[0]]), float(row.energy or 0.0) / len(row.numbers)


def _text(pairs: Mapping[str, object], key: str | None) -> str | None:
    value = pairs.get(key) if key is not None else None
    if isinstance(value, float):  # pandas writes 7 as 7.0, and nothing as NaN
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None or value == "" else str(value)
