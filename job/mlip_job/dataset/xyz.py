"""Extended XYZ files: written so that ``ase.io.read`` reads the labels, and read back.

The format: https://github.com/libAtoms/extxyz, in ASE's dialect. Numbers have as many digits as it
takes to read back the same double.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import orjson
from ase.data import atomic_numbers, chemical_symbols
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

from mlip_job.dataset.rows import VOIGT, Structures, starts_of
from mlip_job.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ase import Atoms

    from mlip_job.dataset.rows import FloatArray

_PROPERTIES = "species:S:1:pos:R:3:forces:R:3"
_COLUMNS = 7
_SYMBOLS = [f"{symbol:<6}".encode() for symbol in chemical_symbols]
_PERIODICITIES = [b" ".join(flags) for flags in product((b"F", b"T"), repeat=3)]
_TENSOR = [0, 5, 4, 5, 1, 3, 4, 3, 2]
"""Voigt indices of the nine components of a stress."""
_VOIGT = [0, 4, 8, 5, 2, 1]
"""The inverse mapping."""

_COUNT = re.compile(r"\s*\d{1,18}\s*")
_PAIR = re.compile(r'(?:^| )(\w+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))')

_WRITTEN_AT_ONCE = 50
"""Number of structures whose text fits the processor's cache."""

STRUCTURES_AT_ONCE = 500
_ATOMS_AT_ONCE = 20_000
_REMEMBERED = 256


def structures_text(structures: Structures) -> bytes:
    """Return the text of structures in right-handed cells.

    It holds energy (eV), forces (eV/Å), stress (eV/Å³), the row id, and of the key_value_pairs only
    ``group`` and ``config_type``: a remark added to a row makes no other dataset. A name that ASE
    could not read back is left out; the index of the dataset has them all.
    """
    values = np.concatenate([structures.positions, structures.forces], axis=1)
    headers, starts = _headers(structures), structures.starts.tolist()
    blocks = []
    for first in range(0, len(structures), _WRITTEN_AT_ONCE):
        bounds = starts[first : first + _WRITTEN_AT_ONCE + 1]
        part = slice(bounds[0], bounds[-1])
        symbols = [_SYMBOLS[number] for number in structures.numbers[part].tolist()]
        texts = _number_texts(values[part])
        atoms = [symbol + text for symbol, text in zip(symbols, texts, strict=True)]
        lines: list[bytes] = []
        for start, end in pairwise(bounds):
            lines += (next(headers), *atoms[start - part.start : end - part.start])
        blocks.append(b"\n".join((*lines, b"")))
    return b"".join(blocks)


def read_structures(path: Path) -> Iterator[Structures]:
    """Yield the structures of a file in blocks, with bitwise equal numbers.

    Raise `IntegrityError` if the file is truncated, or differs from the format of
    `structures_text`.
    """
    blocks: list[str] = []
    atoms = 0
    for block in read_blocks(path):
        blocks.append(block)
        atoms += count_atoms(block)
        if len(blocks) == STRUCTURES_AT_ONCE or atoms >= _ATOMS_AT_ONCE:
            yield _read_together(path, blocks)
            blocks, atoms = [], 0
    if blocks:
        yield _read_together(path, blocks)


@dataclass(frozen=True)
class Labelled:
    """One structure, without calculator, with its labels in eV, eV/Å and eV/Å³ (Voigt order)."""

    row_id: int
    config_type: str | None
    atoms: Atoms
    energy: float
    forces: FloatArray
    stress: FloatArray | None


def read_blocks(path: Path) -> Iterator[str]:
    """Yield the text of each structure, reading one at a time.

    Raise `IntegrityError` if the file is truncated.
    """
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        while first := file.readline():
            if not _COUNT.fullmatch(first):
                raise IntegrityError(f"{path} is no extended XYZ file: {first[:40]!r}")
            lines = int(first) + 1
            rest = list(islice(file, lines))
            if len(rest) < lines:
                raise IntegrityError(f"{path} is truncated")
            yield first + "".join(rest)


def parse(block: str) -> Labelled:
    """Read a structure from its text.

    Raise `IntegrityError` if it differs from the format of `structures_text`.
    """
    structures = _read_together("a structure", [block])
    row = structures.row(0)
    return Labelled(
        row_id=row.id,
        config_type=config_type(block),
        atoms=row.atoms(),
        energy=float(structures.energies[0]),
        forces=structures.forces,
        stress=row.stress,
    )


def count_atoms(block: str) -> int:
    """Return the number of atoms in a structure's text."""
    return int(block[: block.index("\n")])


def row_id(block: str) -> int:
    """Return the row id in a structure's text."""
    return _row_id(_header_pairs(block))


def config_type(block: str) -> str | None:
    """Return the config type in a structure's text."""
    return _config_type(_header_pairs(block))


@lru_cache(_REMEMBERED)
def label(text: str | None) -> str | None:
    """Return a group or a config type as read back from a file; None if it is omitted."""
    escaped = _escaped(text or "")
    return escaped.replace("\\\\", "\\") if _is_readable("label", escaped) else None


