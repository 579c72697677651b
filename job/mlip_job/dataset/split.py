"""The train/test split: exact, deterministic, stable across generations, group-aware.

Rows that share a group or a fingerprint form a *unit*, and a unit never straddles the split. Where
the parent's dataset knows a unit, it stays on its side. The others are put in an order that
depends on nothing but the seed and their own structures, and fill the test side up to the wanted
count.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlip_job.dataset.entry import FINGERPRINT
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlip_job.dataset.entry import Entries, FingerprintArray
    from mlip_job.dataset.row import BoolArray, IntArray
    from mlip_job.dataset.structures import IndexArray

Side = Literal["train", "test"]

SIDES: tuple[Side, Side] = ("train", "test")

_RANK_BYTES = 8
"""Of a hash that decides an order: more would make no difference, and take more memory."""

_RANKED_AT_ONCE = 10_000

_NOBODY = np.zeros(0, FINGERPRINT)


@dataclass(frozen=True, eq=False)
class Inheritance:
    """Sides that are settled already, by the parent's dataset.

    Attributes
    ----------
    fingerprints
        Sorted.
    tested
        Whether each of them is a test structure.
    groups
        Side of each group.
    """

    fingerprints: FingerprintArray = field(default_factory=_NOBODY.copy)
    tested: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    groups: Mapping[str, Side] = field(default_factory=dict)

    @classmethod
    def of(
        cls, fingerprints: Iterable[tuple[str, Side]], groups: Mapping[str, Side] | None = None
    ) -> Self:
        """Return the inheritance of fingerprints (hex digits) with their sides."""
        digests, tested = bytearray(), bytearray()
        for fingerprint, side in fingerprints:
            digests += bytes.fromhex(fingerprint)
            tested.append(side == "test")
        known, where = np.unique(np.frombuffer(bytes(digests), FINGERPRINT), return_index=True)
        return cls(known, np.frombuffer(bytes(tested), np.bool_)[where], groups or {})


@dataclass(frozen=True, eq=False)
class Split:
    """The outcome.

    Attributes
    ----------
    tested
        Of each entry, whether it is a test row.
    wanted_test
        round(n · fraction), the count of test rows that was aimed at.
    inherited_train, inherited_test
        Rows whose side came from the parent.
    """

    tested: BoolArray
    wanted_test: int
    inherited_train: int
    inherited_test: int

    @property
    def test(self) -> int:
        """Number of test rows: `wanted_test`, unless groups or inheritance forbid it."""
        return int(np.count_nonzero(self.tested))

    @property
    def train(self) -> int:
        """Number of training rows."""
        return len(self.tested) - self.test

    def on(self, side: Side) -> BoolArray:
        """Tell which entries are on a side."""
        return self.tested if side == "test" else ~self.tested


def split_rows(
    entries: Entries, *, fraction: float, seed: int, inherited: Inheritance | None = None
) -> Split:
    """Put each entry on a side of a dataset, neither of which is empty.

    See `divide`.

    Raises
    ------
    DataError
        If a side stays empty, or what the parent had on both sides now belongs together.
    """
    split = divide(entries, fraction=fraction, seed=seed, inherited=inherited)
    _require_both_sides(split, len(entries), fraction)
    return split


def divide(
    entries: Entries, *, fraction: float, seed: int, inherited: Inheritance | None = None
) -> Split:
    """Put each entry on a side.

    Parameters
    ----------
    entries
        In any order: the sides depend on the set of entries only.
    fraction
        Of the rows that shall be test rows, between 0 and 1.
    seed
        Another seed gives another split.
    inherited
        Sides that must not change.

    Raises
    ------
    DataError
        If what the parent had on both sides now belongs together.
    """
    units = _units(entries.structures, entries.group_codes)
    sizes = np.bincount(units)
    stays_train, stays_test = _settled(entries, units, inherited or Inheritance())
    _require_one_side(entries, units, stays_train & stays_test)
    wanted = round(len(entries) * fraction)
    tested = stays_test.copy()
    missing = wanted - int(sizes[stays_test].sum())
    for unit in _in_order(entries, units, ~(stays_train | stays_test), seed):
        if missing <= 0:
            break
        if sizes[unit] <= missing:
            missing -= int(sizes[unit])
            tested[unit] = True
    return Split(
        tested=tested[units],
        wanted_test=wanted,
        inherited_train=int(sizes[stays_train].sum()),
        inherited_test=int(sizes[stays_test].sum()),
    )


def _units(labels: IndexArray, group_codes: IntArray) -> IndexArray:
    """Return for each entry the number of its unit.

    Parameters
    ----------
    labels
        Numbers of the fingerprints.
    group_codes
        Numbers of the groups, -1 for none.
    """
    grouped = group_codes >= 0
    if not grouped.any():
        return labels
    structures, groups = int(labels.max()) + 1, int(group_codes.max()) + 1
    nodes = structures + groups
    ties = (labels[grouped], structures + group_codes[grouped])
    graph = coo_array((np.ones(len(ties[0]), dtype=np.bool_), ties), shape=(nodes, nodes))
    _, components = connected_components(graph, directed=False)
    units: IndexArray = np.unique(components[labels], return_inverse=True)[1]
    return units


def _settled(
    entries: Entries, units: IndexArray, inherited: Inheritance
) -> tuple[BoolArray, BoolArray]:
    """Return which units the parent has in training, and which in test."""

    def on(side: Side) -> BoolArray:
        mine = _have_fingerprint(entries, inherited, side) | _have_group(entries, inherited, side)
        settled = np.zeros(int(units.max(initial=-1)) + 1, dtype=np.bool_)
        settled[units[mine]] = True
        return settled

    return on("train"), on("test")


def _have_fingerprint(entries: Entries, inherited: Inheritance, side: Side) -> BoolArray:
    known = inherited.fingerprints[inherited.tested == (side == "test")]
    if len(known) == 0:
        return np.zeros(len(entries), dtype=np.bool_)
    where = np.searchsorted(known, entries.fingerprints).clip(max=len(known) - 1)
    found: BoolArray = known[where] == entries.fingerprints
    return found


def _have_group(entries: Entries, inherited: Inheritance, side: Side) -> BoolArray:
    # The last place is that of -1, no group.
    there = [inherited.groups.get(group) == side for group in entries.groups]
    return np.array([*there, False], dtype=np.bool_)[entries.group_codes]


def _in_order(entries: Entries, units: IndexArray, free: BoolArray, seed: int) -> IndexArray:
    """Return the free units in an order that only the seed and their structures decide."""
    numbers = np.flatnonzero(free)
    firsts = _first_entries(entries.structures, units, len(free))[numbers]
    ranks, start, digits = bytearray(), f"{seed}:".encode(), 2 * FINGERPRINT.itemsize
    for place in range(0, len(firsts), _RANKED_AT_ONCE):  # so that few are copied
        prints = entries.fingerprints[firsts[place : place + _RANKED_AT_ONCE]]
        text = prints.tobytes().hex().encode()
        for first in range(0, len(text), digits):
            ranks += hashlib.sha256(start + text[first : first + digits]).digest()[:_RANK_BYTES]
    return numbers[np.argsort(np.frombuffer(ranks, ">u8"), kind="stable")]


def _first_entries(structures: IndexArray, units: IndexArray, count: int) -> IndexArray:
    """Return for each unit an entry of that of its structures whose number is the smallest."""
    smallest = np.full(count, len(structures), dtype=np.int64)
    np.minimum.at(smallest, units, structures)
    entry_of = np.empty(len(structures), dtype=np.int64)
    entry_of[structures] = np.arange(len(structures))
    return entry_of[smallest]


def _require_one_side(entries: Entries, units: IndexArray, contradicting: BoolArray) -> None:
    torn = np.flatnonzero(contradicting[units])
    if len(torn) == 0:
        return
    members = np.flatnonzero(units == units[torn[0]])
    rows = ", ".join(map(str, np.sort(entries.row_ids[members])[:10].tolist()))
    codes = np.unique(entries.group_codes[members])
    groups = sorted(entries.groups[code] for code in codes.tolist() if code >= 0)
    raise DataError(
        f"rows {rows} belong on one side ("
        + (f"group {', '.join(groups[:3])}" if groups else "identical structures")
        + "), but the parent generation has them partly in training and partly in test",
        hint="keep dataset.group_by as it was, exclude some of them with database.select, "
        "or begin a new family",
    )


def _require_both_sides(split: Split, total: int, fraction: float) -> None:
    test = split.test
    if 0 < test < total:
        return
    side = "test" if test == 0 else "training"
    raise DataError(
        f"{total} structures at training.test_fraction {fraction:g} leave the {side} side empty",
        hint="provide more structures or another training.test_fraction"
        if split.wanted_test in (0, total)
        else "groups, duplicates or the parent's split allow no other: provide more structures, "
        "or change dataset.group_by or training.test_fraction",
    )
