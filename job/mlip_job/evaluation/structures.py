"""The structures of a dataset, one after the other, from its extended XYZ files."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.io.extxyz import read_xyz

from mlip_job.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ase import Atoms

    from mlip_job.dataset.row import FloatArray

_ROW_ID = re.compile(r"(?:^| )row_id=(\d+)")
_CONFIG_TYPE = re.compile(r'(?:^| )config_type=(?:"((?:[^"\\]|\\.)*)"|(\S+))')


@dataclass(frozen=True)
class Labelled:
    """A structure and what DFT says of it.

    Attributes
    ----------
    row_id, config_type
        Its row in the database and its type, where it has one.
    atoms
        Without calculator.
    energy
        eV.
    forces
        eV/Å.
    stress
        eV/Å³ in Voigt order, or None.
    """

    row_id: int
    config_type: str | None
    atoms: Atoms
    energy: float
    forces: FloatArray
    stress: FloatArray | None


def read_blocks(path: Path) -> Iterator[str]:
    """Yield the text of each structure, reading no more than that at a time.

    Raises
    ------
    IntegrityError
        If the file is cut short.
    """
    with path.open(encoding="utf-8") as file:
        while first := file.readline():
            try:
                lines = int(first) + 1
            except ValueError:
                raise IntegrityError(f"{path} is no extended XYZ file: {first[:40]!r}") from None
            rest = list(islice(file, lines))
            if len(rest) < lines:
                raise IntegrityError(f"{path} is cut short")
            yield first + "".join(rest)


def count_atoms(block: str) -> int:
    """Return the number of atoms of a structure's text."""
    return int(block[: block.index("\n")])


def row_id(block: str) -> int:
    """Return the row id in a structure's text."""
    match = _ROW_ID.search(_comment(block))
    if match is None:
        raise IntegrityError(f"a structure without row id: {_comment(block)[:100]!r}")
    return int(match.group(1))


def parse(block: str) -> Labelled:
    """Read a structure from its text."""
    (atoms,) = read_xyz(io.StringIO(block), slice(None))
    labels: dict[str, Any] = atoms.calc.results
    atoms.calc = None
    stress = labels.get("stress")
    return Labelled(
        row_id=row_id(block),
        config_type=_config_type(block),
        atoms=atoms,
        energy=float(labels["energy"]),
        forces=np.array(labels["forces"], dtype=np.float64),
        stress=None if stress is None else np.array(stress, dtype=np.float64),
    )


def _config_type(block: str) -> str | None:
    """Return the type as it was written: ASE reads "001" as a number and "T" as true."""
    match = _CONFIG_TYPE.search(_comment(block))
    if match is None:
        return None
    quoted, plain = match.groups()
    return re.sub(r"\\(.)", r"\1", plain if quoted is None else quoted)


def _comment(block: str) -> str:
    begin = block.index("\n") + 1
    return block[begin : block.index("\n", begin)]
