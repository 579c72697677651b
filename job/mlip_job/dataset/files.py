"""The files of a dataset: extended XYZ, pacemaker's data frames, and the index.

A data frame is a gzip-compressed pickle: reading one runs code of its writer. So a run reads only
frames that it wrote itself, and regenerates those of a stored dataset from the texts.
"""

from __future__ import annotations

import csv
import gc
import gzip
import hashlib
import io
import pickle
import zlib
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from ase import Atoms
from isal import isal_zlib

from mlip_job.dataset.content import ContentHash
from mlip_job.dataset.entry import FINGERPRINT
from mlip_job.dataset.record import FileRecord, SideNames
from mlip_job.dataset.reference_energies import ReferenceEnergies, compositions
from mlip_job.dataset.split import SIDES, Side
from mlip_job.dataset.validation import count_force_components
from mlip_job.dataset.weights import GroupSize, scaled
from mlip_job.dataset.xyz import (
    config_type,
    count_atoms,
    label,
    read_blocks,
    read_structures,
    structures_text,
)
from mlip_job.errors import ConfigError, IntegrityError
from mlip_job.paths import DatasetFiles

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from mlip_job.dataset.entry import Entries, SpooledStructures
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.split import Split
    from mlip_job.dataset.structures import Structures
    from mlip_job.dataset.summary import Outcome
    from mlip_job.dataset.weights import GroupWeighting

_INDEX_COLUMNS = ["row_id", "fingerprint", "group", "side"]
_LINES_AT_ONCE = 500

_FRAME_ATOMS = 100_000
"""Maximum number of atoms in a data frame, which is built in memory."""

_PICKLE_PROTOCOL = 4
"""With 5, arrays would not own their memory when they are read."""

_PIECE = 1 << 20
_GZIP = 31
"""zlib's ``wbits`` for a gzip header; it holds no name and no time."""


@dataclass(frozen=True)
class Written:
    """What `write_files` wrote.

    Attributes
    ----------
    contents
        Hashes that the dataset's identity is made of.
    force_components
        See `count_force_components`, by side.
    frames
        Names of the data frames.
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
    """Write all files but the record; `shard_size` limits the structures of a data frame."""
    split = outcome.split
    with OutputFile(files.index, compressed=True) as index:
        contents = {"index": write_index(index, outcome.collected.entries, split)}
    frames = {
        side: FrameWriter(files, side, shard_size, outcome.references, outcome.weighting)
        for side in SIDES
    }
    hashes = {side: ContentHash() for side in SIDES}
    force_components = dict.fromkeys(SIDES, 0)
    with ExitStack() as stack:
        texts = {side: stack.enter_context(OutputFile(files.xyz(side))) for side in SIDES}
        for structures, place in spooled:
            right_handed = structures.right_handed()
            for side in SIDES:
                chosen = split.on(side)[place]
                if not chosen.any():
                    continue
                some = right_handed.take(chosen)
                for text in structures_text(some):
                    texts[side].write(text)
                hashes[side].update(some)
                force_components[side] += count_force_components(some)
                frames[side].add(some)
        for side in SIDES:
            frames[side].flush()
    written = [index, *(f for side in SIDES for f in (texts[side], *frames[side].written))]
    return Written(
        contents=contents | {side: hashes[side].hexdigest() for side in SIDES},
        force_components=force_components,
        frames=SideNames(train=frames["train"].names(), test=frames["test"].names()),
        files=dict(sorted((file.path.name, file.record()) for file in written)),
    )


# The index: the side of each row


def write_index(file: OutputFile, entries: Entries, split: Split) -> str:
    """Write one line per entry; return the sha256 of the text, which no compressor changes."""
    digest = hashlib.sha256()
    groups = (*entries.groups, "")  # the last place is that of -1, no group
    for first in range(0, max(1, len(entries)), _LINES_AT_ONCE):
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        if first == 0:
            writer.writerow(_INDEX_COLUMNS)
        part = slice(first, first + _LINES_AT_ONCE)
        columns = (
            entries.row_ids[part].tolist(),
            [fingerprint.hex() for fingerprint in entries.fingerprints[part].tolist()],
            [groups[code] for code in entries.group_codes[part].tolist()],
            [SIDES[tested] for tested in split.tested[part].tolist()],
        )
        writer.writerows(zip(*columns, strict=True))
        text = lines.getvalue().encode()
        digest.update(text)
        file.write(text)
    return digest.hexdigest()


def read_index(path: Path, dataset: str = "a dataset") -> Iterator[tuple[int, str, str, Side]]:
    """Yield row id, fingerprint, group (``""`` for none) and side of every row.

    Raises
    ------
    IntegrityError
        If the index can't be read; the message names `dataset`.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if next(reader, None) != _INDEX_COLUMNS:
                raise ValueError("unknown columns")  # noqa: TRY301 - one way out
            for row_id, fingerprint, group, side in reader:
                if side not in SIDES:
                    raise ValueError(f"{side!r} is no side")  # noqa: TRY301
                if len(bytes.fromhex(fingerprint)) != FINGERPRINT.itemsize:
                    raise ValueError(f"{fingerprint!r} is no fingerprint")  # noqa: TRY301
                yield int(row_id), fingerprint, group, side
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        raise IntegrityError(f"{path}: the index of {dataset} can't be read: {error}") from None


