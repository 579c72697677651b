"""Candidates for the next generation: sources, ranking and output."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from ase.io import iread
from ase.io.extxyz import write_xyz

from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.row import Row, StructureRow
from mlip_job.errors import ConfigError, DataError
from mlip_job.models import Frozen
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ase import Atoms

    from mlip_job.config import DatabaseConfig


class CandidateSource(Protocol):
    """A source of candidates."""

    @property
    def id_name(self) -> str:
        """Name of a candidate's id in files: ``row_id`` or ``candidate``."""

    def describe(self) -> str:
        """Return a description without secrets."""

    def rows(self) -> Iterator[Row]:
        """Yield the candidates; labels are ignored."""


class DatabaseCandidates:
    """Candidates from the selected rows of an ASE database."""

    id_name = "row_id"

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config

    def describe(self) -> str:
        """Return the source, without secrets."""
        with StructureDatabase(self.config) as database:
            return f"{database.describe()}, {self.config.select!r}"

    def rows(self) -> Iterator[Row]:
        """Yield the candidates."""
        with StructureDatabase(self.config) as database:
            yield from database.rows()


class FileCandidates:
    """Candidates from a file that ASE reads; ids count from 0, like ASE's indices.

    Only some formats are read as a stream, extended XYZ among them.
    """

    id_name = "candidate"

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self) -> str:
        """Return the source, without secrets."""
        return str(self.path)

    def rows(self) -> Iterator[Row]:
        """Yield the candidates.

        Raises
        ------
        DataError
            If ASE can't read a structure; the message has the number of those before it.
        """
        if not self.path.is_file():
            raise DataError(f"{self.path} is no file of candidates")
        read = 0
        structures = iread(str(self.path), ":", do_not_split_by_at_sign=True)
        while True:
            try:
                atoms = next(structures, None)
            except Exception as error:  # noqa: BLE001 - ASE's readers raise whatever they meet
                raise self._unreadable(error, read) from None
            if atoms is None:
                return
            yield _row(read, atoms)
            read += 1

    def _unreadable(self, error: Exception, read: int) -> DataError:
        problem = " ".join(str(error).split()) or type(error).__name__
        after = f" after {read} structures" if read else ""
        return DataError(
            f"{self.path} can't be read{after}: {problem}",
            hint="candidates are read by ase.io: extended XYZ, or any other format that it knows",
        )


def _row(index: int, atoms: Atoms) -> StructureRow:
    return StructureRow(
        id=index,
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

    Its `id` is a row id, or the position in the file from 0; its grade is the largest of its
    atoms, of which `new_environments` would enter the active set.
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
def written(
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
