"""Write the files of a dataset from the spool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.dataset.content import ContentHash
from mlip_job.dataset.frame import FrameWriter
from mlip_job.dataset.index import write_index
from mlip_job.dataset.output import OutputFile
from mlip_job.dataset.record import FileRecord, SideNames
from mlip_job.dataset.split import SIDES
from mlip_job.dataset.texts import LabelColumns, text_beside, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.dataset.entry import SpooledStructures
    from mlip_job.dataset.row import FloatArray
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
    files: DatasetFiles, spooled: SpooledStructures, outcome: Outcome, shard_size: int
) -> Written:
    """Write everything but the record.

    Parameters
    ----------
    files
        Where to.
    spooled
        The accepted structures.
    outcome
        What becomes of them.
    shard_size
        Structures per data frame.
    """
    split, entries = outcome.split, outcome.intake.entries
    labels = LabelColumns.of(entries)
    texts: dict[str, FileRecord] = {}
    path = files.xyz("train")
    with text_beside(path, spooled, labels, split.on("train")) as train_text:
        with OutputFile(files.index, compressed=True) as index:
            contents = {"index": write_index(index, entries, split)}
        sides = _write_frames(files, spooled, outcome, labels, shard_size)
        test = files.xyz("test")
        texts[test.name] = write_text(test, spooled, labels, split.on("test"))
        texts[path.name] = train_text()
    contents |= {side: sides[side].content.hexdigest() for side in SIDES}
    outputs = [index, *(file for side in SIDES for file in sides[side].frame.written)]
    return Written(
        contents=contents,
        frames=SideNames(train=sides["train"].frames(), test=sides["test"].frames()),
        files=texts | {file.path.name: file.record() for file in outputs},
    )


def _write_frames(
    files: DatasetFiles,
    spooled: SpooledStructures,
    outcome: Outcome,
    labels: LabelColumns,
    shard_size: int,
) -> dict[Side, _Side]:
    corrected = outcome.references.corrected(outcome.intake.entries)
    sides = {side: _Side(FrameWriter(files, side, shard_size, outcome.weighting)) for side in SIDES}
    for structures, place in spooled:
        right_handed = structures.right_handed()
        for side in SIDES:
            mine = outcome.split.on(side)[place]
            energies, _, config_types = labels.at(place, mine)
            sides[side].add(right_handed.take(mine), energies, corrected[place][mine], config_types)
    for side in SIDES:
        sides[side].frame.flush()
    return sides


class _Side:
    """What is written of one side, but for its text."""

    def __init__(self, frame: FrameWriter) -> None:
        self.content = ContentHash()
        self.frame = frame

    def add(
        self,
        structures: Structures,
        energies: FloatArray,
        corrected: FloatArray,
        config_types: Sequence[str | None],
    ) -> None:
        if len(structures) == 0:
            return
        self.content.update(structures, energies, config_types)
        self.frame.add(
            structures, energies=energies, corrected=corrected, config_types=config_types
        )

    def frames(self) -> tuple[str, ...]:
        return tuple(file.path.name for file in self.frame.written)
