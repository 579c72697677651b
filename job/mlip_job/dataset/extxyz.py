"""Extended XYZ files that ``ase.io.read`` reads with energy, forces and stress.

The format: https://github.com/libAtoms/extxyz, in ASE's dialect. Numbers have as many digits as it
takes to read back the same double.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from ase.data import chemical_symbols
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.dataset.row import FloatArray
    from mlip_job.dataset.structures import IndexArray, Structures

    CharacterArray = np.ndarray[Any, np.dtype[np.uint8]]

_LINE_STARTS = np.array([list(f"\n{symbol:<6}".encode()) for symbol in chemical_symbols], np.uint8)
"""Of each element, as long as what they take the place of: ``],[0.0,``."""

_PROPERTIES = b"Properties=species:S:1:pos:R:3:forces:R:3"
_PERIODICITIES = [b" ".join(flags) for flags in product((b"F", b"T"), repeat=3)]
_TENSOR = [0, 5, 4, 5, 1, 3, 4, 3, 2]
"""Where the nine components of a stress are in Voigt order."""

_AT_ONCE = 50
"""Structures whose text is made at once: it should stay in the processor's cache."""

_WORD = 8
"""Bytes."""

_REMEMBERED = 256


def structures_text(
    structures: Structures,
    energies: FloatArray,
    groups: Sequence[str | None],
    config_types: Sequence[str | None],
) -> Iterator[bytes]:
    """Yield the text of structures, some at a time.

    Parameters
    ----------
    structures
        In right-handed cells. Their forces (eV/Å) and stresses (eV/Å³) are written with them.
        Their other key_value_pairs are not: a remark added to a row of the database makes no
        other dataset.
    energies
        eV, those that are trained on.
    groups, config_types
        Written into the comment line with the row id, under these names; left out where ASE
        could not read the line with them (the index of the dataset has them all).
    """
    headers = _headers(structures, energies, groups, config_types)
    for first in range(0, len(structures), _AT_ONCE):
        some = structures.part(slice(first, first + _AT_ONCE))
        lines, places = _atom_lines(some)
        text: list[bytes | memoryview] = []
        for start, end in pairwise([*places[some.starts[:-1]].tolist(), len(lines)]):
            text += (next(headers), lines[start:end], b"\n")
        yield b"".join(text)


@lru_cache(_REMEMBERED)
def label(text: str | None) -> str | None:
    """Return what a file gives back of a group or a config type; None where it leaves it out."""
    written = _as_ase_writes_it(text or "")
    return written.replace("\\\\", "\\") if _comes_back("label", written) else None


def _headers(
    structures: Structures,
    energies: FloatArray,
    groups: Sequence[str | None],
    config_types: Sequence[str | None],
) -> Iterator[bytes]:
    """Yield the number of atoms and the comment line of each structure."""
    columns = zip(
        structures.counts.tolist(),
        structures.ids.tolist(),
        _numbers(structures.cells.reshape(-1, 9)),
        np.any(structures.cells, axis=(1, 2)).tolist(),
        _numbers(energies.reshape(-1, 1)),
        _numbers(structures.stresses[:, _TENSOR]),
        (~np.isnan(structures.stresses[:, 0])).tolist(),
        (structures.pbc @ [4, 2, 1]).tolist(),
        config_types,
        groups,
        strict=True,
    )
    for atoms, row_id, cell, has_cell, energy, stress, has_stress, pbc, kind, group in columns:
        yield b'%d\n%b%b row_id=%d%b%b energy=%b%b pbc="%b"' % (
            atoms,
            b'Lattice="%b" ' % cell if has_cell else b"",
            _PROPERTIES,
            row_id,
            _name("config_type", kind),
            _name("group", group),
            energy,
            b' stress="%b"' % stress if has_stress else b"",
            _PERIODICITIES[pbc],
        )


def _atom_lines(structures: Structures) -> tuple[memoryview, IndexArray]:
    """Return the lines of all atoms, each behind its line break, and where they begin.

    The numbers become one text, with a column of zeros in front: ``[[0.0,x,y,…],[0.0,x,…]]``. What
    it has between two atoms is overwritten where it stands; taking it apart would take longer.
    """
    none = np.zeros((len(structures.numbers), 1))
    rows = np.concatenate([none, structures.positions, structures.forces], axis=1)
    text = bytearray(b"]")
    text += orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)
    length = len(text) - len(b"]]")
    text += b" " * (-len(text) % _WORD)
    characters = np.frombuffer(text, np.uint8)
    places = _find_all(characters, b"]")[: len(rows)]
    starts = sliding_window_view(characters, _LINE_STARTS.shape[1], writeable=True)
    starts[places] = _LINE_STARTS.take(structures.numbers, axis=0)
    _replace_all(characters, b",", b" ")
    return memoryview(text)[:length], places


def _find_all(characters: CharacterArray, wanted: bytes) -> IndexArray:
    """Return where a character is, of which no word of eight characters has more than one.

    Numpy goes through flags one by one; most words have none.
    """
    words = (characters == ord(wanted)).view("<u8")
    found = np.flatnonzero(words != 0)
    # Of the eight bytes of such a word one is 1, so the word is a power of 256.
    places: IndexArray = _WORD * found + np.log2(words[found]).astype(np.int64) // 8
    return places


def _replace_all(characters: CharacterArray, old: bytes, new: bytes) -> None:
    """Replace a character in place, faster than `bytes.replace`."""
    characters += (characters == ord(old)) * np.uint8((ord(new) - ord(old)) % 256)


def _numbers(rows: FloatArray) -> list[bytes]:
    """Return each row of numbers as a text, with spaces between them."""
    if len(rows) == 0:
        return []
    text = orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].replace(b",", b" ").split(b"] [")


@lru_cache(_REMEMBERED)
def _name(name: str, text: str | None) -> bytes:
    """Return a named text as it stands in a comment line; empty where ASE could not read it."""
    written = _as_ase_writes_it(text or "")
    return (
        f" {key_val_dict_to_str({name: written})}".encode() if _comes_back(name, written) else b""
    )


def _as_ase_writes_it(text: str) -> str:
    """Return a text that comes back from ASE as it was, but for white space.

    ASE quotes and escapes quotation marks, but not backslashes; a line break would end the comment
    line, and an empty value would swallow the key behind it.
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split()).replace("\\", "\\\\")


def _comes_back(name: str, text: str) -> bool:
    """Tell whether ASE reads a line with this value as it stands; a lone "=" swallows a key."""
    written = key_val_dict_to_str({name: text, "row_id": 1})
    return bool(text) and set(key_val_str_to_dict(written)) == {name, "row_id"}
