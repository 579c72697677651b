"""From candidates to the few that are worth labelling."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from mlip_job.dataset.periodicity import atoms_with_vacuum
from mlip_job.dataset.row import Row, UnreadableRow
from mlip_job.dataset.validation import Rejection, examine_geometry
from mlip_job.errors import ConfigError, DataError
from mlip_job.naming import generation_name
from mlip_job.potentials.cache import fetch_cached
from mlip_job.selection.grading import Grader
from mlip_job.selection.optimal import ActiveSetExtension
from mlip_job.selection.results import RankedCandidate, Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlip_job.dataset.row import Row, StructureRow
    from mlip_job.registry import Manifest, Registry
    from mlip_job.selection.candidates import CandidateSource
    from mlip_job.selection.results import Criteria

_BATCH = 64
_REPORT_SECONDS = 10.0
_NOT_FINITE = "extrapolation grade not finite"


def open_grader(registry: Registry, manifest: Manifest, cache: Path) -> Grader:
    """Return a grader by a generation's potential and active set.

    Raises
    ------
    ConfigError
        If the generation was published without an active set.
    """
    name = generation_name(manifest.generation)
    if "potential.asi" not in manifest.artefacts:
        raise ConfigError(
            f"{name} of {registry.family} was published without an active set",
            hint="select with a generation that was published with evaluation.active_set",
        )
    potential, active_set = (
        fetch_cached(registry, manifest, artefact, cache)
        for artefact in ("potential.yaml", "potential.asi")
    )
    return Grader(potential, active_set)


class CandidateSelector:
    """Grades candidates as they come, and keeps those that may still be chosen.

    Memory holds a few numbers for each candidate, and the structures and basis functions of those
    that compete for a place in the active set.

    Parameters
    ----------
    grader
        Of the generation to extend.
    criteria
        What is asked of them.
    say
        Told now and then how far it is.
    """

    def __init__(self, grader: Grader, criteria: Criteria, say: Callable[[str], None]) -> None:
        self._grader = grader
        self._criteria = criteria
        self._say = say
        self._extension = ActiveSetExtension(grader.inverse)
        self._pool: dict[int, StructureRow] = {}
        self._ranked: list[RankedCandidate] = []
        self._skipped: defaultdict[str, list[int]] = defaultdict(list)

    def run(
        self, source: CandidateSource, family: str, generation: int
    ) -> tuple[Selection, list[StructureRow]]:
        """Return the selection and the structures that were chosen, the highest grade first.

        Raises
        ------
        DataError
            If there is no candidate, or none that can be graded.
        """
        reported = time.monotonic()
        rows = self._gradable(source.rows())
        while batch := list(itertools.islice(rows, _BATCH)):
            self._grade(batch)
            if self._extension.is_full:
                self._settle()
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                self._say(f"{len(self._ranked)} candidates graded")
        self._settle()
        self._require_graded(source)
        candidates = self._rank()
        selection = Selection(
            family=family,
            generation=generation,
            source=source.describe(),
            criteria=self._criteria,
            skipped={reason: tuple(ids) for reason, ids in sorted(self._skipped.items())},
            candidates=candidates,
        )
        return selection, [self._pool[candidate.id] for candidate in selection.chosen]

    def _gradable(self, rows: Iterator[Row]) -> Iterator[StructureRow]:
        for row in rows:
            reason = self._obstacle(row)
            if reason is None and not isinstance(row, UnreadableRow):
                yield row
            elif reason is not None:
                self._skipped[reason].append(row.id)

    def _obstacle(self, row: Row) -> str | None:
        if isinstance(row, UnreadableRow):
            return Rejection.UNREADABLE.value
        rejection = examine_geometry(row, self._grader.cutoff)
        if rejection is not None:
            return rejection.value
        lacking = {chemical_symbols[n] for n in set(row.numbers)} - set(self._grader.elements)
        if lacking:
            return f"element that the potential lacks: {', '.join(sorted(lacking))}"
        return None

    def _grade(self, batch: list[StructureRow]) -> None:
        by_element = self._grader.grade([atoms_with_vacuum(row.atoms()) for row in batch])
        largest = np.zeros(len(batch))
        for atoms in by_element.values():
            np.maximum.at(largest, atoms.owners, atoms.grades)
        competing = np.zeros(len(batch), dtype=np.bool_)
        for position, row in enumerate(batch):
            grade = float(largest[position])
            if not np.isfinite(grade):
                self._skipped[_NOT_FINITE].append(row.id)
                continue
            self._ranked.append(_candidate(row, grade))
            if self._criteria.admit(grade):
                competing[position] = True
                self._pool[row.id] = row
        ids = np.array([row.id for row in batch])
        for element, atoms in by_element.items():
            new = competing[atoms.owners] & (atoms.grades > self._criteria.min_grade)
            self._extension.add(element, atoms.projections[new], ids[atoms.owners[new]])

    def _settle(self) -> None:
        self._extension.settle()
        places = self._extension.places()
        self._pool = {id_: row for id_, row in self._pool.items() if id_ in places}

    def _rank(self) -> tuple[RankedCandidate, ...]:
        """Sort by grade; of those with a place in the active set, choose as many as asked for."""
        places = self._extension.places()
        ranked = sorted(self._ranked, key=lambda c: (-c.extrapolation_grade, c.id))
        chosen = [c.id for c in ranked if c.id in places][: self._criteria.count]
        chosen_ids = set(chosen)
        return tuple(
            c.model_copy(update={"new_environments": places[c.id], "chosen": c.id in chosen_ids})
            for c in ranked
        )

    def _require_graded(self, source: CandidateSource) -> None:
        if self._ranked:
            return
        if not self._skipped:
            raise DataError(
                f"{source.describe()} has no candidates", hint="check the file or --select"
            )
        reasons = ", ".join(f"{len(ids)} × {reason}" for reason, ids in self._skipped.items())
        raise DataError(f"{source.describe()}: no candidate can be graded: {reasons}")


def _candidate(row: StructureRow, grade: float) -> RankedCandidate:
    symbols = [chemical_symbols[number] for number in row.numbers]
    return RankedCandidate(
        id=row.id,
        formula=Formula.from_list(symbols).format("metal"),
        atoms=len(symbols),
        extrapolation_grade=grade,
    )
