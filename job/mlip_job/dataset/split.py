"""The train/test split: exact, deterministic, stable across generations, group-aware.

Rows that share a group or hold the same crystal form a *unit*, and a unit never straddles the
split. A unit of the parent's dataset stays on its side. The others are split separately: they are
sorted in an order that depends only on the seed and their structures, and assigned to the test side
up to the wanted count, or the nearest possible one.

Where a key_value_pair of the rows decides the sides, they are checked against the same rules.

The validation part, held-out training structures that choose the best iteration of a fit, is split
off by the same rules. It depends only on the dataset and its seed: it is not stored, and does not
change when a fit resumes. The order in which structures are chosen does not depend on the others,
so that most of the validation part of one generation is in that of the next one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Self

import numpy as np

from mlip_job.dataset.files import read_index
from mlip_job.dataset.rows import FINGERPRINT, SIDES, EntryCollector, joined, name_rows
from mlip_job.dataset.twins import TwinFinder
from mlip_job.dataset.xyz import read_structures
from mlip_job.errors import DataError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.rows import (
        BoolArray,
        Entries,
        FingerprintArray,
        IndexArray,
        IntArray,
        Side,
    )
    from mlip_job.paths import DatasetFiles


_RANK_BYTES = 8
"""Of a hash: enough for uniqueness."""

_LISTED = 10
"""Groups, structures or values of one kind in a message."""

_ROUNDING = 1e-6
"""Rows. More than a product of a fraction and a number of rows is off its exact value."""

FEWEST = 20
"""Minimum number of training structures: with fewer, a validation part is not significant."""

_NOBODY = np.zeros(0, FINGERPRINT)


@dataclass(frozen=True, eq=False)
class Inheritance:
    """Sides that are inherited from the parent's dataset.

    `tested` says of each fingerprint (sorted) whether it is a test structure; `groups` has the side
    of each group.
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

    `tested` says of each entry whether it is a test row; `wanted_test` is the target number of test
    rows: the inherited ones and the fraction of the others, or that of a key. `inherited_train` and
    `inherited_test` are numbers of rows whose side came from the parent.
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

    Raise `DataError` if a side stays empty, or rows on both sides of the parent's dataset now form
    one unit.
    """
    split = divide(entries, fraction=fraction, seed=seed, inherited=inherited, both=True)
    total, test = len(entries), split.test
    if 0 < test < total or (test == 0 < total and fraction == 0):
        return split
    side = "test" if test == 0 else "training"
    raise DataError(
        f"{total} structures at training.test_fraction {fraction:g} leave the {side} side empty",
        hint="provide more structures or another training.test_fraction"
        if split.wanted_test in (0, total)
        else "groups, equal structures or the parent's split allow no other: provide more "
        "structures, or change dataset.group_by",
    )


def divide(
    entries: Entries,
    *,
    fraction: float,
    seed: int,
    inherited: Inheritance | None,
    both: bool = False,
) -> Split:
    """Assign each entry to a side; this depends on the set of entries, not on their order.

    Of the entries whose sides are not inherited, a share is test: fraction · their number, rounded
    up or down, whichever brings the whole nearer to round(n · fraction). With `both`, neither side
    stays empty if a count further away avoids it.

    Raise `DataError` if rows on both sides of the parent's dataset now form one unit.
    """
    inherited = inherited or Inheritance()
    units = joined(_crystals(entries, inherited), entries.group_codes)
    sizes = np.bincount(units)
    stays_train, stays_test = _settled(entries, units, inherited)
    _require_one_side(entries, units, stays_train & stays_test)
    free, tested = ~(stays_train | stays_test), stays_test.copy()
    available, kept = int(sizes[free].sum()), int(sizes[stays_test].sum())
    exact, missing = available * fraction, round(len(entries) * fraction) - kept
    share = min(max(missing, math.floor(exact + _ROUNDING)), math.ceil(exact - _ROUNDING))
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
    """Assign each entry to the side in `entries.sides`, the values of its key_value_pair `key`.

    Raise `DataError` if a row has no side, groups or equal structures are on both, a row is on
    another side than in the parent's dataset, or a side stays empty. One error lists all of it.
    """
    # The last place is that of -1, no value.
    trained, tested = (
        np.array([*(value == side for value in entries.sides), False])[entries.side_codes]
        for side in SIDES
    )
    known_train, known_test = _known(entries, inherited or Inheritance())
    problems = [
        *_without_side(entries, ~(trained | tested)),
        *(
            f"no row is on the side {side!r}"
            for side, rows in zip(SIDES, (trained, tested), strict=True)
            if not rows.any()
        ),
        *_on_both_sides(
            entries,
            trained,
            tested,
            entries.group_codes,
            lambda code: f"the group {entries.groups[code]!r} is",
            "groups",
        ),
        *_on_both_sides(
            entries, trained, tested, entries.twins, lambda _: "equal structures are", "structures"
        ),
        *(
            f"the parent generation has {name_rows(entries.row_ids[moved].tolist())} in {before}, "
            f"the key says {now}"
            for before, now, moved in (
                ("train", "test", tested & known_train),
                ("test", "train", trained & known_test),
            )
            if moved.any()
        ),
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


def require_elements_in_training(entries: Entries, split: Split, elements: Iterable[str]) -> None:
    """Raise `DataError` if an element occurs in test rows only."""
    trained = entries.elements(split.on("train"))
    for element in elements:
        if element not in trained:
            raise DataError(
                f"{element} occurs only in the test side ({name_rows(entries.rows_with(element))})",
                hint=f"provide more structures with {element}, or try another dataset.seed "
                "(with dataset.split_key: put some of them on the train side)",
            )


def _crystals(entries: Entries, inherited: Inheritance) -> IndexArray:
    """Return for each entry the number of its crystal.

    Twins on both sides of a parent's dataset from before twins were detected stay separate.
    """
    stays_train, stays_test = _settled(entries, entries.twins, inherited)
    torn = (stays_train & stays_test)[entries.twins]
    if not torn.any():
        return entries.twins
    apart = np.where(torn, len(entries) + entries.structures, entries.twins)
    crystals: IndexArray = np.unique(apart, return_inverse=True)[1]
    return crystals


def _settled(
    entries: Entries, units: IndexArray, inherited: Inheritance
) -> tuple[BoolArray, BoolArray]:
    """Return which units the parent has in training, and which in test."""
    settled = np.zeros((2, int(units.max(initial=-1)) + 1), dtype=np.bool_)
    for units_of_side, known in zip(settled, _known(entries, inherited), strict=True):
        units_of_side[units[known]] = True
    return settled[0], settled[1]


def _known(entries: Entries, inherited: Inheritance) -> tuple[BoolArray, BoolArray]:
    """Return which entries the parent has in training, and which in test: by structure or group."""

    def on(side: Side) -> BoolArray:
        # The last place is that of -1, no group.
        groups = [inherited.groups.get(group) == side for group in entries.groups]
        found: BoolArray = np.array([*groups, False], dtype=np.bool_)[entries.group_codes]
        known = inherited.fingerprints[inherited.tested == (side == "test")]
        if len(known):
            where = np.searchsorted(known, entries.fingerprints).clip(max=len(known) - 1)
            found |= known[where] == entries.fingerprints
        return found

    return on("train"), on("test")


def _in_order(entries: Entries, units: IndexArray, free: BoolArray, seed: int) -> IndexArray:
    """Return the free units in an order that depends only on the seed and their structures.

    It is that of hashes of the smallest fingerprint of each unit.
    """
    numbers = np.flatnonzero(free)
    structures = entries.structures
    smallest = np.full(len(free), len(structures), dtype=np.int64)
    np.minimum.at(smallest, units, structures)
    entry_of = np.empty(len(structures), dtype=np.int64)
    entry_of[structures] = np.arange(len(structures))
    firsts = entry_of[smallest[numbers]]
    ranks = bytearray()
    for place in firsts.tolist():
        text = f"{seed}:{entries.fingerprints[place].tobytes().hex()}"
        ranks += hashlib.sha256(text.encode()).digest()[:_RANK_BYTES]
    return numbers[np.argsort(np.frombuffer(ranks, ">u8"), kind="stable")]


def _require_one_side(entries: Entries, units: IndexArray, contradicting: BoolArray) -> None:
    torn = np.flatnonzero(contradicting[units])
    if len(torn) == 0:
        return
    members = units == units[torn[0]]
    rows = ", ".join(map(str, np.sort(entries.row_ids[members])[:10].tolist()))
    groups = sorted({entries.groups[c] for c in entries.group_codes[members].tolist() if c >= 0})
    raise DataError(
        f"rows {rows} belong on one side ("
        + (f"group {', '.join(groups[:3])}" if groups else "identical structures")
        + "), but the parent generation has them partly in training and partly in test",
        hint="keep dataset.group_by as it was, exclude some of them with database.select, "
        "or begin a new family",
    )


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


def _on_both_sides(
    entries: Entries,
    trained: BoolArray,
    tested: BoolArray,
    labels: IndexArray | IntArray,
    name: Callable[[int], str],
    several: str,
) -> Iterator[str]:
    labelled = labels >= 0
    both = np.intersect1d(labels[trained & labelled], labels[tested & labelled])
    for label in both[:_LISTED].tolist():
        mine = labels == label
        train, test = (name_rows(entries.row_ids[mine & on].tolist()) for on in (trained, tested))
        yield f"{name(label)} on both sides: train {train}, test {test}"
    if len(both) > _LISTED:
        yield f"so are {len(both) - _LISTED} more {several}"


@dataclass(frozen=True)
class Parts:
    """The parts of a training set: row ids, and why there is no validation part, or None."""

    fit: frozenset[int]
    validation: frozenset[int] = frozenset()
    why_whole: str | None = None


def part_training_set(files: DatasetFiles, record: DatasetRecord, fraction: float) -> Parts:
    """Hold out a fraction of the training structures; every element stays in the fit.

    The count is round(n · fraction), or the nearest one that groups and equal structures allow.
    """
    entries = _training_entries(files, record)
    rows = frozenset(entries.row_ids.tolist())
    if len(rows) < FEWEST:
        return Parts(rows, why_whole=f"{len(rows)} training structures are fewer than {FEWEST}")
    # Structures with an element that all others lack stay in the fit, with their twins and groups.
    stays = np.zeros(len(entries), dtype=np.bool_)
    while True:
        staying = np.unique(entries.fingerprints[stays])
        inherited = Inheritance(staying, np.zeros(len(staying), dtype=np.bool_))
        split = divide(entries, fraction=fraction, seed=record.split.seed, inherited=inherited)
        aside, lacking = split.tested, np.zeros(len(entries), dtype=np.bool_)
        for element in set(entries.elements()) - set(entries.elements(~aside)):
            lacking |= entries.holding(element)
        if not lacking.any():
            break
        stays |= lacking
    if not aside.any() or aside.all():
        return Parts(rows, why_whole="no group of training structures is small enough")
    validation = frozenset(entries.row_ids[aside].tolist())
    return Parts(rows - validation, validation)


def _training_entries(files: DatasetFiles, record: DatasetRecord) -> Entries:
    """Return the entries of the training set."""
    index = read_index(files.index, f"dataset {record.id}")
    rows = ((row, fingerprint, group) for row, fingerprint, group, side in index if side == "train")
    collector, twins = EntryCollector(), TwinFinder()
    for structures in read_structures(files.xyz("train")):
        count = len(structures)
        indexed = list(islice(rows, count))  # the texts are in the order of the index
        if [row for row, *_ in indexed] != structures.ids.tolist():
            raise IntegrityError(f"the index of dataset {record.id} is not that of its train.xyz")
        collector.add(
            row_ids=structures.ids,
            fingerprints=b"".join(bytes.fromhex(fingerprint) for _, fingerprint, _ in indexed),
            energies=[0.0] * count,
            groups=[group or None for *_, group in indexed],
            compositions=structures.compositions(),
            config_types=[None] * count,
            sides=[None] * count,
        )
        twins.add(structures)
    return twins.join(collector.entries(), read_structures(files.xyz("train")))


def choose_subset(sizes: IndexArray, wanted: int, *, least: int = 0, most: int) -> BoolArray:
    """Return a mask of the units to take, whose sizes add up to a wanted count.

    Units are taken in order as long as they fit. If this misses the wanted count, the nearest
    reachable count from `least` to `most` is used, the smaller one of two; if there is none, the
    units taken at first. Then the first units of each size are taken, about as many as before.
    """
    first = _fill(sizes, wanted)
    total = int(sizes[first].sum())
    allowed = least <= total <= most
    if (total == wanted and allowed) or most < least:
        return first
    values, of_unit, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    classes = list(zip(values.tolist(), counts.tolist(), strict=True))
    sums = _reachable(classes, min(most, 2 * wanted - total) if allowed else most)
    reachable = np.unpackbits(np.frombuffer(sums[-1], np.uint8), bitorder="little")
    found = np.flatnonzero(reachable)
    found = found[found >= least]
    if len(found) == 0:
        return first
    nearest = int(found[np.argmin(np.abs(found - wanted))])
    if allowed and abs(nearest - wanted) >= wanted - total:
        return first
    before = np.bincount(of_unit[first], minlength=len(classes)).tolist()
    taken = np.array(_counts_of_sizes(classes, sums, nearest, before), dtype=np.int64)
    order = np.argsort(of_unit, kind="stable")
    rank = np.arange(len(sizes)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    chosen[order] = rank < taken[of_unit[order]]
    return chosen


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


def _reachable(classes: Sequence[tuple[int, int]], most: int) -> list[bytes]:
    """Return the sums up to `most` that the first 0, 1, 2, … sizes give, one bit for each sum."""
    mask, length = (1 << (most + 1)) - 1, most // 8 + 1
    sums = [(1).to_bytes(length, "little")]
    bits = 1
    for value, count in classes:
        left, step = count, 1
        while left > 0:  # 1, 2, 4, … units and the rest give every number of them
            step = min(step, left)
            bits = (bits | bits << (step * value)) & mask
            left, step = left - step, 2 * step
        sums.append(bits.to_bytes(length, "little"))
    return sums


def _counts_of_sizes(
    classes: Sequence[tuple[int, int]], sums: Sequence[bytes], total: int, before: Sequence[int]
) -> list[int]:
    """Return how many units of each size add up to `total`, near to how many there were before."""
    taken: list[int] = []
    for (value, available), earlier, middle in reversed(
        list(zip(classes, sums[:-1], before, strict=True))
    ):
        for count in sorted(range(available + 1), key=lambda n: (abs(n - middle), n)):
            rest = total - count * value
            if rest >= 0 and earlier[rest // 8] >> rest % 8 & 1:
                break
        taken.append(count)
        total = rest
    return taken[::-1]
