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
from mlip_job.training.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    """Copy a potential and return what it holds; None where it is not whole."""
    try:
        shutil.copyfile(source, copy)
    except OSError:
        return None
    return _read_whole(copy, elements, functions)


def _read_whole(
    copy: Path, elements: Sequence[str], functions: int | None
) -> dict[str, Any] | None:
    """Cut short, it may still be valid YAML, with fewer functions."""
    try:
        content = read_potential(copy)
    except TrainingError:
        return None
    whole = functions in (None, count_functions(content))
    return content if whole and elements_of(content) == tuple(sorted(elements)) else None


def copy_newest(
    files: WorkFiles,
    elements: Sequence[str],
    copy: Path,
    wanted: Callable[[MetricsRow], bool],
) -> MetricsRow | None:
    """Copy the newest potential, as pacemaker wrote it; return the row of its iteration.

    Parameters
    ----------
    files
        Where pacemaker runs.
    elements
        What the potential has to describe.
    copy
        Where it goes.
    wanted
        Asked for the row, whose iteration is numbered on over restarts, before anything is copied.

    Returns
    -------
    MetricsRow or None
        None where there is none yet in this step, none that is wanted, or it changes just now.
    """
    table = files.table("metrics")
    try:
        size = table.stat().st_size
        rows = counted_on(read_table(table).rows)
        cycle = (rows[-1].cycle_step or 0) if rows else 0
        stamps = stamps_of(files, cycle)
        if stamps is None or not rows:
            return None
        done = (rows[-1].ladder_step, rows[-1].cycle_step, stamps.iteration(rows[-1]))
        of_it = [r for r in rows[-2:] if (r.ladder_step, r.cycle_step, r.iter_num) == done]
        if not of_it or not of_it[0].iter_num or not wanted(of_it[0]):
            return None
        shutil.copyfile(files.interim_potential(cycle), copy)
        # Looked at before it is parsed, which takes longer than many an iteration.
        if stamps_of(files, cycle) != stamps or table.stat().st_size != size:
            return None
    except OSError:
        return None
    return of_it[0] if _read_whole(copy, elements, of_it[0].nfuncs) is not None else None
