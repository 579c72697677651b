"""What is kept in memory of each accepted row, and the spool that holds the rest."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mlip_job.dataset.split import SplitItem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from mlip_job.dataset.reference_energies import Composition
    from mlip_job.dataset.row import StructureRow


@dataclass(frozen=True, slots=True)
class Entry(SplitItem):
    """The little that split, fit and checks need of a row.

    Attributes
    ----------
    composition
        Pairs of atomic number and count, sorted; one object for all rows of a composition.
    energy
        eV, the energy to train on.
    config_type
        Type of the structure, or None.
    """

    composition: Composition = ()
    energy: float = 0.0
    config_type: str | None = None

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return sum(count for _, count in self.composition)


class Spool:
    """Rows in a local file: appended once, then read back in the same order.

    The database is read a single time, so that memory does not grow with the structures and rows
    that are added meanwhile do no harm.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, row: StructureRow) -> None:
        """Add a row at the end."""
        pickle.dump(row, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[StructureRow]:
        self._file.flush()
        with self._path.open("rb") as file:
            while file.peek(1):
                yield pickle.load(file)  # noqa: S301 - written by this very process