def common_test_rows(index: Path, other: Path) -> frozenset[int]:
    """Return the test rows of an index whose structures are test structures in `other` too."""
    tested = {fingerprint for _, fingerprint, _, side in read_index(other) if side == "test"}
    return frozenset(
        row_id
        for row_id, fingerprint, _, side in read_index(index)
        if side == "test" and fingerprint in tested
    )


# Pacemaker's data frames


@dataclass(frozen=True)
class FramePart:
    """Content of one set of data frames.

    Attributes
    ----------
    name
        Start of the file names: ``train`` for ``train.pckl.gzip``.
    side
        Whose structures.
    rows
        Ids of the rows to take; None for all. Rows of the other side are ignored.
    """

    name: str
    side: Side
    rows: Collection[int] | None = None


BOTH_SIDES = (FramePart("train", "train"), FramePart("test", "test"))


def frames_from_texts(
    record: DatasetRecord,
    directory: Path,
    shard_size: int,
    parts: Sequence[FramePart] = BOTH_SIDES,
) -> dict[str, tuple[str, ...]]:
    """Write data frames from ``train.xyz`` and ``test.xyz``; return their names by part.

    They equal those of a fresh export to the last bit, rows in the order of the texts. Weights are
    scaled over the whole dataset, whatever the parts are.

    Raises
    ------
    IntegrityError
        If the texts in the directory are not those of the record.
    """
    files = DatasetFiles(directory)
    references = ReferenceEnergies(record.reference_energies, {})
    weighting = _weighting(record, files)
    writers = {
        part.name: FrameWriter(files, part.name, shard_size, references, weighting)
        for part in parts
    }
    for side in SIDES:
        of_side = [part for part in parts if part.side == side]
        count = 0
        for structures in read_structures(files.xyz(side)) if of_side else ():
            count += len(structures)
            for part in of_side:
                try:
                    writers[part.name].add(_chosen(structures, part.rows))
                except KeyError as error:
                    raise IntegrityError(
                        f"dataset {record.id} has no reference energy for {error.args[0]}, "
                        "which it holds"
                    ) from None
        expected = getattr(record.counts, side)
        if of_side and count != expected:
            raise IntegrityError(
                f"{files.xyz(side).name} of dataset {record.id} has {count} structures, its record "
                f"says {expected}"
            )
    for writer in writers.values():
        writer.flush()
    return {name: writer.names() for name, writer in writers.items()}


