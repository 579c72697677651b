"""Select candidates for labelling, by extrapolation grade and D-optimality or by committee.

The grade of an atom is the largest coefficient of its vector of basis functions in terms of the
active set's; above 1 the potential extrapolates. A structure's is the largest of its atoms.
Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).

The active set is a square matrix, one row of basis functions per atom, with the largest determinant
that the data allow. Candidates that enter it, when it is chosen again from its own rows and theirs,
are missing from the data. ``pace_select`` does the same, but not for a stream of candidates.

A committee is an ensemble: where its members' forces differ most, their mean is least certain.
"""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from ase.io import iread
from ase.io.extxyz import write_xyz
from pyace.activelearning import (
    compute_A_active_inverse,
    compute_active_set,
    compute_B_projections,
    compute_extrapolation_grade,
    compute_number_of_functions,
)

from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.geometry import atoms_with_vacuum
from mlip_job.dataset.rows import Row, StructureRow, UnreadableRow, right_handed
from mlip_job.dataset.validation import geometry_problem
from mlip_job.errors import ConfigError, DataError, IntegrityError, TrainingError
from mlip_job.evaluation.potential import Potential, trimer
from mlip_job.models import Frozen
from mlip_job.paths import generation_name, member_folder
from mlip_job.potentials import fetch_cached
from mlip_job.training import published_potential

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from ase import Atoms

    from mlip_job.config import DatabaseConfig
    from mlip_job.dataset.rows import FloatArray
    from mlip_job.registry import Manifest, Registry

IndexArray = np.ndarray[Any, np.dtype[np.int64]]

_BATCH = 64
_REPORT_SECONDS = 10.0
_POOL = 1000  # structures that may be chosen; of more, those that are not competitive are dropped
_NOT_FINITE = "prediction or extrapolation grade not finite"


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

        Raise `DataError` if ASE can't read a structure; the message has the number of those
        before it.
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
            yield StructureRow(
                id=number,
                numbers=np.array(atoms.numbers, dtype=np.int32),
                positions=np.array(atoms.positions, dtype=np.float64),
                cell=np.array(atoms.cell.array, dtype=np.float64),
                pbc=np.array(atoms.pbc, dtype=np.bool_),
            )


CandidateSource = DatabaseCandidates | FileCandidates


By = Literal["grade", "committee"]


class RankedCandidate(Frozen):
    """One candidate.

    Its `id` is a row id, or the position in the file from 0. By grade, `new_environments` of its
    atoms would enter the active set. By committee, it has the members' standard deviations: the
    largest over its atoms for forces, that of the energy.
    """

    id: int
    formula: str
    atoms: int
    extrapolation_grade: float | None = None
    new_environments: int = 0
    force_spread_mev_per_angstrom: float | None = None
    energy_spread_mev_per_atom: float | None = None
    chosen: bool = False

    @property
    def score(self) -> float:
        """The quantity that it is ranked by."""
        grade, spread = self.extrapolation_grade, self.force_spread_mev_per_angstrom
        return grade if grade is not None else spread or 0.0


