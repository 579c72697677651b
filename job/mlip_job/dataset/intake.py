"""One pass over the database: validate each row, spool it, remember what the decisions need."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from mlip_job.dataset.entry import Entry, EntryCollector
from mlip_job.dataset.fingerprint import crystals, fingerprint, fingerprints
from mlip_job.dataset.fitness import (
    choose_energies,
    count_force_components,
    have_labels,
    have_sound_geometry,
    largest_force,
)
from mlip_job.dataset.implausible import have_huge_forces, have_zeroed_forces
from mlip_job.dataset.periodicity import is_partly_periodic, with_vacuum
from mlip_job.dataset.provenance import names_method, note_methods
from mlip_job.dataset.proximity import ProximityFinder
from mlip_job.dataset.reference_energies import compositions
from mlip_job.dataset.row import StructureRow, UnreadableRow
from mlip_job.dataset.validation import Rejection, RowRules, examine
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlip_job.config.models import DatasetConfig
    from mlip_job.dataset.database import Page, Selected, StructureDatabase
    from mlip_job.dataset.entry import Entries, Spool
    from mlip_job.dataset.row import BoolArray
    from mlip_job.dataset.structures import Structures
    from mlip_job.dataset.validation import Finding

_REPORT_EVERY = 10000
"""Rows between two lines of progress."""

_LOOKED_AT = 10
"""Rows without energy, and without forces, in which other names are looked for."""


@dataclass(frozen=True)
class Intake:
    """What one pass over the database found.

    Attributes
    ----------
    database
        Its URL without secrets.
    entries
        One per accepted row, in the order of the ids and of the spool.
    references
        Isolated atoms.
    ions
        Row ids of those that are charged: their energy is no reference.
    apart
        By element, a rejected row whose atoms have no neighbour within the cutoff, and its energy
        in eV/atom: the highest, so that of the atoms furthest apart.
    lost_stresses
        Row ids of stresses that could not be read; the rows are accepted without.
    partly_periodic
        Row ids of the slabs and wires among the accepted rows.
    dropped_stresses
        How many of these had a stress, which is left out.
    zeroed_forces, huge_forces
        Row ids of accepted rows that are noted, see `implausible`; huge forces only where no
        limit is configured.
    labels_elsewhere
        Where rows without energy or forces may hold them under other names.
    method_note
        What to know where the selected rows were computed in several ways.
    rejected
        Row ids by reason.
    free_energies
        Accepted rows whose free energy was taken.
    force_components
        Those of the accepted rows that do not vanish, see `count_force_components`.
    max_force
        eV/Å, over the accepted rows.
    min_distance
        Å, likewise.
    slow_because
        Why ASE itself had to read the rows, if it had to.
    """

    database: str
    entries: Entries
    references: tuple[Entry, ...]
    ions: tuple[int, ...]
    apart: Mapping[str, tuple[int, float]]
    lost_stresses: tuple[int, ...]
    partly_periodic: tuple[int, ...]
    dropped_stresses: int
    zeroed_forces: tuple[int, ...]
    huge_forces: tuple[int, ...]
    labels_elsewhere: tuple[str, ...]
    method_note: str | None
    rejected: Mapping[Rejection, Sequence[int]]
    free_energies: int
    force_components: int
    max_force: float
    min_distance: float
    slow_because: str | None

    @property
    def neutral_references(self) -> tuple[Entry, ...]:
        """The isolated atoms that give reference energies."""
        return tuple(entry for entry in self.references if entry.row_id not in self.ions)

    @property
    def rejected_count(self) -> int:
        """Number of rows left out."""
        return sum(len(rows) for rows in self.rejected.values())

    @property
    def selected(self) -> int:
        """Number of rows read."""
        return len(self.entries) + len(self.references) + self.rejected_count


def take_in(
    source: StructureDatabase,
    selected: Selected,
    dataset: DatasetConfig,
    *,
    select: str,
    cutoff: float,
    spool: Spool,
    progress: Callable[[str], None],
) -> Intake:
    """Read, validate and spool the selected rows.

    Raises
    ------
    DatabaseError
        If the database fails.
    DataError
        If no row is selected.
    """
    rules = RowRules(
        cutoff=cutoff,
        prefer_free_energy=dataset.energy == "free_energy",
        max_force=dataset.max_force,
    )
    taking = _Taking(rules, dataset, spool, most=len(selected.ids))
    for page in source.pages(selected):
        before = taking.seen
        taking.take(page)
        if taking.seen // _REPORT_EVERY > before // _REPORT_EVERY:
            progress(f"read {taking.seen} of {len(selected.ids)} rows")
    if taking.seen == 0:
        raise _nothing_selected(source, select)
    intake = taking.result(source)
    progress(
        f"{intake.selected} rows: {len(intake.entries)} accepted, {intake.rejected_count} "
        f"rejected, {len(intake.references)} isolated atoms"
    )
    return intake


class _Taking:
    """What has been found so far."""

    def __init__(self, rules: RowRules, dataset: DatasetConfig, spool: Spool, *, most: int) -> None:
        self.seen = 0
        self._rules = rules
        self._dataset = dataset
        self._spool = spool
        self._proximity = ProximityFinder(rules.cutoff)
        self._entries = EntryCollector(most)
        self._references: list[Entry] = []
        self._rejected: defaultdict[Rejection, list[int]] = defaultdict(list)
        self._apart: dict[str, tuple[int, float]] = {}
        self._lost_stresses: list[int] = []
        self._partly_periodic: list[int] = []
        self._dropped_stresses = 0
        self._method_keys: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._zeroed_forces: list[int] = []
        self._huge_forces: list[int] = []
        self._free_energies = 0
        self._force_components = 0
        self._max_force = 0.0
        self._min_distance = float("inf")

    def take(self, page: Page) -> None:
        """Accept or reject the rows of a page."""
        self.seen += len(page.structures) + len(page.others)
        accepted = self._accept(page)
        for row in page.others:
            if isinstance(row, UnreadableRow):
                single = row.single_precision
                reason = Rejection.SINGLE_PRECISION if single else Rejection.UNREADABLE
                self._rejected[reason].append(row.id)
            else:
                self._judge(row)
        self._lost_stresses += page.lost_stresses
        structures = page.structures.take(accepted)
        if len(structures):
            self._keep(structures)

    def _accept(self, page: Page) -> BoolArray:
        """Return which complete structures are accepted.

        Those that are certainly fit are examined all the same if their atoms might be nearer to
        each other than any before: the smallest distance is recorded.
        """
        structures = with_vacuum(page.structures)
        fit = have_sound_geometry(structures) & have_labels(structures, self._rules)
        near = self._proximity.find(structures, fit)
        accepted: BoolArray = near.bonded.copy()
        for index in np.argsort(near.apart, kind="stable").tolist():
            if accepted[index] and near.apart[index] >= self._min_distance:
                continue
            finding = self._judge(page.structures.row(index))
            accepted[index] = finding.rejection is None and not finding.is_reference
            self._min_distance = min(self._min_distance, finding.min_distance)
        return accepted

    def _judge(self, row: StructureRow) -> Finding:
        """Examine one row; note it where it is rejected or is a reference."""
        finding = examine(row, self._rules)
        if finding.rejection is not None:
            self._rejected[finding.rejection].append(row.id)
            if finding.apart_energy is not None:
                element, energy = chemical_symbols[row.numbers[0]], finding.apart_energy
                self._apart[element] = max(
                    (row.id, energy), self._apart.get(element, (row.id, energy)), key=itemgetter(1)
                )
        elif finding.is_reference:
            self._references.append(
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
        """Spool accepted structures; what they are known by is that of the rows as stored."""
        energies, is_free = choose_energies(structures, self._rules)
        padded = with_vacuum(structures)
        names = [
            {"group": _text(pair, self._dataset.group_by),
             "config_type": _text(pair, self._dataset.config_type)}
            for pair in structures.pairs
        ]  # fmt: skip
        self._spool.append(replace(padded, energies=energies, pairs=np.array(names, np.object_)))
        partly = is_partly_periodic(structures.pbc)
        self._partly_periodic += structures.ids[partly].tolist()
        self._dropped_stresses += int(np.count_nonzero(~np.isnan(structures.stresses[partly, 0])))
        self._entries.add(
            row_ids=structures.ids,
            fingerprints=fingerprints(structures),
            crystals=crystals(structures),
            energies=energies,
            groups=[name["group"] for name in names],
            compositions=compositions(structures),
            config_types=[name["config_type"] for name in names],
            sides=[_text(pair, self._dataset.split_key) for pair in structures.pairs],
        )
        self._free_energies += int(np.count_nonzero(is_free))
        self._force_components += count_force_components(structures)
        self._max_force = max(self._max_force, largest_force(structures))
        for pair in structures.pairs:
            for key in pair:
                if names_method(key):
                    self._method_keys[key][str(pair[key])] += 1
        zeroed = have_zeroed_forces(padded, self._rules.cutoff)
        self._zeroed_forces += structures.ids[zeroed].tolist()
        if self._rules.max_force is None:
            self._huge_forces += structures.ids[have_huge_forces(structures)].tolist()

    def result(self, source: StructureDatabase) -> Intake:
        """Return what was found in all."""
        references = tuple(sorted(self._references, key=lambda entry: entry.row_id))
        return Intake(
            database=source.describe(),
            entries=self._entries.entries(),
            references=references,
            ions=tuple(id_ for id_ in (r.row_id for r in references) if source.charge(id_)),
            apart=self._apart,
            lost_stresses=tuple(self._lost_stresses),
            partly_periodic=tuple(self._partly_periodic),
            dropped_stresses=self._dropped_stresses,
            zeroed_forces=tuple(self._zeroed_forces),
            huge_forces=tuple(self._huge_forces),
            labels_elsewhere=_labels_elsewhere(source, self._rejected),
            method_note=note_methods(source.methods(), self._method_keys),
            rejected={reason: sorted(rows) for reason, rows in self._rejected.items()},
            free_energies=self._free_energies,
            force_components=self._force_components,
            max_force=self._max_force,
            min_distance=self._min_distance,
            slow_because=source.slow_because,
        )


def _labels_elsewhere(
    source: StructureDatabase, rejected: Mapping[Rejection, Sequence[int]]
) -> tuple[str, ...]:
    """Look at some rows without energy or forces; return the places in the order found."""
    unlabelled = [
        row for reason in (Rejection.NO_ENERGY, Rejection.NO_FORCES)
        for row in sorted(rejected.get(reason, ()))[:_LOOKED_AT]
    ]  # fmt: skip
    return tuple(
        dict.fromkeys(place for row in unlabelled for place in source.labels_elsewhere(row))
    )


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
