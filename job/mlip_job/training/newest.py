"""The potential that a running fit wrote last: which iteration's it is, and whether it is whole.

Pacemaker rewrites ``interim_potential_0.yaml`` after every iteration, in place. What is copied
counts only where it was not touched meanwhile, can be parsed, and has all its functions.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlip_job.errors import TrainingError
from mlip_job.training.potential_yaml import count_functions, elements_of, read_potential
from mlip_job.training.restarts import Place, count_on

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlip_job.naming import WorkFiles
    from mlip_job.training.tables import MetricsRow


@dataclass(frozen=True)
class Stamps:
    """When the newest row and the newest potential were written, ns."""

    row: int
    potential: int

    def iteration(self, row: MetricsRow) -> int:
        """Return the iteration that the potential is of, given the newest row.

        The row comes first, then (after an evaluation of the test set, now and then) the potential.
        """
        newest = row.iter_num or 0
        return newest if self.potential >= self.row else newest - 1


def stamps_of(files: WorkFiles, cycle: int = 0) -> Stamps | None:
    """Return the stamps, None where there is no potential yet."""
    try:
        return Stamps(
            files.table("metrics").stat().st_mtime_ns,
            files.interim_potential(cycle).stat().st_mtime_ns,
        )
    except FileNotFoundError:
        return None


def counted_on(rows: Sequence[MetricsRow]) -> list[MetricsRow]:
    """Return rows of ``metrics.txt`` with their iterations numbered on over restarts."""
    places = (Place(r.ladder_step or 0, r.cycle_step or 0, r.iter_num or 0) for r in rows)
    numbers = count_on(places)
    return [replace(row, iter_num=number) for row, number in zip(rows, numbers, strict=True)]


def copy_whole(
    source: Path, elements: Sequence[str], functions: int | None, copy: Path
) -> dict[str, Any] | None:
    """Copy a potential and return what it holds; None where it is not whole.

    Cut short, it may still be valid YAML, with fewer functions.
    """
    try:
        shutil.copyfile(source, copy)
    except OSError:
        return None
    try:
        content = read_potential(copy)
    except TrainingError:
        return None
    whole = functions in (None, count_functions(content))
    return content if whole and elements_of(content) == tuple(sorted(elements)) else None