class Criteria(Frozen):
    """Limits on candidates: number, and extrapolation grade or spread of the forces.

    A structure far above the ordinary grades or spreads may be broken.
    """

    by: By = "grade"
    count: int | None = None
    min_grade: float | None = 1.0
    max_grade: float | None = None
    min_spread_mev_per_angstrom: float | None = None
    max_spread_mev_per_angstrom: float | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The largest score that is too small, and the largest that is admitted."""
        low, high = self.min_grade, self.max_grade
        if self.by == "committee":
            low, high = self.min_spread_mev_per_angstrom, self.max_spread_mev_per_angstrom
        return low or 0.0, math.inf if high is None else high

    def admit(self, candidate: RankedCandidate) -> bool:
        """Return whether a candidate may be selected."""
        low, high = self.limits
        return low < candidate.score <= high


class Selection(Frozen):
    """Result of a selection, sorted by descending grade or spread.

    `skipped` are ids of candidates that can't be ranked or trained on, by reason.
    """

    family: str
    generation: int
    source: str
    criteria: Criteria
    skipped: dict[str, tuple[int, ...]]
    candidates: tuple[RankedCandidate, ...]

    @property
    def admitted(self) -> int:
        """Number of candidates that the criteria admit."""
        return sum(map(self.criteria.admit, self.candidates))

    @property
    def above(self) -> int:
        """Number of candidates above the largest grade or spread that is admitted."""
        return sum(c.score > self.criteria.limits[1] for c in self.candidates)

    @property
    def chosen(self) -> tuple[RankedCandidate, ...]:
        """Selected candidates by descending grade or spread."""
        return tuple(c for c in self.candidates if c.chosen)


def require_free(path: Path) -> None:
    """Raise a ConfigError if a file exists."""
    if path.exists():
        raise ConfigError(f"{path} exists", hint="remove it, or choose another -o FILE")


_WRITTEN = {
    "extrapolation_grade", "force_spread_mev_per_angstrom", "energy_spread_mev_per_atom",
}  # fmt: skip


@contextmanager
def writing(
    path: Path, selection: Selection, rows: Sequence[StructureRow], id_name: str
) -> Iterator[None]:
    """Write the structures as extended XYZ; the file is moved into place if the block succeeds.

    Each structure carries its ``extrapolation_grade`` or its spreads, the ``generation`` that it
    was ranked by, and its id under `id_name`.

    Raise `ConfigError` if the file can't be written, or was created concurrently.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for candidate, row in zip(selection.chosen, rows, strict=True):
                atoms = row.atoms()
                scores = candidate.model_dump(include=_WRITTEN, exclude_none=True)
                atoms.info[id_name] = candidate.id
                atoms.info |= {name: round(score, 6) for name, score in scores.items()}
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


def open_selector(
    registry: Registry,
    manifest: Manifest,
    cache: Path,
    criteria: Criteria,
    report: Callable[[str], None],
) -> CandidateSelector:
    """Return a selector by a generation's active set, or by the members of its ensemble.

    Raise `ConfigError` if the generation was published without them.
    """
    name = f"{generation_name(manifest.generation)} of {registry.family}"

    def fetch(artefact: str) -> Path:
        return fetch_cached(registry, manifest, artefact, cache)

    if criteria.by == "committee":
        if manifest.ensemble is None:
            raise ConfigError(
                f"{name} is no ensemble: a committee needs the potentials of its members",
                hint="train one, with mlip-job submit -g N --ensemble 4 or mlip-job run -g N "
                "--member K --of 4; or select --by grade",
            )
        potentials = []
        for member in manifest.ensemble.members:
            folder = f"{member_folder(member.number)}/"
            own = [n.removeprefix(folder) for n in manifest.artefacts if n.startswith(folder)]
            potentials.append(Potential(fetch(folder + published_potential(own))))
        return SpreadSelector(potentials, criteria, report)
    if "potential.asi" not in manifest.artefacts:
        raise ConfigError(
            f"{name} was published without an active set",
            hint="select with a generation that was published with evaluation.active_set",
        )
    grader = Grader(fetch("potential.yaml"), fetch("potential.asi"))
    return GradeSelector(grader, criteria, report)


