"""Candidate structures, streamed from a file or from a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from ase.io import iread

from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.row import Row, StructureRow
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ase import Atoms

    from mlip_job.config import DatabaseConfig


class CandidateSource(Protocol):
    """Where candidates come from."""

    @property
    def id_name(self) -> str:
        """What the id of a candidate is called in files: ``row_id`` or ``candidate``."""

    def describe(self) -> str:
        """Return where they come from, without secrets."""

    def rows(self) -> Iterator[Row]:
        """Yield them; their labels, if any, don't matter."""


class DatabaseCandidates:
    """The rows that a selection of an ASE database gives.

    Parameters
    ----------
    config
        The database, and in ``select`` the selection.
    """

    id_name = "row_id"

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config

    def describe(self) -> str:
        """See `CandidateSource.describe`."""
        with StructureDatabase(self.config) as database:
            return f"{database.describe()}, {self.config.select!r}"

    def rows(self) -> Iterator[Row]:
        """See `CandidateSource.rows`."""
        with StructureDatabase(self.config) as database:
            yield from database.rows()


class FileCandidates:
    """The structures of a file that ASE reads; their ids count from 0, as ASE's indices do.

    Parameters
    ----------
    path
        Extended XYZ, or anything else that ASE reads. Only some formats are read as a stream,
        extended XYZ among them.
    """

    id_name = "candidate"

    def __init__(self, path: Path) -> None:
        self.path = path

    def describe(self) -> str:
        """See `CandidateSource.describe`."""
        return str(self.path)

    def rows(self) -> Iterator[Row]:
        """See `CandidateSource.rows`.

        Raises
        ------
        DataError
            Where ASE can't read on; the message says after how many structures.
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
