"""Pacemaker's data frames: gzip-compressed pickles of pandas DataFrames, in shards.

The columns are those that ``pyace.preparedata.ACEDataset`` reads; ``data.filename`` and
``data.test_filename`` of its input take a list of files.

A file holds the arrays of all its structures, one behind the other, and a call of
`pandas.DataFrame` that takes them apart when the file is read: writing that takes a tiny part of
the time that the objects of each structure would take. Whoever reads the file gets these objects.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_job.dataset.output import OutputFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlip_job.dataset.row import FloatArray
    from mlip_job.dataset.structures import Structures
    from mlip_job.dataset.weights import GroupWeighting
    from mlip_job.naming import DatasetFiles

_PICKLE_PROTOCOL = 5
"""Writes arrays as they are in memory; with an older one they are copied first."""

_MOST_ATOMS = 100_000
"""Of a shard, whatever its number of structures: they take 5 MB in memory."""


class _Call:
    """What is pickled as a call, and so becomes its result when it is read."""

    __slots__ = ("arguments", "function")

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@dataclass(eq=False)
class FrameWriter:
    """Collects structures and writes a file for every `shard_size` of them.

    Attributes
    ----------
    files
        Where the files go and what they are called.
    name
        ``train`` or ``test``, or another that the names of the files begin with.
    shard_size
        Structures per file, and so the largest number held in memory.
    weighting
        Weights to write, or None to leave them to pacemaker.
    written
        The files written so far.
    """

    files: DatasetFiles
    name: str
    shard_size: int
    weighting: GroupWeighting | None = None
    written: list[OutputFile] = field(default_factory=list)
    _parts: list[_Part] = field(default_factory=list, repr=False)
    _structures: int = 0
    _atoms: int = 0

    def add(
        self,
        structures: Structures,
        *,
        energies: FloatArray,
        corrected: FloatArray,
        config_types: Sequence[str | None],
    ) -> None:
        """Add structures; energies in eV, `corrected` less the reference energies."""
        first = 0
        while first < len(structures):
            taken = slice(first, first + self._room(structures, first))
            first = min(taken.stop, len(structures))
            self._parts.append(
                _Part(
                    structures.part(taken), energies[taken], corrected[taken], config_types[taken]
                )
            )
            self._structures += len(self._parts[-1].structures)
            self._atoms += len(self._parts[-1].structures.numbers)
            if self._structures == self.shard_size or self._atoms >= _MOST_ATOMS:
                self.flush()

    def flush(self) -> None:
        """Write what has been collected since the last file; call it once at the end."""
        if not self._parts:
            return
        path = self.files.frame(self.name, len(self.written))
        with OutputFile(path, compressed=True) as file:
            pickle.dump(_frame(self._parts, self.weighting), file, protocol=_PICKLE_PROTOCOL)
        self.written.append(file)
        self._parts.clear()
        self._structures = self._atoms = 0

    def _room(self, structures: Structures, first: int) -> int:
        """Return how many structures from the first on complete the shard."""
        atoms = structures.starts[first + 1 :] - structures.starts[first]
        filled = int(np.searchsorted(atoms, _MOST_ATOMS - self._atoms)) + 1
        return min(self.shard_size - self._structures, filled)


@dataclass(frozen=True)
class _Part:
    """Structures of a shard, and what the frame says of them."""

    structures: Structures
    energies: FloatArray
    corrected: FloatArray
    config_types: Sequence[str | None]


def _frame(parts: Sequence[_Part], weighting: GroupWeighting | None) -> _Call:
    """Return the call that makes the frame of a shard."""

    def joined(name: str) -> _Call:
        return _Call(np.concatenate, [getattr(part.structures, name) for part in parts])

    def apart(atoms: Any) -> _Call:
        return _Call(np.split, atoms, ends)

    counts = np.concatenate([part.structures.counts for part in parts])
    ends = np.cumsum(counts)[:-1]
    none = _Call(repeat, None)
    # symbols, positions, numbers; tags, momenta, masses, magmoms, charges, scaled; cell, pbc
    atoms = (none, apart(joined("positions")), apart(joined("numbers")), *(none,) * 6)
    columns: dict[str, Any] = {
        "ase_atoms": _Call(list, _Call(map, Atoms, *atoms, joined("cells"), joined("pbc"))),
        "energy": np.concatenate([part.energies for part in parts]),
        "energy_corrected": np.concatenate([part.corrected for part in parts]),
        "forces": apart(joined("forces")),
        # Pacemaker lowers the weights of names that start with "augmented".
        "name": [f"row-{id_}" for part in parts for id_ in part.structures.ids.tolist()],
    }
    if weighting is not None:
        types = [config_type for part in parts for config_type in part.config_types]
        columns["w_energy"] = np.array([weighting.energy(config_type) for config_type in types])
        forces = np.array([weighting.forces(config_type) for config_type in types])
        columns["w_forces"] = apart(np.repeat(forces, counts))
    return _Call(pd.DataFrame, columns)