class CandidateSelector:
    """Rank a stream of candidates, and keep those that may still be selected.

    Memory holds a few numbers for each candidate, and the structures of those that compete.
    Subclasses rank: `score` yields a candidate for each row of a batch, None if a prediction is not
    finite, and `competitors` returns the ids that are chosen at present, with their numbers of new
    environments.
    """

    def __init__(
        self,
        elements: Collection[str],
        cutoff: float,
        criteria: Criteria,
        report: Callable[[str], None],
    ) -> None:
        self.criteria = criteria
        self._elements, self._cutoff, self._report = frozenset(elements), cutoff, report
        self._pool: dict[int, StructureRow] = {}
        self._limit = _POOL
        self._ranked: list[RankedCandidate] = []
        self._skipped: defaultdict[str, list[int]] = defaultdict(list)

    def score(self, batch: Sequence[StructureRow]) -> Iterator[RankedCandidate | None]:
        """Rank a batch."""
        raise NotImplementedError

    def competitors(self) -> Mapping[int, int]:
        """Return the ids that are chosen at present."""
        raise NotImplementedError

    def run(
        self, source: CandidateSource, family: str, generation: int
    ) -> tuple[Selection, list[StructureRow]]:
        """Return the selection and its structures by descending grade or spread.

        Raise `DataError` if there is no candidate, or none that can be ranked.
        """
        reported = time.monotonic()
        rows = self._usable(source.rows())
        while batch := list(itertools.islice(rows, _BATCH)):
            for row, candidate in zip(batch, self.score(batch), strict=True):
                if candidate is None:
                    self._skipped[_NOT_FINITE].append(row.id)
                    continue
                self._ranked.append(candidate)
                if self.criteria.admit(candidate):
                    self._pool[row.id] = row
            if len(self._pool) > self._limit:
                kept = self.competitors()
                self._pool = {id_: row for id_, row in self._pool.items() if id_ in kept}
                self._limit = max(_POOL, 2 * len(self._pool))
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                self._report(f"{len(self._ranked)} candidates ranked")
        if not self._ranked and not self._skipped:
            raise DataError(f"{source} has no candidates", hint="check the file or --select")
        if not self._ranked:
            reasons = ", ".join(f"{len(ids)} × {reason}" for reason, ids in self._skipped.items())
            raise DataError(f"{source}: no candidate can be ranked: {reasons}")
        selection = Selection(
            family=family,
            generation=generation,
            source=str(source),
            criteria=self.criteria,
            skipped={reason: tuple(ids) for reason, ids in sorted(self._skipped.items())},
            candidates=self._chosen(),
        )
        return selection, [self._pool[candidate.id] for candidate in selection.chosen]

    def _usable(self, rows: Iterator[Row]) -> Iterator[StructureRow]:
        for row in rows:
            problem = geometry_problem(row, self._cutoff)
            if problem is not None or isinstance(row, UnreadableRow):
                self._skipped[str(problem)].append(row.id)
                continue
            lacking = {chemical_symbols[n] for n in set(row.numbers)} - self._elements
            if lacking:
                reason = f"element that the potential lacks: {', '.join(sorted(lacking))}"
                self._skipped[reason].append(row.id)
            else:
                yield row

    def _chosen(self) -> tuple[RankedCandidate, ...]:
        """Sort by descending score; choose as many competitors as asked for."""
        places = self.competitors()
        ranked = sorted(self._ranked, key=lambda c: (-c.score, c.id))
        chosen = {c.id for c in [c for c in ranked if c.id in places][: self.criteria.count]}
        return tuple(
            c.model_copy(update={"new_environments": places.get(c.id, 0), "chosen": c.id in chosen})
            for c in ranked
        )


def _candidate(row: StructureRow, **scores: float) -> RankedCandidate | None:
    """Return a candidate with its scores; None if one is not finite."""
    if not all(map(math.isfinite, scores.values())):
        return None
    symbols = [chemical_symbols[number] for number in row.numbers]
    formula = Formula.from_list(symbols).format("metal")
    return RankedCandidate.model_validate(
        {"id": row.id, "formula": formula, "atoms": len(symbols), **scores}
    )


# -- by committee --------------------------------------------------------------------------------


