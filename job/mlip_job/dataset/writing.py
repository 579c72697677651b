"""Write the files of a dataset from the spool."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.dataset.content import ContentHash
from mlip_job.dataset.extxyz import structures_text
from mlip_job.dataset.fitness import count_force_components
from mlip_job.dataset.frame import FrameWriter
from mlip_job.dataset.index import write_index
from mlip_job.dataset.output import OutputFile
from mlip_job.dataset.record import FileRecord, SideNames
from mlip_job.dataset.split import SIDES
from mlip_job.dataset.texts import LabelColumns, text_beside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    force_components
        Of each side those that do not vanish, see `count_force_components`.
    frames
        Names of pacemaker's data frames.
    files
        All files.
    """

    contents: dict[str, str]
    force_components: dict[Side, int]
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
    train_text = files.xyz("train")
    with text_beside(train_text, spooled, labels, split.on("train")) as beside:
        with OutputFile(files.index, compressed=True) as index:
            contents = {"index": write_index(index, entries, split)}
        texts: Sequence[Side] = SIDES if beside is None else ("test",)
        sides = _write_sides(files, spooled, outcome, labels, shard_size, texts)
        apart = {} if beside is None else {train_text.name: beside()}
    contents |= {side: sides[side].content.hexdigest() for side in SIDES}
    outputs = [index, *(file for side in SIDES for file in sides[side].written())]
    records = apart | {file.path.name: file.record() for file in outputs}
    return Written(
        contents=contents,
        force_components={side: sides[side].force_components for side in SIDES},
        frames=SideNames(train=sides["train"].frames(), test=sides["test"].frames()),
        files=dict(sorted(records.items())),
    )


def _write_sides(
    files: DatasetFiles,
    spooled: SpooledStructures,
    outcome: Outcome,
    labels: LabelColumns,
    shard_size: int,
    texts: Sequence[Side],
) -> dict[Side, _Side]:
    """Write the data frames of both sides, and the texts of some."""
    corrected = outcome.references.corrected(outcome.intake.entries)
    with ExitStack() as stack:
        sides = {
            side: _Side(
                FrameWriter(files, side, shard_size, outcome.weighting),
                stack.enter_context(OutputFile(files.xyz(side))) if side in texts else None,
            )
            for side in SIDES
        }
        for structures, place in spooled:
            right_handed = structures.right_handed()
            for side in SIDES:
                mine = outcome.split.on(side)[place]
                if mine.any():
                    sides[side].add(
                        right_handed.take(mine), corrected[place][mine], *labels.at(place, mine)
                    )
        for side in SIDES:
            sides[side].frame.flush()
    return sides


class _Side:
    """What is written of one side: its content's hash, its data frames, and perhaps its text."""

    def __init__(self, frame: FrameWriter, text: OutputFile | None) -> None:
        self.content = ContentHash()
        self.force_components = 0
        self.frame = frame
        self._text = text

    def add(
        self,
        structures: Structures,
        corrected: FloatArray,
        energies: FloatArray,
        groups: Sequence[str | None],
        config_types: Sequence[str | None],
    ) -> None:
        if self._text is not None:
            self._text.writelines(structures_text(structures, energies, groups, config_types))
        self.content.update(structures, energies, config_types)
        self.force_components += count_force_components(structures)
        self.frame.add(
            structures, energies=energies, corrected=corrected, config_types=config_types
        )

    def written(self) -> Iterator[OutputFile]:
        if self._text is not None:
            yield self._text
        yield from self.frame.written

    def frames(self) -> tuple[str, ...]:
        return tuple(file.path.name for file in self.frame.written)
