"""Write the files of a dataset: one pass over the spool fills both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mlip_job.dataset.content import ContentHash
from mlip_job.dataset.extxyz import structures_text
from mlip_job.dataset.frame import FrameWriter
from mlip_job.dataset.index import write_index
from mlip_job.dataset.output import OutputFile
from mlip_job.dataset.record import FileRecord, SideNames
from mlip_job.dataset.split import SIDES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from mlip_job.dataset.entry import Entries
    from mlip_job.dataset.row import BoolArray, FloatArray, IntArray
    from mlip_job.dataset.split import Side
    from mlip_job.dataset.structures import Structures
    from mlip_job.dataset.summary import Outcome
    from mlip_job.naming import DatasetFiles


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes
    ----------
    contents
        Hashes that the dataset's identity is made of.
    frames
        Names of pacemaker's data frames.
    files
        All files.
    """

    contents: dict[str, str]
    frames: SideNames
    files: dict[str, FileRecord]


def write_files(
    files: DatasetFiles, spooled: Iterable[Structures], outcome: Outcome, shard_size: int
) -> Written:
    """Write everything but the record.

    Parameters
    ----------
    files
        Where to.
    spooled
        The accepted structures, in the order of the entries.
    outcome
        What becomes of them.
    shard_size
        Structures per data frame.
    """
    entries = outcome.intake.entries
    corrected = outcome.references.corrected(entries)
    sides = {side: _SideWriter(files, side, outcome, shard_size) for side in SIDES}
    with sides["train"], sides["test"]:
        for structures, place in _placed(spooled):
            right_handed = structures.right_handed()
            for side in SIDES:
                mine = outcome.split.on(side)[place]
                sides[side].add(right_handed.take(mine), entries, place, mine, corrected)
    with OutputFile(files.index, compressed=True) as index:
        contents = {"index": write_index(index, entries, outcome.split)}
    contents |= {side: sides[side].content.hexdigest() for side in SIDES}
    outputs = [index, *(file for side in SIDES for file in sides[side].outputs())]
    return Written(
        contents=contents,
        frames=SideNames(train=sides["train"].frames(), test=sides["test"].frames()),
        files={file.path.name: file.record() for file in outputs},
    )


class _SideWriter:
    """The files of one side."""

    def __init__(self, files: DatasetFiles, side: Side, outcome: Outcome, shard_size: int) -> None:
        self.content = ContentHash()
        self._text = OutputFile(files.xyz(side))
        self._frame = FrameWriter(files, side, shard_size, outcome.weighting)

    def __enter__(self) -> Self:
        self._text.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._text.__exit__(kind, error, traceback)
        if kind is None:
            self._frame.flush()

    def add(
        self,
        structures: Structures,
        entries: Entries,
        place: slice,
        mine: BoolArray,
        corrected: FloatArray,
    ) -> None:
        """Add the structures of this side, which are entries of this place."""
        if len(structures) == 0:
            return
        energies = entries.energies[place][mine]
        config_types = _texts(entries.config_types, entries.config_type_codes[place][mine])
        groups = _texts(entries.groups, entries.group_codes[place][mine])
        self.content.update(structures, energies, config_types)
        for text in structures_text(structures, energies, groups, config_types):
            self._text.write(text)
        self._frame.add(
            structures,
            energies=energies,
            corrected=corrected[place][mine],
            config_types=config_types,
        )

    def frames(self) -> tuple[str, ...]:
        """Return the names of the data frames."""
        return tuple(file.path.name for file in self._frame.written)

    def outputs(self) -> list[OutputFile]:
        """Return all files."""
        return [self._text, *self._frame.written]


def _placed(spooled: Iterable[Structures]) -> Iterator[tuple[Structures, slice]]:
    """Yield structures and where their entries are."""
    first = 0
    for structures in spooled:
        yield structures, slice(first, first + len(structures))
        first += len(structures)


def _texts(texts: Sequence[str], codes: IntArray) -> list[str | None]:
    # The last place is that of -1, none.
    places = (*texts, None)
    return [places[code] for code in codes.tolist()]
