"""ASE's own tables, read past ASE: the same values, many times faster.

ASE makes an object of each row and fetches whole results; here the arrays of many rows are joined
as the bytes that they are stored as. What does not look as ASE writes it is left to ASE.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlip_job.dataset.structures import VOIGT, Structures, present, starts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlip_job.dataset.structures import IndexArray

Pairs = dict[str, str | int | float | bool]

VERSIONS = (8, 9)
"""Versions of ASE's tables that are known: 9 differs from 8 in the column ``data``, not read."""

COLUMNS = (
    "id", "mtime", "numbers", "positions", "cell", "pbc",
    "energy", "free_energy", "forces", "stress", "key_value_pairs",
)  # fmt: skip

IDS_AT_ONCE = 2_000
NO_STRESS = np.full(VOIGT, np.nan)
_CACHED_PAIRS = 256


@dataclass(frozen=True)
class RawPage:
    """Some rows, in the order of their ids.

    Attributes
    ----------
    structures
        Those that are complete.
    mtimes
        When each of these was last written, in ASE's unit.
    pairs
        The key_value_pairs of each.
    others
        Ids of rows that ASE has to read.
    """

    structures: Structures
    mtimes: Sequence[float]
    pairs: Sequence[Mapping[str, Any]]
    others: Sequence[int]


class Tables(Protocol):
    """The tables of one database, over a connection of their own."""

    def columns(self) -> set[str]:
        """Return the names of the columns of ``systems``."""

    def ids(self, sql: str, values: Sequence[Any]) -> Iterator[list[tuple[int, float]]]:
        """Yield id and mtime of the rows that a statement of ASE's selects, in pieces."""

    def pages(
        self, select: Callable[[str], tuple[str, Sequence[Any]]], ids: IndexArray, size: int
    ) -> Iterator[RawPage]:
        """Yield rows, `size` at a time.

        Parameters
        ----------
        select
            Makes ASE's statement that selects these columns.
        ids
            What `ids` found; rows that were removed meanwhile are missing.
        size
            Rows in a page.
        """

    def close(self) -> None:
        """End the connection."""


class Layout(Protocol):
    """How a kind of database stores arrays."""

    def count_atoms(self, row: Sequence[Any]) -> int:
        """Return the number of atoms of a row; 0 where an array is not as it should be."""

    def join(self, arrays: Iterable[Any], dtype: str) -> np.ndarray[Any, Any]:
        """Return the numbers of arrays, one after the other; `NO_STRESS` for None."""


def decoder(decode: Callable[[str], Any]) -> Callable[[str], Pairs]:
    """Return ASE's own decoder of key_value_pairs with a memory: rows often share them."""

    @lru_cache(_CACHED_PAIRS)
    def decode_once(text: str) -> Pairs:
        pairs = decode(text)
        return {key: pairs[key] for key in sorted(pairs)}

    return decode_once


def make_page(
    rows: Iterable[Sequence[Any]], layout: Layout, decode: Callable[[str], Pairs]
) -> RawPage:
    """Join the rows that are complete; each has the values of `COLUMNS`."""
    complete: list[Sequence[Any]] = []
    pairs: list[Pairs] = []
    counts: list[int] = []
    others: list[int] = []
    for row in rows:
        try:
            atoms = layout.count_atoms(row) if _is_energy(row[6]) and _is_energy(row[7]) else 0
            pair = decode(row[10])
        except (TypeError, ValueError, AttributeError, RecursionError):  # JSON nested too deep
            atoms, pair = 0, {}
        if atoms > 0:
            complete.append(row)
            pairs.append(pair)
            counts.append(atoms)
        else:
            others.append(row[0])
    columns = list(zip(*complete, strict=True)) or [()] * len(COLUMNS)
    return RawPage(_join(columns, counts, layout, pairs), columns[1], pairs, others)


def _is_energy(value: Any) -> bool:
    return value is None or isinstance(value, float)


def _join(
    columns: Sequence[Sequence[Any]], counts: Sequence[int], layout: Layout, pairs: Sequence[Pairs]
) -> Structures:
    ids, _, numbers, positions, cells, pbc, energies, free_energies, forces, stresses, _ = columns
    voigt = np.array(layout.join(stresses, "<f8")).reshape(-1, VOIGT)
    voigt[~np.isfinite(voigt).all(axis=1)] = np.nan
    directions = np.array(pbc, dtype=np.int64).reshape(-1, 1) & np.array([1, 2, 4])
    return Structures(
        ids=np.array(ids, dtype=np.int64),
        starts=starts_of(counts),
        numbers=layout.join(numbers, "<i4"),
        positions=layout.join(positions, "<f8").reshape(-1, 3),
        forces=layout.join(forces, "<f8").reshape(-1, 3),
        cells=layout.join(cells, "<f8").reshape(-1, 3, 3),
        pbc=directions.astype(np.bool_),
        energies=np.array(energies, dtype=np.float64),
        has_energy=present(energies),
        free_energies=np.array(free_energies, dtype=np.float64),
        has_free_energy=present(free_energies),
        stresses=voigt,
        pairs=np.array(pairs, dtype=np.object_),
    )
