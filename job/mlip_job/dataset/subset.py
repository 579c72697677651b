"""Choose units whose sizes add up to a wanted count, or the nearest possible one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.dataset.row import BoolArray
    from mlip_job.dataset.structures import IndexArray


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
