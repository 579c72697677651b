"""The trainers' data frames, with weights per config type.

A data frame is a gzip-compressed pickle: reading one runs code of its writer. So a run reads only
frames that it wrote itself, and regenerates those of a stored dataset from the texts.
"""

from __future__ import annotations

import gc
import pickle
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import chemical_symbols

from mlip_job.config.training import GroupWeights
from mlip_job.dataset.files import OutputFile
from mlip_job.dataset.references import ReferenceEnergies
from mlip_job.dataset.rows import SIDES, VOIGT, Side
from mlip_job.dataset.xyz import (
    config_type,
    count_atoms,
    label,
    read_blocks,
    read_structures,
)
from mlip_job.errors import ConfigError, DataError, IntegrityError
from mlip_job.paths import DatasetFiles

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.rows import Entries, StructureRow, Structures
    from mlip_job.dataset.split import Split

STRUCTURES_PER_FRAME = 5_000
FRAME_ATOMS = 100_000
"""Maximum number of structures and of atoms in a data frame, which is built in memory."""

_PICKLE_PROTOCOL = 4
"""With 5, arrays would not own their memory when they are read."""


Columns = Literal["pacemaker", "gracemaker"]
"""Kind of a data frame: the columns of ``pyace.preparedata.ACEDataset``, or of gracemaker."""


@dataclass(frozen=True)
class FramePart:
    """Content of one set of data frames.

    `name` starts the file names: ``train`` for ``train.pckl.gzip``. `rows` are ids of the rows of
    the side to take; None for all.
    """

    name: str
    side: Side
    rows: Collection[int] | None = None


BOTH_SIDES = (FramePart("train", "train"), FramePart("test", "test"))


