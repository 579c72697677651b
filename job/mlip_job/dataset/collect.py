"""Read, validate and spool the selected rows in one pass, with statistics for later steps."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from mlip_job.dataset.entries import Entry, EntryCollector
from mlip_job.dataset.geometry import ProximityFinder, is_partly_periodic, with_vacuum
from mlip_job.dataset.labels import (
    have_huge_forces,
    have_net_forces,
    have_zeroed_forces,
    names_method,
    note_charged_cells,
    note_methods,
)
from mlip_job.dataset.references import compositions
from mlip_job.dataset.rows import CHARGE_KEYS, Structures, UnreadableRow, is_complete, stated_charge
from mlip_job.dataset.twins import TwinFinder, fingerprint, fingerprints
from mlip_job.dataset.validation import (
    Rejection,
    RowRules,
    choose_energies,
    count_force_components,
    examine,
    have_labels,
    have_sound_geometry,
    largest_force,
)
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlip_job.config.job import DatasetConfig
    from mlip_job.dataset.database import Selected, StructureDatabase
    from mlip_job.dataset.entries import Entries, Spool
    from mlip_job.dataset.rows import BoolArray, Row, StructureRow
    from mlip_job.dataset.validation import Finding

_REPORT_EVERY = 10000
"""Rows between progress messages."""

_UNLABELLED_READ = 10
"""Rows without energy, and without forces, in which labels under other names are looked for."""


@dataclass
class Collected:
    """Result of one pass over the database; rows are given by their ids.

    Attributes
    ----------
    database
        URL without secrets.
    slow_because
        Why the rows were read through ASE, if they were.
    entries
        One per accepted row, in the order of the ids and of the spool.
    references
        Isolated atoms.
    ions
        Those of them that are charged: their energy is no reference.
    apart
        By element, a rejected row whose atoms have no neighbour within the cutoff, and its energy
        in eV/atom: the highest, so that of the atoms furthest apart.
    lost_stresses
        Rows whose stress could not be read; they are accepted without.
    partly_periodic
        Accepted slabs and wires.
    dropped_stresses
        Number of these that had a stress, which is dropped.
    zeroed_forces, huge_forces
        Accepted rows that are noted, see `implausible`; huge forces only without a configured
        limit.
    labels_elsewhere
        Other names under which rows without energy or forces may have them.
    method_note
        Note on rows that were computed in several ways.
    rejected
        By reason.
    free_energies
        Number of accepted rows whose free energy was taken.
    force_components
        Of the accepted rows, see `count_force_components`.
    max_force
        eV/Å, of the accepted rows.
    min_distance
        Å, likewise.
    """

    database: str
    slow_because: str | None
    entries: Entries = field(init=False)
    references: list[Entry] = field(default_factory=list)
    ions: list[int] = field(default_factory=list)
    apart: dict[str, tuple[int, float]] = field(default_factory=dict)
    lost_stresses: list[int] = field(default_factory=list)
    partly_periodic: list[int] = field(default_factory=list)
    dropped_stresses: int = 0
    zeroed_forces: list[int] = field(default_factory=list)
    missing_forces: list[int] = field(default_factory=list)
    net_forces: list[int] = field(default_factory=list)
    huge_forces: list[int] = field(default_factory=list)
    charge_note: str | None = None
    labels_elsewhere: list[str] = field(default_factory=list)
    method_note: str | None = None
    rejected: defaultdict[Rejection, list[int]] = field(default_factory=lambda: defaultdict(list))
    free_energies: int = 0
    force_components: int = 0
    max_force: float = 0.0
    min_distance: float = float("inf")

    @property
    def neutral_references(self) -> list[Entry]:
        """The isolated atoms that give reference energies."""
        return [entry for entry in self.references if entry.row_id not in self.ions]

    @property
    def rejected_count(self) -> int:
        """Number of rejected rows."""
        return sum(len(rows) for rows in self.rejected.values())

    @property
    def selected(self) -> int:
        """Number of rows read."""
        return len(self.entries) + len(self.references) + self.rejected_count


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

    Raises
    ------
    DatabaseError
        If the database fails.
    DataError
        If no row is selected.
    """
    found = Collected(source.describe(), source.slow_because)
    collector = _Collector(found, dataset, spool, cutoff, most=len(selected.ids))
    read = 0
    for page in source.pages(selected):
        before, read = read, read + len(page)
        collector.add(page)
        if read // _REPORT_EVERY > before // _REPORT_EVERY:
            progress(f"read {read} of {len(selected.ids)} rows")
    if read == 0:
        raise _nothing_selected(source, select)
    collector.finish(source)
    progress(
        f"{found.selected} rows: {len(found.entries)} accepted, {found.rejected_count} "
        f"rejected, {len(found.references)} isolated atoms"
    )
    return found