# Writing


def _headers(structures: Structures) -> Iterator[bytes]:
    """Yield the number of atoms and the comment line of each structure."""
    columns = zip(
        structures.counts.tolist(),
        structures.ids.tolist(),
        _number_texts(structures.cells.reshape(-1, 9)),
        np.any(structures.cells, axis=(1, 2)).tolist(),
        _number_texts(structures.energies.reshape(-1, 1)),
        _number_texts(structures.stresses[:, _TENSOR]),
        (~np.isnan(structures.stresses[:, 0])).tolist(),
        (structures.pbc @ [4, 2, 1]).tolist(),
        structures.pairs,
        strict=True,
    )
    for atoms, id_, cell, has_cell, energy, stress, has_stress, pbc, pairs in columns:
        yield b'%d\n%bProperties=%b row_id=%d%b%b energy=%b%b pbc="%b"' % (
            atoms,
            b'Lattice="%b" ' % cell if has_cell else b"",
            _PROPERTIES.encode(),
            id_,
            _name_text("config_type", pairs.get("config_type")),
            _name_text("group", pairs.get("group")),
            energy,
            b' stress="%b"' % stress if has_stress else b"",
            _PERIODICITIES[pbc],
        )


def _number_texts(rows: FloatArray) -> list[bytes]:
    """Return each row of numbers as a text, separated by spaces."""
    if len(rows) == 0:
        return []
    text = orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].replace(b",", b" ").split(b"] [")


@lru_cache(_REMEMBERED)
def _name_text(name: str, text: str | None) -> bytes:
    escaped = _escaped(text or "")
    if not _is_readable(name, escaped):
        return b""
    return f" {key_val_dict_to_str({name: escaped})}".encode()


def _escaped(text: str) -> str:
    """Return a text that ASE reads back unchanged, except for white space.

    ASE quotes and escapes quotation marks, but not backslashes; a line break would end the comment
    line, and an empty value would swallow the key behind it.
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split()).replace("\\", "\\\\")


def _is_readable(name: str, text: str) -> bool:
    """Return whether ASE can parse a line with this value; a lone "=" swallows a key."""
    written = key_val_dict_to_str({name: text, "row_id": 1})
    return bool(text) and set(key_val_str_to_dict(written)) == {name, "row_id"}


# Reading


def _read_together(source: Path | str, blocks: Sequence[str]) -> Structures:
    headers = [_header_pairs(block) for block in blocks]
    try:
        return _join(blocks, headers)
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{source} was not written by an export: {error}") from None


def _join(blocks: Sequence[str], headers: Sequence[Mapping[str, str]]) -> Structures:
    if any(header["Properties"] != _PROPERTIES for header in headers):
        raise ValueError(f"Properties other than {_PROPERTIES}")
    ids = [_row_id(header) for header in headers]
    counts = [count_atoms(block) for block in blocks]
    words: list[str] = []
    for block, count, id_ in zip(blocks, counts, ids, strict=True):
        before = len(words)
        words += block.split("\n", 2)[2].split()
        if not count or len(words) - before != count * _COLUMNS:
            raise ValueError(f"row {id_} has no {_COLUMNS} columns for each of {count} atoms")
    numbers = [atomic_numbers[symbol] for symbol in words[::_COLUMNS]]
    del words[::_COLUMNS]
    values = _finite(words).reshape(-1, _COLUMNS - 1)
    cells = [header.get("Lattice", "0 " * 9).split() for header in headers]
    stresses = [header.get("stress", "").split() for header in headers]
    voigt = np.full((len(headers), VOIGT), np.nan)
    stressed = [index for index, stress in enumerate(stresses) if stress]
    voigt[stressed] = _finite([x for stress in stresses for x in stress]).reshape(-1, 9)[:, _VOIGT]
    flags = [[{"T": True, "F": False}[f] for f in header["pbc"].split()] for header in headers]
    return Structures(
        ids=np.array(ids, dtype=np.int64),
        starts=starts_of(counts),
        numbers=np.array(numbers, dtype=np.int32),
        positions=np.ascontiguousarray(values[:, :3]),
        forces=np.ascontiguousarray(values[:, 3:]),
        cells=_finite([x for cell in cells for x in cell]).reshape(len(headers), 3, 3),
        pbc=np.array(flags, dtype=np.bool_).reshape(len(headers), 3),
        energies=_finite([header["energy"] for header in headers]),
        stresses=voigt,
        pairs=np.array([{"config_type": _config_type(h)} for h in headers], dtype=np.object_),
    )


def _finite(texts: Sequence[str]) -> FloatArray:
    try:
        # Three times as fast as float() of each.
        numbers = np.array(orjson.loads(f"[{','.join(texts)}]"), dtype=np.float64)
    except (ValueError, TypeError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise ValueError("it holds a value that is not a finite number")
    return numbers


def _header_pairs(block: str) -> dict[str, str]:
    """Return the values of a comment line as texts: ASE reads "001" as a number, "T" as true."""
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
