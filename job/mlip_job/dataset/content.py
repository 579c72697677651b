"""Hash of the content of one side of a dataset, independent of file formats."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlip_job.dataset.structures import Structures


class ContentHash:
    """Hash a stream of structures, independent of how it is divided into blocks.

    Each column is hashed separately: numbers as in memory, texts prefixed by their lengths. The
    result is the hash of these hashes.
    """

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def update(self, structures: Structures) -> None:
        """Add structures with the energies to train on."""
        # NaN means no stress: use a single bit pattern for it.
        stresses = np.where(np.isnan(structures.stresses), np.nan, structures.stresses)
        for name, values, dtype in (
            ("row_id", structures.ids, "<i8"),
            ("atoms", structures.counts, "<i8"),
            ("numbers", structures.numbers, "<i4"),
            ("positions", structures.positions, "<f8"),
            ("forces", structures.forces, "<f8"),
            ("cell", structures.cells, "<f8"),
            ("pbc", structures.pbc, "u1"),
            ("stress", stresses, "<f8"),
            ("energy", structures.energies, "<f8"),
        ):
            self._column(name).update(np.ascontiguousarray(values, dtype))
        texts = b"".join(_counted(pairs.get("config_type")) for pairs in structures.pairs)
        self._column("config_type").update(texts)

    def hexdigest(self) -> str:
        """Return the hash of the structures added."""
        digest = hashlib.sha256()
        for name, column in sorted(self._columns.items()):
            digest.update(f"{name} {column.hexdigest()}\n".encode())
        return digest.hexdigest()

    def _column(self, name: str) -> Any:
        return self._columns.setdefault(name, hashlib.sha256())


def _counted(text: str | None) -> bytes:
    if text is None:
        return b"-"
    encoded = text.encode()
    return b"%d:%b" % (len(encoded), encoded)
