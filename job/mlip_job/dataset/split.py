"""The train/test split: exact, deterministic, stable across generations, group-aware.

Rows that share a group or hold the same crystal form a *unit*, and a unit never straddles the
split. A unit of the parent's dataset stays on its side. The others are split separately: they are
sorted in an order that depends only on the seed and their structures, and assigned to the test side
up to the wanted count, or the nearest possible one.

Where a key_value_pair of the rows decides the sides, they are checked against the same rules.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlip_job.dataset.entries import FINGERPRINT
from mlip_job.dataset.rows import name_rows
from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mlip_job.dataset.entries import Entries, FingerprintArray
    from mlip_job.dataset.rows import BoolArray, IndexArray, IntArray


Side = Literal["train", "test"]

SIDES: tuple[Side, Side] = ("train", "test")

_RANK_BYTES = 8
"""Bytes of a hash that are used for sorting: enough for uniqueness, with little memory."""

_RANKED_AT_ONCE = 10_000

_LISTED = 10
"""Groups, structures or values of one kind in a message."""

_ROUNDING = 1e-6
"""Rows. More than a product of a fraction and a number of rows is off its exact value."""

_NOBODY = np.zeros(0, FINGERPRINT)


@dataclass(frozen=True, eq=False)
class Inheritance:
    """Sides that are inherited from the parent's dataset.

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
    """Result of a split.

    Attributes
    ----------
    tested
        Of each entry, whether it is a test row.
    wanted_test
        Target number of test rows: the inherited ones and the fraction of the others, or that of a
        key.
    inherited_train, inherited_test
        Rows whose side came from the parent.
    """

    tested: BoolArray
    wanted_test: int
    inherited_train: int
    inherited_test: int

    @property
    def test(self) -> int:
        """Number of test rows: `wanted_test`, unless groups or equal structures forbid it."""
        return int(np.count_nonzero(self.tested))

    @property
    def train(self) -> int:
        """Number of training rows."""
        return len(self.tested) - self.test

    @property
    def inherited(self) -> int:
        """Number of rows whose side came from the parent."""
        return self.inherited_train + self.inherited_test

    @property
    def new(self) -> int:
        """Number of rows whose side did not come from the parent."""
        return len(self.tested) - self.inherited

    @property
    def new_test(self) -> int:
        """Number of test rows among the new ones."""
        return self.test - self.inherited_test

    def on(self, side: Side) -> BoolArray:
        """Return which entries are on a side."""
        return self.tested if side == "test" else ~self.tested


def split_rows(
    entries: Entries, *, fraction: float, seed: int, inherited: Inheritance | None = None
) -> Split:
    """Assign each entry to a side of a dataset; see `divide`.

    Neither side is empty, except for the test side if the fraction is 0.

    Raises
    ------
    DataError
        If a side stays empty, or rows on both sides of the parent's dataset now form one unit.
    """
    split = divide(entries, fraction=fraction, seed=seed, inherited=inherited, both=True)
    _require_both_sides(split, len(entries), fraction)
    return split


def divide(
    entries: Entries,
    *,
    fraction: float,
    seed: int,
    inherited: Inheritance | None = None,
    both: bool = False,
) -> Split:
    """Assign each entry to a side.

    Of the entries whose sides are not inherited, a share is test: fraction · their number, rounded
    up or down, whichever brings the whole nearer to round(n · fraction).

    Parameters
    ----------
    entries
        In any order: the sides depend on the set of entries only.
    fraction
        Of the rows that shall be test rows, 0 or more and below 1.
    seed
        Another seed gives another split.
    inherited
        Sides that must not change.
    both
        Whether to accept a count further away if the nearest one leaves a side empty.

    Raises
    ------
    DataError
        If rows on both sides of the parent's dataset now form one unit.
    """
    inherited = inherited or Inheritance()
    units = _units(_labels(entries, inherited), entries.group_codes)
    sizes = np.bincount(units)
    stays_train, stays_test = _settled(entries, units, inherited)
    _require_one_side(entries, units, stays_train & stays_test)
    free, tested = ~(stays_train | stays_test), stays_test.copy()
    available, kept = int(sizes[free].sum()), int(sizes[stays_test].sum())
    share = _share(available, round(len(entries) * fraction) - kept, fraction)
    order = _in_order(entries, units, free, seed)
    tested[order] = choose_subset(
        sizes[order],
        share,
        least=int(both and share > 0 and not stays_test.any()),
        most=available - int(both and share < available and not stays_train.any()),
    )
    return Split(
        tested=tested[units],
        wanted_test=kept + share,
        inherited_train=int(sizes[stays_train].sum()),
        inherited_test=kept,
    )


