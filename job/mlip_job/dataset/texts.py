"""``train.xyz`` and ``test.xyz``; that of a large training set by a process of its own."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mlip_job.dataset.extxyz import structures_text
from mlip_job.dataset.output import OutputFile
from mlip_job.errors import TrainingError
from mlip_job.runtime.environment import usable_cores
from mlip_job.runtime.processes import Beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mlip_job.dataset.entry import Entries, SpooledStructures
    from mlip_job.dataset.record import FileRecord
    from mlip_job.dataset.row import BoolArray, FloatArray, IntArray

_WORTH_A_PROCESS = 100_000
"""Structures. It takes most of a second to start; the text of so many takes several."""

_MaybeTexts = list[str | None]


@dataclass(frozen=True, eq=False)
class LabelColumns:
    """What the files say of entries; see `Entries`."""

    energies: FloatArray
    groups: tuple[str, ...]
    group_codes: IntArray
    config_types: tuple[str, ...]
    config_type_codes: IntArray

    @classmethod
    def of(cls, entries: Entries) -> Self:
        """Return those of entries, without the columns that stay behind."""
        return cls(
            entries.energies,
            entries.groups,
            entries.group_codes,
            entries.config_types,
            entries.config_type_codes,
        )

    def at(self, place: slice, mine: BoolArray) -> tuple[FloatArray, _MaybeTexts, _MaybeTexts]:
        """Return energies (eV), groups and config types of some of the entries of a place."""
        return (
            self.energies[place][mine],
            _texts(self.groups, self.group_codes[place][mine]),
            _texts(self.config_types, self.config_type_codes[place][mine]),
        )


def _texts(texts: Sequence[str], codes: IntArray) -> _MaybeTexts:
    # The last place is that of -1, none.
    places = (*texts, None)
    return [places[code] for code in codes.tolist()]


def write_text(
    path: Path, spooled: SpooledStructures, labels: LabelColumns, chosen: BoolArray
) -> FileRecord:
    """Write the extended XYZ file of the chosen entries."""
    with OutputFile(path) as file:
        for structures, place in spooled:
            mine = chosen[place]
            if mine.any():
                rows = structures.right_handed().take(mine)
                file.writelines(structures_text(rows, *labels.at(place, mine)))
    return file.record()


@contextmanager
def text_beside(
    path: Path, spooled: SpooledStructures, labels: LabelColumns, chosen: BoolArray
) -> Iterator[Callable[[], FileRecord] | None]:
    """Write such a file beside what is done in the with block, where it is worth a process.

    Yields
    ------
    Callable or None
        Waits for it; None where it is not worth it, and nothing is written.
    """
    if chosen.sum() < _WORTH_A_PROCESS or usable_cores() == 1:
        yield None
        return
    died = TrainingError(
        f"the process that wrote {path.name} died, most likely out of memory",
        hint="give the job more memory, then run the same command again",
    )
    with Beside(write_text, path, spooled, labels, chosen, died=died) as process:
        yield process.result