class SpreadSelector(CandidateSelector):
    """Choose the candidates for which the forces of an ensemble's members differ most."""

    def __init__(
        self, members: Sequence[Potential], criteria: Criteria, report: Callable[[str], None]
    ) -> None:
        super().__init__(members[0].elements, members[0].cutoff, criteria, report)
        self._members = members

    def score(self, batch: Sequence[StructureRow]) -> Iterator[RankedCandidate | None]:
        """Yield the spreads of a batch."""
        for row in batch:
            atoms = right_handed(atoms_with_vacuum(row.atoms()))
            try:
                found = [each.predict(atoms, f"candidate {row.id}") for each in self._members]
            except TrainingError:  # a member's prediction is not finite
                yield None
                continue
            energies = np.array([prediction.energy for prediction in found]) / len(atoms)
            yield _candidate(
                row,
                force_spread_mev_per_angstrom=1000 * force_spread([p.forces for p in found]),
                energy_spread_mev_per_atom=1000 * float(energies.std()),
            )

    def competitors(self) -> Mapping[int, int]:
        """Return the admitted candidates; with a count, that many of the largest spread."""
        admitted = [c for c in self._ranked if c.id in self._pool]
        admitted.sort(key=lambda c: (-c.score, c.id))
        return dict.fromkeys((c.id for c in admitted[: self.criteria.count]), 0)


def force_spread(forces: Sequence[FloatArray]) -> float:
    r"""Return :math:`\max_i \sqrt{\langle |F_i - \langle F_i\rangle|^2\rangle}` over members.

    The model deviation of L. Zhang et al., Phys. Rev. Materials 3, 023804 (2019): for each atom the
    norm of the standard deviation of its force, of all atoms the largest.
    """
    return float(np.linalg.norm(np.std(np.array(forces), axis=0), axis=1).max())


# -- by extrapolation grade ----------------------------------------------------------------------


class GradeSelector(CandidateSelector):
    """Choose the candidates that add most to an active set."""

    def __init__(self, grader: Grader, criteria: Criteria, report: Callable[[str], None]) -> None:
        super().__init__(grader.elements, grader.cutoff, criteria, report)
        self._grader = grader
        self._extension = ActiveSetExtension(grader.inverse)

    def score(self, batch: Sequence[StructureRow]) -> Iterator[RankedCandidate | None]:
        """Yield the grades of a batch; collect the environments of admitted candidates."""
        by_element = self._grader.grade([atoms_with_vacuum(row.atoms()) for row in batch])
        largest = np.zeros(len(batch))
        for atoms in by_element.values():
            np.maximum.at(largest, atoms.owners, atoms.grades)
        scored = [
            _candidate(row, extrapolation_grade=float(grade))
            for row, grade in zip(batch, largest, strict=True)
        ]
        admitted = np.array([c is not None and self.criteria.admit(c) for c in scored])
        ids = np.array([row.id for row in batch])
        for element, atoms in by_element.items():
            new = admitted[atoms.owners] & (atoms.grades > self.criteria.limits[0])
            self._extension.add(element, atoms.projections[new], ids[atoms.owners[new]])
        yield from scored

    def competitors(self) -> Mapping[int, int]:
        """Return the candidates with a place in the extended active set."""
        self._extension.settle()
        return self._extension.places()


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

    Raise `IntegrityError` if the two do not belong together; `ConfigError` if the active set is
    a full one.
    """

    def __init__(self, potential: Path, active_set: Path) -> None:
        self._basis = Potential(potential).calculator.basis
        self._first = trimer(self._basis)
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
            self._basis, [self._first, *structures], return_structure_ind_dict=True
        )
        grades = compute_extrapolation_grade(projections, self.inverse)
        given = {number: owners[number] > 0 for number in self.inverse}
        return {
            number: AtomGrades(owners[number][of] - 1, grades[number][of], projections[number][of])
            for number, of in given.items()
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
        if self._waiting_bytes > self._limit:
            self.settle()

    def settle(self) -> None:
        """Recompute the active set; drop the collected rows that are not in it.

        Raise `DataError` if the active set is singular.
        """
        for element, waiting in self._waiting.items():
            if not waiting:
                continue
            projections, owners = zip(*waiting, strict=True)
            try:
                rows, chosen = compute_active_set(
                    {element: np.vstack(projections)},
                    {element: np.hstack(owners)},
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
            waiting.clear()
        self._waiting_bytes = 0

    def places(self) -> Counter[int]:
        """Count the atoms in the active set by structure, without zeros."""
        counts = Counter(np.concatenate([*self._owners.values()]).tolist())
        counts.pop(_TRAINED_ON, None)
        return counts