@dataclass(eq=False)
class FrameWriter:
    """Collects structures and writes a data frame for every `shard_size` of them.

    The columns are those that ``pyace.preparedata.ACEDataset`` reads; ``data.filename`` and
    ``data.test_filename`` of its input take a list of files. Without `weighting`, pacemaker
    chooses the weights.
    """

    files: DatasetFiles
    name: str
    shard_size: int
    references: ReferenceEnergies
    weighting: GroupWeighting | None = None
    written: list[OutputFile] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _atoms: int = 0

    def add(self, structures: Structures) -> None:
        """Add structures in right-handed cells.

        Raises
        ------
        KeyError
            If an element has no reference energy.
        """
        ends = structures.starts[1:-1]
        rows = zip(
            structures.ids.tolist(),
            np.split(structures.numbers, ends),
            np.split(structures.positions, ends),
            structures.cells,
            structures.pbc,
            structures.energies.tolist(),
            [self.references.of(composition) for composition in compositions(structures)],
            np.split(structures.forces, ends),
            [pairs.get("config_type") for pairs in structures.pairs],
            strict=False,  # np.split gives one empty part where there is no structure
        )
        with _collector_paused():
            for id_, numbers, positions, cell, pbc, energy, reference, forces, kind in rows:
                row = {
                    "ase_atoms": Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc),
                    "energy": energy,
                    "energy_corrected": energy - reference,
                    "forces": forces,
                    # Pacemaker lowers the weights of names that start with "augmented".
                    "name": f"row-{id_}",
                }
                if self.weighting is not None:
                    row["w_energy"] = self.weighting.energy(kind)
                    row["w_forces"] = np.full(len(numbers), self.weighting.forces(kind))
                self._rows.append(row)
                self._atoms += len(numbers)
                if len(self._rows) == self.shard_size or self._atoms >= _FRAME_ATOMS:
                    self.flush()

    def flush(self) -> None:
        """Write the structures added since the last file; call it once at the end."""
        if not self._rows:
            return
        path = self.files.frame(self.name, len(self.written))
        with OutputFile(path, compressed=True) as file, _collector_paused():
            pickle.dump(pd.DataFrame(self._rows), file, protocol=_PICKLE_PROTOCOL)
        self.written.append(file)
        self._rows.clear()
        self._atoms = 0

    def names(self) -> tuple[str, ...]:
        """Return the names of the files written."""
        return tuple(file.path.name for file in self.written)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector: it would traverse all atoms of a frame again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _chosen(structures: Structures, rows: Collection[int] | None) -> Structures:
    if rows is None:
        return structures
    return structures.take(np.array([row in rows for row in structures.ids.tolist()], np.bool_))


def _weighting(record: DatasetRecord, files: DatasetFiles) -> GroupWeighting | None:
    """Return the weights as the export scaled them: over all structures of both sides."""
    if record.weights is None:
        return None
    sizes: defaultdict[str | None, GroupSize] = defaultdict(GroupSize)
    for side in SIDES:
        for block in read_blocks(files.xyz(side)):
            size = sizes[label(config_type(block))]
            size.structures += 1
            size.atoms[side] += count_atoms(block)
    by_group = {label(name) or name: weights for name, weights in record.weights.items()}
    try:
        return scaled(by_group, sizes)
    except ConfigError as error:
        raise IntegrityError(f"dataset {record.id}: {error.message}") from None


class OutputFile:
    """A file that is hashed, and optionally gzip-compressed, while it is written.

    Compression is fast rather than thorough: random digits of coordinates gain little.
    """

    def __init__(self, path: Path, *, compressed: bool = False) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._file = path.open("wb")
        self._compressor = isal_zlib.compressobj(level=1, wbits=_GZIP) if compressed else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        with self._file:
            if kind is None and self._compressor is not None:
                self._put(self._compressor.flush())
            self._compressor = None  # its buffers are large

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        if self._compressor is None:
            self._put(data)
            return
        view = memoryview(data)
        for first in range(0, len(view), _PIECE):
            self._put(self._compressor.compress(view[first : first + _PIECE]))

    def record(self) -> FileRecord:
        """Return hash and size; call it after closing."""
        return FileRecord(sha256=self._digest.hexdigest(), size=self._size)

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._size += len(data)
        self._file.write(data)
