"""The train/test split: exact, deterministic, stable across generations, group-aware.

Rows that share a group or a fingerprint form a *unit*, and a unit never straddles the split. Where
the parent's dataset knows a unit, it stays on its side. The others are put in an order that
depends on nothing but the seed and their own structures, and fill the test side up to the wanted
count.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Side = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class SplitItem:
    """What the split needs to know of a row.

    Attributes
    ----------
    row_id
        Id in the database.
    fingerprint
        Equal for identical structures.
    group
        Trajectory or parent structure, or None for a row that is a group of its own.
    """

    row_id: int
    fingerprint: str
    group: str | None = None


@dataclass(frozen=True)
class Inheritance:
    """Sides that are settled already, by the parent's dataset."""

    fingerprints: Mapping[str, Side] = field(default_factory=dict)
    groups: Mapping[str, Side] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """The outcome.

    Attributes
    ----------
    sides
        The side of each item, in the order of the items.
    wanted_test
        round(n · fraction), the count of test rows that was aimed at.
    inherited_train, inherited_test
        Rows whose side came from the parent.
    """

    sides: tuple[Side, ...]
    wanted_test: int
    inherited_train: int
    inherited_test: int

    @property
    def test(self) -> int:
        """Number of test rows: `wanted_test`, unless groups or inheritance forbid it."""
        return self.sides.count("test")


def split_rows(
    items: Sequence[SplitItem], *, fraction: float, seed: int, inherited: Inheritance | None = None
) -> Split:
    """Put each item on a side.

    Parameters
    ----------
    items
        In any order: the sides depend on the set of items only.
    fraction
        Of the rows that shall be test rows, between 0 and 1.
    seed
        Another seed gives another split.
    inherited
        Sides that must not change.

    Raises
    ------
    DataError
        If a side stays empty, or what the parent had on both sides now belongs together.
    """
    inherited = inherited or Inheritance()
    wanted = round(len(items) * fraction)
    sides: list[Side] = ["train"] * len(items)
    free: list[list[int]] = []
    counts = {"train": 0, "test": 0}
    for unit in _units(items):
        side = _inherited_side([items[index] for index in unit], inherited)
        if side is None:
            free.append(unit)
            continue
        counts[side] += len(unit)
        for index in unit:
            sides[index] = side
    missing = wanted - counts["test"]
    for unit in sorted(free, key=lambda unit: _rank(items, unit, seed)):
        if len(unit) <= missing:
            missing -= len(unit)
            for index in unit:
                sides[index] = "test"
    split = Split(tuple(sides), wanted, counts["train"], counts["test"])
    _require_both_sides(split, len(items), fraction)
    return split


def _units(items: Sequence[SplitItem]) -> list[list[int]]:
    """Return the indices of the items in sets that are connected by a group or a fingerprint."""
    parents = list(range(len(items)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first_with: dict[tuple[str, str], int] = {}
    for index, item in enumerate(items):
        marks = [("fingerprint", item.fingerprint)]
        if item.group is not None:
            marks.append(("group", item.group))
        for mark in marks:
            parents[root(index)] = root(first_with.setdefault(mark, index))
    units: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(items)):
        units[root(index)].append(index)
    return list(units.values())


def _inherited_side(unit: Sequence[SplitItem], inherited: Inheritance) -> Side | None:
    settled: set[Side] = set()
    for item in unit:
        if item.fingerprint in inherited.fingerprints:
            settled.add(inherited.fingerprints[item.fingerprint])
        if item.group is not None and item.group in inherited.groups:
            settled.add(inherited.groups[item.group])
    if len(settled) > 1:
        rows = ", ".join(str(row_id) for row_id in sorted(item.row_id for item in unit)[:10])
        groups = sorted({item.group for item in unit if item.group is not None})
        raise DataError(
            f"rows {rows} belong on one side ("
            + (f"group {', '.join(groups[:3])}" if groups else "identical structures")
            + "), but the parent generation has them partly in training and partly in test",
            hint="keep dataset.group_by as it was, exclude some of them with database.select, "
            "or begin a new family",
        )
    return next(iter(settled), None)


def _rank(items: Sequence[SplitItem], unit: Sequence[int], seed: int) -> bytes:
    smallest = min(items[index].fingerprint for index in unit)
    return hashlib.sha256(f"{seed}:{smallest}".encode()).digest()


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
