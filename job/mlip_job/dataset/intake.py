"""One pass over the database: validate each row, spool it, remember what the decisions need."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.dataset.entry import Entry
from mlip_job.dataset.fingerprint import fingerprint
from mlip_job.dataset.row import StructureRow, UnreadableRow
from mlip_job.dataset.source import StructureDatabase
from mlip_job.dataset.validation import Finding, Rejection, RowRules, examine
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.config.models import DatabaseConfig, DatasetConfig
    from mlip_job.dataset.entry import Spool
    from mlip_job.dataset.reference_energies import Composition

_REPORT_EVERY = 10000
"""Rows between two lines of progress."""


@dataclass
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
    rejected
        Row ids by reason.
    free_energies
        Accepted rows whose free energy was taken.
    max_force
        eV/Å, over the accepted rows.
    min_distance
        Å, likewise.
    """

    database: str = ""
    entries: list[Entry] = field(default_factory=list)
    references: list[Entry] = field(default_factory=list)
    rejected: defaultdict[Rejection, list[int]] = field(default_factory=lambda: defaultdict(list))
    free_energies: int = 0
    max_force: float = 0.0
    min_distance: float = float("inf")
    _compositions: dict[Composition, Composition] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)

    @property
    def rejected_count(self) -> int:
        """Number of rows left out."""
        return sum(len(rows) for rows in self.rejected.values())

    @property
    def selected(self) -> int:
        """Number of rows read."""
        return len(self.entries) + len(self.references) + self.rejected_count

    def entry(self, row: StructureRow, finding: Finding, config: DatasetConfig) -> Entry:
        """Return the entry of a row; equal texts and compositions are kept once."""
        numbers, counts = np.unique(row.numbers, return_counts=True)
        composition = tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
        return Entry(
            row_id=row.id,
            fingerprint=fingerprint(row),
            group=self._text(row, config.group_by),
            composition=self._compositions.setdefault(composition, composition),
            energy=finding.energy,
            config_type=self._text(row, config.config_type),
        )

    def _text(self, row: StructureRow, key: str | None) -> str | None:
        value = row.key_value_pairs.get(key) if key is not None else None
        if value is None or value == "":
            return None
        return self._texts.setdefault(str(value), str(value))


def take_in(
    database: DatabaseConfig,
    dataset: DatasetConfig,
    *,
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
        If it has no row that is selected.
    """
    rules = RowRules(
        cutoff=cutoff,
        prefer_free_energy=dataset.energy == "free_energy",
        max_force=dataset.max_force,
    )
    with StructureDatabase(database) as source:
        intake = Intake(database=source.describe())
        progress(f"reading {intake.database} where {database.select or 'anything'}")
        for count, row in enumerate(source.rows(), start=1):
            _take(intake, row, rules, dataset, spool)
            if count % _REPORT_EVERY == 0:
                progress(f"read {count} rows")
        if intake.selected == 0:
            raise _nothing_selected(source, database.select)
    progress(
        f"{intake.selected} rows: {len(intake.entries)} accepted, {intake.rejected_count} "
        f"rejected, {len(intake.references)} isolated atoms"
    )
    return intake


def _take(
    intake: Intake,
    row: StructureRow | UnreadableRow,
    rules: RowRules,
    dataset: DatasetConfig,
    spool: Spool,
) -> None:
    if isinstance(row, UnreadableRow):
        intake.rejected[Rejection.UNREADABLE].append(row.id)
        return
    finding = examine(row, rules)
    if finding.rejection is not None:
        intake.rejected[finding.rejection].append(row.id)
    elif finding.is_reference:
        intake.references.append(intake.entry(row, finding, dataset))
    else:
        spool.append(row)
        intake.entries.append(intake.entry(row, finding, dataset))
        intake.free_energies += finding.is_free_energy
        intake.max_force = max(intake.max_force, finding.max_force)
        intake.min_distance = min(intake.min_distance, finding.min_distance)


def _nothing_selected(source: StructureDatabase, select: str) -> DataError:
    statuses = source.count_by_status()
    found = ", ".join(f"{status}: {count}" for status, count in statuses.items())
    return DataError(
        f"{source.describe()}: no row is selected by {select!r}; "
        + (f"rows by status: {found}" if statuses else "the database has no rows"),
        hint="check database.select" if statuses else None,
    )
