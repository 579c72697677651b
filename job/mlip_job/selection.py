"""Select candidates for labelling by extrapolation grade and D-optimality.

The grade of an atom is the largest coefficient of its vector of basis functions in terms of the
active set's; above 1 the potential extrapolates. A structure's is the largest of its atoms.
Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).

The active set is a square matrix, one row of basis functions per atom, with the largest determinant
that the data allow. Candidates that enter it, when it is chosen again from its own rows and theirs,
are missing from the data. ``pace_select`` does the same, but not for a stream of candidates.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from ase.io import iread
from ase.io.extxyz import write_xyz
from pyace import ACEBBasisSet
from pyace.activelearning import (
    compute_A_active_inverse,
    compute_active_set,
    compute_B_projections,
    compute_extrapolation_grade,
    compute_number_of_functions,
)

from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.geometry import atoms_with_vacuum
from mlip_job.dataset.rows import Row, StructureRow, UnreadableRow
from mlip_job.dataset.validation import Rejection, geometry_problem
from mlip_job.errors import ConfigError, DataError, IntegrityError
from mlip_job.models import Frozen
from mlip_job.paths import generation_name
from mlip_job.potentials import fetch_cached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ase import Atoms

    from mlip_job.config import DatabaseConfig
    from mlip_job.dataset.rows import FloatArray
    from mlip_job.registry import Manifest, Registry

IndexArray = np.ndarray[Any, np.dtype[np.int64]]

_BATCH = 64
_REPORT_SECONDS = 10.0
_NOT_FINITE = "extrapolation grade not finite"


class DatabaseCandidates:
    """Candidates from the selected rows of an ASE database."""

    id_name = "row_id"

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config

    def __str__(self) -> str:
        """Describe the source, without secrets."""
        with StructureDatabase(self.config) as database:
            return f"{database.describe()}, {self.config.select!r}"

    def rows(self) -> Iterator[Row]:
        """Yield the candidates; labels are ignored."""
        with StructureDatabase(self.config) as database:
            yield from database.rows()


class FileCandidates:
    """Candidates from a file that ASE reads; ids count from 0, like ASE's indices.

    Only some formats are read as a stream, extended XYZ among them.
    """

    id_name = "candidate"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        """Describe the source."""
        return str(self.path)

    def rows(self) -> Iterator[Row]:
        """Yield the candidates; labels are ignored.

        Raises
        ------
        DataError
            If ASE can't read a structure; the message has the number of those before it.
        """
        if not self.path.is_file():
            raise DataError(f"{self.path} is no file of candidates")
        structures = iread(str(self.path), ":", do_not_split_by_at_sign=True)
        for number in itertools.count():
            try:
                atoms = next(structures, None)
            except Exception as error:  # noqa: BLE001 - ASE's readers raise any exception
                problem = " ".join(str(error).split()) or type(error).__name__
                after = f" after {number} structures" if number else ""
                raise DataError(
                    f"{self.path} can't be read{after}: {problem}",
                    hint="candidates are read by ase.io: extended XYZ, or any other format that "
                    "it knows",
                ) from None
            if atoms is None:
                return
            yield _unlabelled(number, atoms)


CandidateSource = DatabaseCandidates | FileCandidates


def _unlabelled(number: int, atoms: Atoms) -> StructureRow:
    return StructureRow(
        id=number,
        numbers=np.array(atoms.numbers, dtype=np.int32),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell.array, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=np.bool_),
        energy=None,
        free_energy=None,
        forces=None,
        stress=None,
        key_value_pairs={},
    )


class Criteria(Frozen):
    """Limits on candidates: number, and extrapolation grade.

    Beyond a `max_grade` of a few tens a structure may be broken.
    """

    count: int | None = None
    min_grade: float = 1.0
    max_grade: float | None = None

    def admit(self, grade: float) -> bool:
        """Return whether a candidate of this grade may be selected."""
        return grade > self.min_grade and (self.max_grade is None or grade <= self.max_grade)


class RankedCandidate(Frozen):
    """One candidate.

    Its `id` is a row id, or the position in the file from 0. `new_environments` of its atoms would
    enter the active set.
    """

    id: int
    formula: str
    atoms: int
    extrapolation_grade: float
    new_environments: int = 0
    chosen: bool = False


class Selection(Frozen):
    """Result of a selection, sorted by descending grade.

    `skipped` are ids of candidates that can't be graded or trained on, by reason.
    """

    family: str
    generation: int
    source: str
    criteria: Criteria
    skipped: dict[str, tuple[int, ...]]
    candidates: tuple[RankedCandidate, ...]

    @property
    def admitted(self) -> int:
        """Number of candidates whose grade the criteria admit."""
        return sum(self.criteria.admit(c.extrapolation_grade) for c in self.candidates)

    @property
    def above(self) -> int:
        """Number of candidates whose grade is above the largest that is admitted."""
        most = self.criteria.max_grade
        return 0 if most is None else sum(c.extrapolation_grade > most for c in self.candidates)

    @property
    def chosen(self) -> tuple[RankedCandidate, ...]:
        """Selected candidates by descending grade."""
        return tuple(c for c in self.candidates if c.chosen)


def require_free(path: Path) -> None:
    """Raise a ConfigError if a file exists."""
    if path.exists():
        raise ConfigError(f"{path} exists", hint="remove it, or choose another -o FILE")


@contextmanager
def writing(
    path: Path, selection: Selection, rows: Sequence[StructureRow], id_name: str
) -> Iterator[None]:
    """Write the structures as extended XYZ; the file is moved into place if the block succeeds.

    Each structure carries its ``extrapolation_grade``, the ``generation`` that it was graded by,
    and its id under `id_name`.

    Raises
    ------
    ConfigError
        If the file can't be written, or was created concurrently.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for candidate, row in zip(selection.chosen, rows, strict=True):
                atoms = row.atoms()
                atoms.info[id_name] = candidate.id
                atoms.info["extrapolation_grade"] = round(candidate.extrapolation_grade, 6)
                atoms.info["generation"] = generation_name(selection.generation)
                write_xyz(file, [atoms])
        yield
        require_free(path)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror or error}", hint="choose another -o FILE"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def open_grader(registry: Registry, manifest: Manifest, cache: Path) -> Grader:
    """Return a grader for a generation's potential and active set.

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
    """Grade a stream of candidates, and keep those that may still be selected.

    Memory holds a few numbers for each candidate, and the structures and basis functions of those
    that compete for a place in the active set.
    """

    def __init__(self, grader: Grader, criteria: Criteria, report: Callable[[str], None]) -> None:
        self._grader = grader
        self._criteria = criteria
        self._report = report
        self._extension = ActiveSetExtension(grader.inverse)
        self._pool: dict[int, StructureRow] = {}
        self._ranked: list[RankedCandidate] = []
        self._skipped: defaultdict[str, list[int]] = defaultdict(list)

    def run(
        self, source: CandidateSource, family: str, generation: int
    ) -> tuple[Selection, list[StructureRow]]:
        """Return the selection and its structures by descending grade.

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
                self._report(f"{len(self._ranked)} candidates graded")
        self._settle()
        self._require_graded(source)
        candidates = self._rank()
        selection = Selection(
            family=family,
            generation=generation,
            source=str(source),
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
        rejection = geometry_problem(row, self._grader.cutoff)
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
            raise DataError(f"{source} has no candidates", hint="check the file or --select")
        reasons = ", ".join(f"{len(ids)} × {reason}" for reason, ids in self._skipped.items())
        raise DataError(f"{source}: no candidate can be graded: {reasons}")


def _candidate(row: StructureRow, grade: float) -> RankedCandidate:
    symbols = [chemical_symbols[number] for number in row.numbers]
    return RankedCandidate(
        id=row.id,
        formula=Formula.from_list(symbols).format("metal"),
        atoms=len(symbols),
        extrapolation_grade=grade,
    )


@dataclass(frozen=True, eq=False)
class AtomGrades:
    """Atoms of one element in a batch of structures.

    `owners` are the positions of the atoms' structures in the batch; `projections` are the values
    of the basis functions, one row per atom.
    """

    owners: IndexArray
    grades: FloatArray
    projections: FloatArray


class Grader:
    """Compute extrapolation grades with a potential and its active set.

    The active set is linear, as written by ``pace_activeset``. Full active sets don't work in
    python-ace 0.4.0rc1, which leaves the required derivatives at zero. `inverse` is the inverted
    active set of each element's number in the potential.

    Raises
    ------
    IntegrityError
        If the two do not belong together.
    ConfigError
        If the active set is a full one.
    """

    def __init__(self, potential: Path, active_set: Path) -> None:
        self._basis = ACEBBasisSet(str(potential))
        self.elements: tuple[str, ...] = tuple(self._basis.elements_name)
        self.cutoff = float(self._basis.cutoffmax)
        numbers: Mapping[str, int] = self._basis.elements_to_index_map
        functions = compute_number_of_functions(self._basis)
        with np.load(active_set) as stored:
            if set(stored) != set(self.elements):
                raise IntegrityError(
                    f"the active set is one of {', '.join(sorted(stored))}, the potential one of "
                    f"{', '.join(sorted(self.elements))}"
                )
            self.inverse = {numbers[element]: stored[element] for element in self.elements}
        if any(len(matrix) != functions[number] for number, matrix in self.inverse.items()):
            raise ConfigError(
                "candidates are graded by linear active sets; this one is full",
                hint="select with a generation that has evaluation.active_set: linear",
            )

    def grade(self, structures: Sequence[Atoms]) -> dict[int, AtomGrades]:
        """Return the grades of all atoms by the number of their element in the potential."""
        projections, owners = compute_B_projections(
            self._basis, list(structures), return_structure_ind_dict=True
        )
        grades = compute_extrapolation_grade(projections, self.inverse)
        return {
            number: AtomGrades(owners[number], grades[number], projections[number])
            for number in self.inverse
        }


_TRAINED_ON = -1
"""Owner of the rows of the initial active set."""

_TOLERANCE = 1.01  # same value as in pace_activeset and pace_select
_MAX_SWAPS = 10_000
_BUFFER_BYTES = 256 * 2**20


class ActiveSetExtension:
    """An active set that is extended by candidates.

    Rows of candidates are collected up to `buffer_bytes`; then the active set is chosen again from
    its own rows and those, and the others are dropped. `inverse` is the inverted active set of each
    element's number.
    """

    def __init__(
        self, inverse: Mapping[int, FloatArray], *, buffer_bytes: int = _BUFFER_BYTES
    ) -> None:
        self._rows: dict[int, FloatArray] = compute_A_active_inverse(dict(inverse))
        self._owners = {n: np.full(len(rows), _TRAINED_ON) for n, rows in self._rows.items()}
        self._waiting: dict[int, list[tuple[FloatArray, IndexArray]]] = {n: [] for n in self._rows}
        self._waiting_bytes = 0
        self._limit = buffer_bytes

    def add(self, element: int, projections: FloatArray, owners: IndexArray) -> None:
        """Collect atoms of one element; `owners` are the ids of their structures."""
        if len(projections):
            self._waiting[element].append((projections, owners))
            self._waiting_bytes += projections.nbytes

    @property
    def is_full(self) -> bool:
        """Whether the buffer is full, so that `settle` is due."""
        return self._waiting_bytes > self._limit

    def settle(self) -> None:
        """Recompute the active set; drop the collected rows that are not in it.

        Raises
        ------
        DataError
            If the active set is singular.
        """
        for element, waiting in self._waiting.items():
            if waiting:
                projections, owners = zip(*waiting, strict=True)
                self._settle(element, np.vstack(projections), np.hstack(owners))
                waiting.clear()
        self._waiting_bytes = 0

    def _settle(self, element: int, projections: FloatArray, owners: IndexArray) -> None:
        try:
            rows, chosen = compute_active_set(
                {element: projections},
                {element: owners},
                tol=_TOLERANCE,
                max_iters=_MAX_SWAPS,
                extra_A0_projections_dict={element: self._rows[element]},
                extra_structure_ind_dict={element: self._owners[element]},
            )
        except ValueError as error:
            raise DataError(
                f"candidates can't be compared with the active set: {error}",
                hint="it may come from too few structures for so many functions",
            ) from None
        self._rows[element], self._owners[element] = rows[element], chosen[element]

    def places(self) -> Counter[int]:
        """Count the atoms in the active set by structure, without zeros."""
        counts: Counter[int] = Counter()
        for owners in self._owners.values():
            counts.update(int(owner) for owner in owners)
        counts.pop(_TRAINED_ON, None)
        return counts