def frames_from_texts(
    record: DatasetRecord,
    directory: Path,
    parts: Sequence[FramePart] = BOTH_SIDES,
    columns: Columns = "pacemaker",
) -> dict[str, tuple[str, ...]]:
    """Write data frames from ``train.xyz`` and ``test.xyz``; return their names by part.

    They equal those of a fresh export to the last bit. Weights are scaled over the whole dataset,
    for any parts.

    Raise `IntegrityError` if the texts in the directory are not those of the record.
    """
    files = DatasetFiles(directory)
    references = ReferenceEnergies(record.reference_energies, {})
    weighting = _weighting(record, files)
    writers = {
        part.name: FrameWriter(files, part.name, references, weighting, columns) for part in parts
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
    """Collects structures and writes a data frame for every `STRUCTURES_PER_FRAME`.

    ``data.filename`` and ``data.test_filename`` of both trainers' inputs take a list of files.
    Without `weighting`, pacemaker chooses the weights, and all are 1 for gracemaker.
    """

    files: DatasetFiles
    name: str
    references: ReferenceEnergies
    weighting: GroupWeighting | None = None
    columns: Columns = "pacemaker"
    written: list[OutputFile] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _atoms: int = 0

    def add(self, structures: Structures) -> None:
        """Add structures in right-handed cells.

        Raise `KeyError` if an element has no reference energy.
        """
        with _collector_paused():
            for index, composition in enumerate(structures.compositions()):
                structure = structures.row(index)
                energy = float(structures.energies[index])
                row = {
                    "ase_atoms": Atoms(
                        numbers=structure.numbers,
                        positions=structure.positions,
                        cell=structure.cell,
                        pbc=structure.pbc,
                    ),
                    "energy": energy,
                    "energy_corrected": energy - self.references.of(composition),
                    "forces": structure.forces,
                    # Pacemaker lowers the weights of names that start with "augmented".
                    "name": f"row-{structure.id}",
                }
                weighting = self.weighting
                weights = weighting.of(structures.pairs[index]) if weighting else None
                if self.columns == "gracemaker":
                    _for_gracemaker(row, structure, weights)
                elif weights is not None:
                    row["w_energy"] = weights[0]
                    row["w_forces"] = np.full(len(structure.numbers), weights[1])
                self._rows.append(row)
                self._atoms += len(structure.numbers)
                if len(self._rows) == STRUCTURES_PER_FRAME or self._atoms >= FRAME_ATOMS:
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


def _for_gracemaker(
    row: dict[str, Any], structure: StructureRow, weights: tuple[float, float] | None
) -> None:
    """Make a row one of gracemaker: another energy column, stress (Voigt, eV/Å³), weights.

    Gracemaker wants a stress of every periodic structure, so a missing one has the weight 0. A
    config type has no weight of the stress, which gets that of the forces.
    """
    del row["energy"]  # it could be taken for energy_corrected
    energy, force = (1.0, 1.0) if weights is None else weights
    known = structure.stress is not None
    row["stress"] = structure.stress if known else np.zeros(VOIGT)
    row["virial_weight"] = force if known else 0.0
    row["energy_weight"] = energy
    row["force_weight"] = np.full(len(structure.numbers), force)


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
    sizes: Sizes = defaultdict(lambda: [0, 0, 0])
    for place, side in enumerate(SIDES, start=1):
        for block in read_blocks(files.xyz(side)):
            size = sizes[label(config_type(block))]
            size[0] += 1
            size[place] += count_atoms(block)
    by_group = {label(name) or name: weights for name, weights in record.weights.items()}
    try:
        return scaled(by_group, sizes)
    except ConfigError as error:
        raise IntegrityError(f"dataset {record.id}: {error.message}") from None


_NEUTRAL = GroupWeights()

Sizes = defaultdict[str | None, list[int]]
"""By config type: the number of structures, of atoms on the train side, and on the test side."""


@dataclass(frozen=True)
class GroupWeighting:
    """Relative weights, scaled by 1 / their mean over structures (energy) and atoms (forces).

    Config types that are not in `by_group` weigh 1. They are compared as written to the extended
    XYZ files, so that these give the same weights.
    """

    by_group: Mapping[str, GroupWeights]
    energy_scale: float
    force_scale: float

    def of(self, pairs: Mapping[str, Any]) -> tuple[float, float]:
        """Return the weights of a structure's energy, and of the force on each of its atoms."""
        relative = _relative(self.by_group, label(pairs.get("config_type")))
        return self.energy_scale * relative.energy, self.force_scale * relative.forces


def weigh_groups(
    by_group: Mapping[str, GroupWeights], entries: Entries, split: Split
) -> GroupWeighting:
    """Scale the configured weights to the given rows.

    Raise `DataError` if no row is of a config type that the configuration names; `ConfigError` if
    every force of a side would weigh 0 (pacemaker divides by their sum), or a config type can't be
    written into an extended XYZ file.
    """
    for name in by_group:
        if label(name) != name:
            raise ConfigError(
                f"training.weighting.by_group names {name!r}, which an extended XYZ file gives "
                f"back as {label(name)!r}",
                hint="rename that config_type in the database and in the configuration",
            )
    sizes: Sizes = defaultdict(lambda: [0, 0, 0])
    atoms = entries.atoms
    for code, kind in ((-1, None), *enumerate(entries.config_types)):
        of_type, size = entries.config_type_codes == code, sizes[label(kind)]
        size[0] += int(np.count_nonzero(of_type))
        for place, side in enumerate(SIDES, start=1):
            size[place] += int(atoms[of_type & split.on(side)].sum())
    absent = sorted(by_group.keys() - sizes.keys())
    if absent:
        types = ", ".join(sorted(entries.config_types)) or "none at all"
        raise DataError(
            f"training.weighting.by_group names {', '.join(absent)}, but no row has that config "
            f"type; the rows have {types}",
            hint="dataset.config_type names the key_value_pair that holds the config type",
        )
    return scaled(by_group, sizes)


def scaled(by_group: Mapping[str, GroupWeights], sizes: Sizes) -> GroupWeighting:
    """Scale weights so that their mean is 1 over the structures and atoms of both sides.

    Raise `ConfigError` if every force of a side would weigh 0.
    """
    structures, energy, forces, atoms = 0, 0.0, dict.fromkeys(SIDES, 0.0), 0
    # In a fixed order: the last bit of a sum depends on it.
    for kind in sorted(sizes, key=lambda name: (name is None, name or "")):
        (count, *of_sides), weights = sizes[kind], _relative(by_group, kind)
        structures += count
        energy += weights.energy * count
        atoms += sum(of_sides)
        for side, of_side in zip(SIDES, of_sides, strict=True):
            forces[side] += weights.forces * of_side
    for side, total in forces.items():
        if total == 0:
            raise ConfigError(
                f"training.weighting.by_group gives every force of the {side} side the weight 0",
                hint="give one of its config types a positive forces weight",
            )
    return GroupWeighting(by_group, structures / energy, atoms / sum(forces.values()))


def require_convex_hull(entries: Entries, elements: Sequence[str]) -> None:
    """Raise `ConfigError` if the compositions don't span the convex hull that pacemaker needs.

    Compositions on one line or plane, as those of a pseudo-binary oxide, make a flat simplex, on
    which its hull (``pyace.process_df.compute_convexhull_dist``) fails. A single composition needs
    none.
    """
    compositions = entries.count_by_composition()
    numbers = [chemical_symbols.index(element) for element in elements]
    counts = np.array([[dict(c).get(z, 0) for z in numbers] for c in compositions], np.float64)
    fractions = np.unique(counts / counts.sum(axis=1, keepdims=True), axis=0)
    if len(fractions) == 1:
        return
    dimensions = np.linalg.matrix_rank(fractions[1:] - fractions[0], tol=1e-6)
    if dimensions < len(elements) - 1:
        raise ConfigError(
            "training.weighting.energy_based: the compositions of the data span no convex hull: "
            f"the shares of {', '.join(elements)} vary in {dimensions} of {len(elements) - 1} "
            "directions",
            hint="set training.overrides: {fit: {weighting: {energy: cohesive}}}",
        )


def _relative(by_group: Mapping[str, GroupWeights], config_type: str | None) -> GroupWeights:
    return _NEUTRAL if config_type is None else by_group.get(config_type, _NEUTRAL)