def split_by_key(entries: Entries, *, key: str, inherited: Inheritance | None = None) -> Split:
    """Assign each entry to the side named by its key_value_pair.

    Parameters
    ----------
    entries
        Their `sides` are the values of the key.
    key
        Its name, for messages.
    inherited
        Sides that must not change.

    Raises
    ------
    DataError
        If a row has no side, groups or equal structures are on both, a row is on another side than
        in the parent's dataset, or a side stays empty. One error lists all of it.
    """
    trained, tested = _named(entries, "train"), _named(entries, "test")
    known_train, known_test = _known(entries, inherited or Inheritance())
    problems = [
        *_without_side(entries, ~(trained | tested)),
        *_without_rows(trained, tested),
        *_groups_on_both_sides(entries, trained, tested),
        *_structures_on_both_sides(entries, trained, tested),
        *_other_than_parent(entries, tested & known_train, "test", "train"),
        *_other_than_parent(entries, trained & known_test, "train", "test"),
    ]
    if problems:
        raise DataError(
            f"dataset.split_key: the key_value_pair {key!r} gives no split: " + "; ".join(problems),
            hint="correct the key on these rows (train or test), exclude rows with "
            "database.select, or set split_key: null; a family whose parent has another split has "
            "to keep it",
        )
    return Split(
        tested=tested,
        wanted_test=int(np.count_nonzero(tested)),
        inherited_train=int(np.count_nonzero(known_train)),
        inherited_test=int(np.count_nonzero(known_test)),
    )


def _share(available: int, missing: int, fraction: float) -> int:
    """Return how many of the available rows become test rows: about as many as are missing."""
    exact = available * fraction
    low, high = math.floor(exact + _ROUNDING), math.ceil(exact - _ROUNDING)
    return min(max(missing, low), high)


def _labels(entries: Entries, inherited: Inheritance) -> IndexArray:
    """Return for each entry the number of its crystal.

    Twins on both sides of a parent's dataset from before twins were detected stay separate.
    """
    stays_train, stays_test = _settled(entries, entries.twins, inherited)
    torn = (stays_train & stays_test)[entries.twins]
    if not torn.any():
        return entries.twins
    apart = np.where(torn, len(entries) + entries.structures, entries.twins)
    labels: IndexArray = np.unique(apart, return_inverse=True)[1]
    return labels


