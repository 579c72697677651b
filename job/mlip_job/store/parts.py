"""Transfer large objects in parts, concurrently."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

_MIB = 1 << 20
_LARGEST = 16 * _MIB
"""Bytes of a part, as a rule: a few of them are held in memory."""

_MOST = 10_000
"""Maximum number of parts of an S3 object."""

AT_ONCE = 4
"""Number of concurrent transfers."""


def part_size(total: int, threshold: int) -> int:
    """Return how large the parts of an object are, in bytes.

    Parameters
    ----------
    total
        Bytes of the object.
    threshold
        Bytes above which objects move in parts; those of S3 have 5 MiB at least.
    """
    return max(min(threshold, _LARGEST), -(-total // _MOST))


def several_at_once(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the results of `function`, in the order of the items; a few are worked on ahead."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="transfer") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
