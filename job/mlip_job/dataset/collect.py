"""Read, validate and spool the selected rows in one pass, with statistics for later steps."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from mlip_job.dataset.entries import EntryCollector
from mlip_job.dataset.geometry import is_partly_periodic, with_vacuum
from mlip_job.dataset.labels import LabelChecks, names_method, note_labels_elsewhere
from mlip_job.dataset.rows import name_rows
from mlip_job.dataset.twins import TwinFinder, fingerprints
from mlip_job.dataset.validation import Rejection, Validator, shape_problem
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlip_job.config.job import DatasetConfig
    from mlip_job.dataset.database import Selected, StructureDatabase
    from mlip_job.dataset.entries import Entries, Spool
    from mlip_job.dataset.rows import Row, StructureRow, Structures

_REPORT_EVERY = 10000
"""Rows between progress messages."""

_UNLABELLED_READ = 10
"""Rows without energy, and without forces, in which labels under other names are looked for."""


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
    min_distance: float = float("inf")

    @property
    def rejected_count(self) -> int:
        """Number of rejected rows."""
        return sum(len(rows) for rows in self.rejected.values())

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
    collector = _Collector(source, dataset, spool, cutoff, most=len(selected.ids))
    read = 0
    for page in source.pages(selected):
        before, read = read, read + len(page)
        collector.add(page)
        if read // _REPORT_EVERY > before // _REPORT_EVERY:
            progress(f"read {read} of {len(selected.ids)} rows")
    if read == 0:
        raise _nothing_selected(source, select)
    found = collector.finish(source)
    progress(
        f"{found.selected} rows: {len(found.entries)} accepted, {found.rejected_count} "
        f"rejected, {len(found.references)} isolated atoms"
    )
    return found


class _Collector:
    """Fills a `Collected` page by page."""

    def __init__(
        self,
        source: StructureDatabase,
        dataset: DatasetConfig,
        spool: Spool,
        cutoff: float,
        *,
        most: int,
    ) -> None:
        self._found = Collected(source.describe(), source.slow_because)
        self._validator = Validator(
            cutoff,
            prefer_free_energy=dataset.energy == "free_energy",
            max_force=dataset.max_force,
        )
        self._dataset = dataset
        self._spool = spool
        self._entries = EntryCollector(most)
        self._twins = TwinFinder()
        self._labels = LabelChecks(cutoff, dataset.max_force)

    def add(self, rows: Sequence[Row]) -> None:
        """Accept or reject rows."""
        found = self._found
        whole: list[StructureRow] = []
        for row in rows:
            problem = shape_problem(row)
            if problem is not None:
                found.rejected[problem].append(row.id)
            else:
                whole.append(row)  # type: ignore[arg-type]  # an UnreadableRow has a problem
        findings = self._validator.examine(whole)
        structures = findings.structures
        accepted = np.ones(len(structures), dtype=np.bool_)
        accepted[[*findings.rejected, *findings.references]] = False
        for index, reason in findings.rejected.items():
            found.rejected[reason].append(whole[index].id)
        for index in findings.references:
            self._add_reference(structures, index)
        for index in findings.apart:
            element, energy = _first_element(structures, index), float(structures.energies[index])
            candidate = whole[index].id, energy / len(whole[index].numbers)
            found.apart[element] = max(
                candidate, found.apart.get(element, candidate), key=itemgetter(1)
            )
        found.lost_stresses += [
            row.id for row, kept in zip(whole, accepted, strict=True) if kept and row.lost_stress
        ]
        found.free_energies += int(np.count_nonzero(accepted & findings.free))
        if accepted.any():
            self._keep(structures.take(accepted))

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

    def _add_reference(self, structures: Structures, index: int) -> None:
        id_ = int(structures.ids[index])
        self._labels.add_charge(id_, structures.pairs[index])
        self._found.references.append(
            IsolatedAtom(id_, _first_element(structures, index), float(structures.energies[index]))
        )

    def _keep(self, structures: Structures) -> None:
        """Spool accepted structures; ids and fingerprints are those of the rows as stored."""
        found = self._found
        names = [
            {
                "group": _text(pairs, self._dataset.group_by),
                "config_type": _text(pairs, self._dataset.config_type),
            }
            for pairs in structures.pairs
        ]
        padded = with_vacuum(structures)
        self._labels.add(padded)
        self._spool.append(replace(padded, pairs=np.array(names, np.object_)))
        self._entries.add(
            row_ids=structures.ids,
            fingerprints=fingerprints(structures),
            energies=structures.energies,
            groups=[name["group"] for name in names],
            compositions=structures.compositions(),
            config_types=[name["config_type"] for name in names],
            sides=[_text(pairs, self._dataset.split_key) for pairs in structures.pairs],
        )
        self._twins.add(structures)
        partly = is_partly_periodic(structures.pbc)
        found.partly_periodic += structures.ids[partly].tolist()
        lacking = structures.pbc.all(axis=1) & np.isnan(structures.stresses[:, 0])
        found.without_stress += structures.ids[lacking].tolist()
        found.dropped_stresses += int(np.count_nonzero(~np.isnan(structures.stresses[partly, 0])))
        found.force_components += structures.count_force_components()
        x, y, z = np.square(structures.forces).T
        found.max_force = max(found.max_force, float(np.sqrt((x + y + z).max())))


def _first_element(structures: Structures, index: int) -> str:
    return str(chemical_symbols[structures.numbers[structures.starts[index]]])


def _text(pairs: Mapping[str, object], key: str | None) -> str | None:
    value = pairs.get(key) if key is not None else None
    if isinstance(value, float):  # pandas writes 7 as 7.0, and nothing as NaN
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value is None or value == "" else str(value)


def _nothing_selected(source: StructureDatabase, select: str) -> DataError:
    statuses = source.count_by_status()
    found = ", ".join(f"{status}: {count}" for status, count in statuses.items())
    return DataError(
        f"{source.describe()}: no row is selected by {select!r}; "
        + (f"rows by status: {found}" if statuses else "the database has no rows"),
        hint="check database.select" if statuses else None,
    )