def _units(labels: IndexArray, group_codes: IntArray) -> IndexArray:
    """Return for each entry the number of its unit.

    Parameters
    ----------
    labels
        Numbers of the crystals.
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

    def units_of(known: BoolArray) -> BoolArray:
        settled = np.zeros(int(units.max(initial=-1)) + 1, dtype=np.bool_)
        settled[units[known]] = True
        return settled

    in_train, in_test = _known(entries, inherited)
    return units_of(in_train), units_of(in_test)


def _known(entries: Entries, inherited: Inheritance) -> tuple[BoolArray, BoolArray]:
    """Return which entries the parent has in training, and which in test."""

    def on(side: Side) -> BoolArray:
        found = _have_fingerprint(entries, inherited, side)
        return found | _have_group(entries, inherited, side)

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
    """Return the free units in an order that depends only on the seed and their structures."""
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
    if 0 < test < total or (test == 0 < total and fraction == 0):
        return
    side = "test" if test == 0 else "training"
    raise DataError(
        f"{total} structures at training.test_fraction {fraction:g} leave the {side} side empty",
        hint="provide more structures or another training.test_fraction"
        if split.wanted_test in (0, total)
        else "groups, equal structures or the parent's split allow no other: provide more "
        "structures, or change dataset.group_by",
    )


def _named(entries: Entries, side: Side) -> BoolArray:
    # The last place is that of -1, no value.
    return np.array([*(text == side for text in entries.sides), False])[entries.side_codes]


def _without_side(entries: Entries, missing: BoolArray) -> Iterator[str]:
    codes = entries.side_codes[missing]
    rows = entries.row_ids[missing]
    values = np.unique(codes)
    for code in values[:_LISTED].tolist():
        said = f"the value {entries.sides[code]!r}" if code >= 0 else "no value"
        yield f"{said} in {name_rows(rows[codes == code].tolist())}"
    if len(values) > _LISTED:
        others = rows[np.isin(codes, values[_LISTED:])]
        yield f"{len(values) - _LISTED} more values in {name_rows(others.tolist())}"


def _without_rows(trained: BoolArray, tested: BoolArray) -> Iterator[str]:
    for side, rows in zip(SIDES, (trained, tested), strict=True):
        if not rows.any():
            yield f"no row is on the side {side!r}"


def _groups_on_both_sides(entries: Entries, trained: BoolArray, tested: BoolArray) -> Iterator[str]:
    both = _on_both_sides(entries.group_codes, trained, tested)
    for code in both[:_LISTED].tolist():
        mine = entries.group_codes == code
        rows = _by_side(entries, mine & trained, mine & tested)
        yield f"the group {entries.groups[code]!r} is on both sides: {rows}"
    if len(both) > _LISTED:
        yield f"so are {len(both) - _LISTED} more groups"


def _structures_on_both_sides(
    entries: Entries, trained: BoolArray, tested: BoolArray
) -> Iterator[str]:
    both = _on_both_sides(entries.twins, trained, tested)
    for number in both[:_LISTED].tolist():
        mine = entries.twins == number
        rows = _by_side(entries, mine & trained, mine & tested)
        yield f"equal structures are on both sides: {rows}"
    if len(both) > _LISTED:
        yield f"so are {len(both) - _LISTED} more structures"


def _on_both_sides(
    labels: IndexArray | IntArray, trained: BoolArray, tested: BoolArray
) -> IndexArray | IntArray:
    labelled = labels >= 0
    both: IndexArray | IntArray = np.intersect1d(
        labels[trained & labelled], labels[tested & labelled]
    )
    return both


def _by_side(entries: Entries, trained: BoolArray, tested: BoolArray) -> str:
    train, test = (name_rows(entries.row_ids[mine].tolist()) for mine in (trained, tested))
    return f"train {train}, test {test}"


def _other_than_parent(
    entries: Entries, moved: BoolArray, side: Side, before: Side
) -> Iterator[str]:
    if moved.any():
        rows = name_rows(entries.row_ids[moved].tolist())
        yield f"the parent generation has {rows} in {before}, the key says {side}"


def choose_subset(sizes: IndexArray, wanted: int, *, least: int = 0, most: int) -> BoolArray:
    """Return a mask of the units to take.

    Units are taken in order as long as they fit. If this misses the wanted count, the nearest
    reachable count is used, the smaller one of two. Then the first units of each size are taken,
    about as many as before.

    Parameters
    ----------
    sizes
        Of the units, positive, in the order in which they are preferred.
    wanted
        Sum of the sizes of the units taken.
    least, most
        Limits of that sum. Where no choice keeps them, the units are those taken at first.
    """
    first = _fill(sizes, wanted)
    total = int(sizes[first].sum())
    allowed = least <= total <= most
    if total == wanted and allowed:
        return first
    if most < least:
        return first
    values, of_unit, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    classes = [_Size(v, c) for v, c in zip(values.tolist(), counts.tolist(), strict=True)]
    sums = _reachable(classes, min(most, 2 * wanted - total) if allowed else most)
    nearest = _nearest(sums[-1], wanted, least)
    if nearest is None or (allowed and abs(nearest - wanted) >= wanted - total):
        return first
    before = np.bincount(of_unit[first], minlength=len(classes)).tolist()
    taken = np.array(_backwards(classes, sums, nearest, before), dtype=np.int64)
    order = np.argsort(of_unit, kind="stable")
    rank = np.arange(len(sizes)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    chosen[order] = rank < taken[of_unit[order]]
    return chosen


@dataclass(frozen=True)
class _Size:
    """A size, and how many units have it."""

    value: int
    count: int


def _fill(sizes: IndexArray, wanted: int) -> BoolArray:
    """Take each unit that still fits."""
    taken = np.zeros(len(sizes), dtype=np.bool_)
    missing = wanted
    for place, size in enumerate(sizes):
        if missing <= 0:
            break
        if size <= missing:
            missing -= int(size)
            taken[place] = True
    return taken


def _reachable(classes: Sequence[_Size], most: int) -> list[bytes]:
    """Return the sums up to `most` that the first 0, 1, 2, … sizes give, one bit for each sum."""
    mask, length = (1 << (most + 1)) - 1, most // 8 + 1
    sums = [(1).to_bytes(length, "little")]
    bits = 1
    for size in classes:
        left, step = size.count, 1
        while left > 0:  # 1, 2, 4, … units and the rest give every number of them
            step = min(step, left)
            bits = (bits | bits << (step * size.value)) & mask
            left, step = left - step, 2 * step
        sums.append(bits.to_bytes(length, "little"))
    return sums


def _nearest(bits: bytes, wanted: int, least: int) -> int | None:
    found = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little"))
    found = found[found >= least]
    return int(found[np.argmin(np.abs(found - wanted))]) if len(found) else None


def _backwards(
    classes: Sequence[_Size], sums: Sequence[bytes], total: int, before: Sequence[int]
) -> list[int]:
    """Return how many units of each size add up to `total`, near to how many there were before."""
    taken: list[int] = []
    for number in reversed(range(len(classes))):
        size, earlier = classes[number], sums[number]
        for count in _outwards(before[number], size.count):
            rest = total - count * size.value
            if rest >= 0 and earlier[rest // 8] >> rest % 8 & 1:
                break
        taken.append(count)
        total = rest
    return taken[::-1]


def _outwards(middle: int, most: int) -> Iterator[int]:
    """Yield all numbers from 0 to `most`, those near the middle first."""
    yield from sorted(range(most + 1), key=lambda number: (abs(number - middle), number))
