"""Read the extended XYZ files of a dataset: one structure at a time, or many at once."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from ase.data import atomic_numbers
from ase.io.extxyz import read_xyz

from mlip_job.dataset.structures import VOIGT, Structures, starts_of
from mlip_job.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ase import Atoms

    from mlip_job.dataset.row import FloatArray

_COUNT = re.compile(r"\s*\d{1,18}\s*")
_PAIR = re.compile(r'(?:^| )(\w+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))')
_PROPERTIES = "species:S:1:pos:R:3:forces:R:3"
_COLUMNS = 7

_STRUCTURES_AT_ONCE = 500
_ATOMS_AT_ONCE = 20_000


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
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        while first := file.readline():
            if not _COUNT.fullmatch(first):
                raise IntegrityError(f"{path} is no extended XYZ file: {first[:40]!r}")
            lines = int(first) + 1
            rest = list(islice(file, lines))
            if len(rest) < lines:
                raise IntegrityError(f"{path} is cut short")
            yield first + "".join(rest)


def count_atoms(block: str) -> int:
    """Return the number of atoms of a structure's text."""
    return int(block[: block.index("\n")])


def row_id(block: str) -> int:
    """Return the row id in a structure's text."""
    return _row_id(_pairs(block))


def parse(block: str) -> Labelled:
    """Read a structure from its text."""
    (atoms,) = read_xyz(io.StringIO(block), slice(None))
    labels: dict[str, Any] = atoms.calc.results
    atoms.calc = None
    stress = labels.get("stress")
    return Labelled(
        row_id=row_id(block),
        config_type=_config_type(_pairs(block)),
        atoms=atoms,
        energy=float(labels["energy"]),
        forces=np.array(labels["forces"], dtype=np.float64),
        stress=None if stress is None else np.array(stress, dtype=np.float64),
    )


@dataclass(frozen=True)
class Batch:
    """Structures with their energies (eV), and the config type of each, where it has one."""

    structures: Structures
    config_types: Sequence[str | None]


def read_batches(path: Path) -> Iterator[Batch]:
    """Yield the structures of a file, many at a time, each number to the last bit.

    Raises
    ------
    IntegrityError
        If the file is cut short, or is not as `extxyz.structures_text` writes it.
    """
    blocks: list[str] = []
    atoms = 0
    for block in read_blocks(path):
        blocks.append(block)
        atoms += count_atoms(block)
        if len(blocks) == _STRUCTURES_AT_ONCE or atoms >= _ATOMS_AT_ONCE:
            yield _batch(path, blocks)
            blocks, atoms = [], 0
    if blocks:
        yield _batch(path, blocks)


def read_config_types(path: Path) -> Iterator[tuple[str | None, int]]:
    """Yield the config type of each structure of a file, and its number of atoms."""
    for block in read_blocks(path):
        yield _config_type(_pairs(block)), count_atoms(block)


def _batch(path: Path, blocks: Sequence[str]) -> Batch:
    headers = [_pairs(block) for block in blocks]
    try:
        atoms = _atoms(blocks, [_row_id(header) for header in headers])
        return Batch(_structures(headers, *atoms), [_config_type(header) for header in headers])
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{path} is not as an export writes it: {error}") from None


def _atoms(
    blocks: Sequence[str], row_ids: Sequence[int]
) -> tuple[Sequence[int], Sequence[int], Sequence[int], FloatArray]:
    """Return row ids, numbers of atoms, atomic numbers, and positions with forces."""
    counts = [count_atoms(block) for block in blocks]
    words: list[str] = []
    for block, count, row in zip(blocks, counts, row_ids, strict=True):
        before = len(words)
        words += block.split("\n", 2)[2].split()
        if not count or len(words) - before != count * _COLUMNS:
            raise ValueError(f"row {row} has no {_COLUMNS} columns for each of {count} atoms")
    numbers = [atomic_numbers[symbol] for symbol in words[::_COLUMNS]]
    del words[::_COLUMNS]
    values = _finite(words).reshape(-1, _COLUMNS - 1)
    return row_ids, counts, numbers, values


def _structures(
    headers: Sequence[Mapping[str, str]],
    row_ids: Sequence[int],
    counts: Sequence[int],
    numbers: Sequence[int],
    values: FloatArray,
) -> Structures:
    if any(header["Properties"] != _PROPERTIES for header in headers):
        raise ValueError(f"Properties other than {_PROPERTIES}")
    cells = [header.get("Lattice", "0 " * 9).split() for header in headers]
    flags = [[{"T": True, "F": False}[f] for f in header["pbc"].split()] for header in headers]
    none = np.zeros(len(headers))
    return Structures(
        ids=np.array(row_ids, dtype=np.int64),
        starts=starts_of(counts),
        numbers=np.array(numbers, dtype=np.int32),
        positions=np.ascontiguousarray(values[:, :3]),
        forces=np.ascontiguousarray(values[:, 3:]),
        cells=_finite([x for cell in cells for x in cell]).reshape(len(headers), 3, 3),
        pbc=np.array(flags, dtype=np.bool_).reshape(len(headers), 3),
        energies=_finite([header["energy"] for header in headers]),
        has_energy=np.ones(len(headers), dtype=np.bool_),
        free_energies=none,
        has_free_energy=none.astype(np.bool_),
        stresses=np.full((len(headers), VOIGT), np.nan),
    )


def _finite(texts: Sequence[str]) -> FloatArray:
    try:
        # Three times as fast as float() of each.
        numbers = np.array(orjson.loads(f"[{','.join(texts)}]"), dtype=np.float64)
    except (ValueError, TypeError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise ValueError("it holds what is no finite number")
    return numbers


def _pairs(block: str) -> dict[str, str]:
    """Return the texts of a comment line by their keys; quoted ones as they stand in quotes.

    ASE reads "001" as a number and "T" as true.
    """
    begin = block.index("\n") + 1
    pairs: dict[str, str] = {}
    for match in _PAIR.finditer(block[begin : block.index("\n", begin)]):
        key, quoted, plain = match.groups()
        pairs.setdefault(key, plain if quoted is None else quoted)
    return pairs


def _row_id(pairs: Mapping[str, str]) -> int:
    found = pairs.get("row_id", "")
    if not _COUNT.fullmatch(found):
        raise IntegrityError(f"a structure without row id: {str(dict(pairs))[:100]}")
    return int(found)


def _config_type(pairs: Mapping[str, str]) -> str | None:
    written = pairs.get("config_type")
    return re.sub(r"\\(.)", r"\1", written) if written else None
