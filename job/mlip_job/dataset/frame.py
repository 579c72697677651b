"""Pacemaker's data frames: gzip-compressed pickles of pandas DataFrames, in shards.

The columns are those that ``pyace.preparedata.ACEDataset`` reads; ``data.filename`` and
``data.test_filename`` of its input take a list of files.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.dataset.row import StructureRow
    from mlip_job.dataset.split import Side
    from mlip_job.dataset.weights import GroupWeighting
    from mlip_job.naming import DatasetFiles

_PICKLE_PROTOCOL = 4
"""The one that pacemaker's own tools write."""


@dataclass
class FrameWriter:
    """Collects the structures of one side and writes a file for every `shard_size` of them.

    Attributes
    ----------
    files
        Where the files go and what they are called.
    side
        ``train`` or ``test``.
    shard_size
        Structures per file, and so the largest number held in memory.
    weighting
        Weights to write, or None to leave them to pacemaker.
    names
        The files written so far.
    """

    files: DatasetFiles
    side: Side
    shard_size: int
    weighting: GroupWeighting | None = None
    names: list[str] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def add(
        self, row: StructureRow, *, energy: float, energy_corrected: float, config_type: str | None
    ) -> None:
        """Add a structure; energies in eV, `energy_corrected` less the reference energies."""
        atoms = row.atoms()
        values: dict[str, Any] = {
            "ase_atoms": atoms,
            "energy": energy,
            "energy_corrected": energy_corrected,
            "forces": row.forces,
            # Pacemaker lowers the weights of names that start with "augmented".
            "name": f"row-{row.id}",
        }
        if self.weighting is not None:
            values["w_energy"] = self.weighting.energy(config_type)
            values["w_forces"] = np.full(len(atoms), self.weighting.forces(config_type))
        self._rows.append(values)
        if len(self._rows) == self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected since the last file; call it once at the end."""
        if not self._rows:
            return
        path = self.files.frame(self.side, len(self.names))
        _write_frame(path, pd.DataFrame(self._rows))
        self.names.append(path.name)
        self._rows.clear()


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    # No file name and no time in the gzip header: the same rows give the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed,
    ):
        frame.to_pickle(packed, compression=None, protocol=_PICKLE_PROTOCOL)
