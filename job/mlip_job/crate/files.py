"""What the files of a pulled generation are, in words and as media types."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FORMATS = {
    ".json": "application/json",
    ".html": "text/html",
    ".yaml": "application/yaml",
    ".yace": "application/yaml",
    ".asi": "application/zip",
    ".xyz": "chemical/x-xyz",
    ".gzip": "application/gzip",
    ".gz": "application/gzip",
    ".txt": "text/plain",
    ".log": "text/plain",
}

_MEANINGS = {
    "input.yaml": "Input of pacemaker",
    "train.log": "All that pacemaker printed",
    "report.json": "Errors, learning curve and checks of the potential",
    "report.html": "The report, for reading",
    "manifest.json": "Record of the generation: lineage, configuration, versions, hashes",
    "dataset/dataset.json": "Record of the dataset: counts, split, rejections, hashes",
    "dataset/index.csv.gz": "Row id, fingerprint, group and side of every structure",
    "dataset/train.xyz": "Training structures with energies (eV), forces (eV/Å), stress (eV/Å³)",
    "dataset/test.xyz": "Test structures with energies (eV), forces (eV/Å), stress (eV/Å³)",
    ".yace": "The potential, for LAMMPS (pair_style pace) and ASE",
    ".yaml": "The potential as it was fitted, for LAMMPS (pair_style pace/extrapolation)",
    ".asi": "Active set of the potential: extrapolation grades are measured by it",
    ".pckl.gzip": "Data frame that pacemaker reads",
    ".txt": "Learning curve: errors over iterations (eV/atom, eV/Å)",
}
"""By path, else by how the name ends."""


def describe_file(path: str, local: Path) -> dict[str, str]:
    """Return name, description, format, size and hash of a file in the terms of schema.org."""
    with local.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": path,
        "description": _meaning(path),
        "encodingFormat": _FORMATS.get(PurePosixPath(path).suffix, "application/octet-stream"),
        "contentSize": str(local.stat().st_size),
        "sha256": sha256,
    }


def _meaning(path: str) -> str:
    if path in _MEANINGS:
        return _MEANINGS[path]
    matching = (text for ending, text in _MEANINGS.items() if path.endswith(ending))
    return next(matching, "Artefact of the training")
