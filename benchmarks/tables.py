"""Output of the benchmarks: Markdown, for docs/performance.md."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGES = ("ase", "numpy", "pandas", "orjson", "isal")


def say(text: str = "") -> None:
    """Print and flush a line."""
    print(text, flush=True)  # noqa: T201 - that is what this program is for


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    say(f"\n### {title}\n")
    for line in (columns, ["---"] + ["---:"] * (len(columns) - 1), *rows):
        say(f"| {' | '.join(line)} |")


def machine() -> str:
    """Return the kind of this machine, without its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {platform.machine()}; "
        f"load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {packages}"
    )