class _Collector:
    """Fills a `Collected` page by page."""

    def __init__(
        self, found: Collected, dataset: DatasetConfig, spool: Spool, cutoff: float, *, most: int
    ) -> None:
        self._found = found
        self._rules = RowRules(
            cutoff=cutoff,
            prefer_free_energy=dataset.energy == "free_energy",
            max_force=dataset.max_force,
        )
        self._dataset = dataset
        self._spool = spool
        self._proximity = ProximityFinder(cutoff)
        self._entries = EntryCollector(most)
        self._twins = TwinFinder()
        self._periodic: list[BoolArray] = []
        self._charges: dict[int, float] = {}
        self._method_keys: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, rows: Sequence[Row]) -> None:
        """Accept or reject rows."""
        complete = list(filter(is_complete, rows))
        self._found.lost_stresses += [row.id for row in complete if row.lost_stress]
        structures = Structures.of_rows(complete)
        accepted = structures.take(self._accept(structures))
        if len(accepted):
            self._keep(accepted)
        for row in rows:
            if isinstance(row, UnreadableRow):
                single = row.single_precision
                reason = Rejection.SINGLE_PRECISION if single else Rejection.UNREADABLE
                self._found.rejected[reason].append(row.id)
            elif not is_complete(row):
                self._examine(row)

    def finish(self, source: StructureDatabase) -> None:
        """Add results that need all rows, or some of them again."""
        found = self._found
        pages = (structures for structures, _ in self._spool.read())
        found.entries = self._twins.join(self._entries.entries(), pages)
        found.references.sort(key=lambda entry: entry.row_id)
        found.ions = [e.row_id for e in found.references if source.charge(e.row_id)]
        for rows in found.rejected.values():
            rows.sort()
        unlabelled = [
            row
            for reason in (Rejection.NO_ENERGY, Rejection.NO_FORCES)
            for row in found.rejected.get(reason, [])[:_UNLABELLED_READ]
        ]
        places = (place for row in unlabelled for place in source.labels_elsewhere(row))
        found.labels_elsewhere = list(dict.fromkeys(places))
        for name, counts in source.data_values(names_method):
            self._method_keys[name] += counts
        found.method_note = note_methods(source.methods(), self._method_keys)
        if len(found.entries):
            periodic = found.entries.row_ids[np.concatenate(self._periodic)]
            charges = {**dict(source.charges()), **self._charges}
            charged = np.intersect1d(periodic, np.array(list(charges), dtype=np.int64))
            found.charge_note = note_charged_cells(
                {id_: charges[id_] for id_ in charged.tolist()}, len(periodic)
            )

    def _accept(self, stored: Structures) -> BoolArray:
        """Return a mask of the accepted structures.

        Those that are certainly fit are examined all the same if their atoms might be nearer to
        each other than any before: the smallest distance is recorded.
        """
        found, structures = self._found, with_vacuum(stored)
        fit = have_sound_geometry(structures) & have_labels(structures, self._rules)
        near = self._proximity.find(structures, fit)
        accepted: BoolArray = near.bonded.copy()
        for index in np.argsort(near.apart, kind="stable").tolist():
            if accepted[index] and near.apart[index] >= found.min_distance:
                continue
            finding = self._examine(stored.row(index))
            accepted[index] = finding.rejection is None and not finding.is_reference
            found.min_distance = min(found.min_distance, finding.min_distance)
        return accepted

    def _examine(self, row: StructureRow) -> Finding:
        """Examine one row; record it if it is rejected or a reference."""
        found, finding = self._found, examine(row, self._rules)
        if finding.rejection is not None:
            found.rejected[finding.rejection].append(row.id)
            if finding.apart_energy is not None:
                element, energy = chemical_symbols[row.numbers[0]], finding.apart_energy
                found.apart[element] = max(
                    (row.id, energy), found.apart.get(element, (row.id, energy)), key=itemgetter(1)
                )
        elif finding.is_reference:
            found.references.append(
                Entry(
                    row_id=row.id,
                    fingerprint=fingerprint(row),
                    group=_text(row.key_value_pairs, self._dataset.group_by),
                    composition=((int(row.numbers[0]), 1),),
                    energy=finding.energy,
                    config_type=_text(row.key_value_pairs, self._dataset.config_type),
                )
            )
        return finding

    def _keep(self, structures: Structures) -> None:
        """Spool accepted structures; ids and fingerprints are those of the rows as stored."""
        found = self._found
        energies, is_free = choose_energies(structures, self._rules)
        names = [
            {
                "group": _text(pairs, self._dataset.group_by),
                "config_type": _text(pairs, self._dataset.config_type),
            }
            for pairs in structures.pairs
        ]
        padded = with_vacuum(structures)
        self._spool.append(replace(padded, energies=energies, pairs=np.array(names, np.object_)))
        self._entries.add(
            row_ids=structures.ids,
            fingerprints=fingerprints(structures),
            energies=energies,
            groups=[name["group"] for name in names],
            compositions=compositions(structures),
            config_types=[name["config_type"] for name in names],
            sides=[_text(pairs, self._dataset.split_key) for pairs in structures.pairs],
        )
        partly = is_partly_periodic(structures.pbc)
        found.partly_periodic += structures.ids[partly].tolist()
        found.dropped_stresses += int(np.count_nonzero(~np.isnan(structures.stresses[partly, 0])))
        found.free_energies += int(np.count_nonzero(is_free))
        found.force_components += count_force_components(structures)
        found.max_force = max(found.max_force, largest_force(structures))
        self._twins.add(replace(structures, energies=energies))
        zeroed, missing = have_zeroed_forces(padded, self._rules.cutoff)
        found.zeroed_forces += structures.ids[zeroed].tolist()
        found.missing_forces += structures.ids[missing].tolist()
        found.net_forces += structures.ids[have_net_forces(structures)].tolist()
        if self._rules.max_force is None:
            found.huge_forces += structures.ids[have_huge_forces(structures)].tolist()
        self._periodic.append(np.any(structures.pbc, axis=1))
        for id_, pairs in zip(structures.ids.tolist(), structures.pairs, strict=True):
            for key in pairs:
                if names_method(key):
                    self._method_keys[f"key {key}"][str(pairs[key])] += 1
                elif key.lower() in CHARGE_KEYS and (charge := stated_charge(pairs[key])):
                    self._charges[id_] = charge


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
