"""Copy out of a running fit what another one can go on from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlip_job.naming import WorkFiles
from mlip_job.training.checkpoint import POTENTIAL, FitPosition, Snapshot
from mlip_job.training.pacemaker.best import copy_kept
from mlip_job.training.pacemaker.potential_file import (
    as_start,
    copy_whole,
    count_functions,
    read_potential,
    write_potential,
)
from mlip_job.training.pacemaker.tables import Place, count_on, join_tables, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlip_job.training.pacemaker.input import Leg
    from mlip_job.training.pacemaker.tables import MetricsRow


def take_snapshot(
    files: WorkFiles, leg: Leg, elements: Sequence[str], target: Path
) -> Snapshot | None:
    """Copy the newest potential of a fit that may be running.

    Parameters
    ----------
    files
        Where pacemaker runs.
    leg
        What it was started with.
    elements
        What the potential has to describe.
    target
        An empty directory for the copies.

    Returns
    -------
    Snapshot or None
        None where there is nothing yet that could be gone on from.
    """
    if not leg.resumable:
        return None
    stamps = stamps_of(files)
    rows = counted_on(read_table(files.table("metrics")).rows)
    if stamps is None or not rows:
        return None
    found = _within_step(files, leg, elements, rows[-1], target)
    if found is not None and stamps_of(files) != stamps:
        found = None  # pacemaker went on meanwhile: which iteration it was can't be told
    if found is None and leg.is_ladder:
        found = _between_steps(files, leg, elements, rows, target)
    if found is None:
        return None
    tables = write_tables(files, leg, target / "metrics", upto=found)
    points = read_table(target / "metrics" / "metrics.txt").rows
    return Snapshot(
        position=found,
        iterations=count_iterations(points),
        files={
            POTENTIAL: target / POTENTIAL,
            **copy_kept(files, target),
            **{f"metrics/{p.name}": p for p in tables},
        },
    )


def count_iterations(rows: Sequence[MetricsRow]) -> int:
    """Return the length of a learning curve: rows that are no starting points."""
    return sum(1 for row in rows if row.iter_num)


def write_tables(
    files: WorkFiles, leg: Leg, target: Path, upto: FitPosition | None = None
) -> list[Path]:
    """Write the tables of the whole fit so far into a directory; return their paths."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name in WorkFiles.TABLES:
        earlier = files.history / f"{name}.txt"
        metrics = None if name == "metrics" else files.table("metrics")
        text = join_tables(earlier, files.table(name), leg.offset, upto=upto, metrics=metrics)
        if text is not None:
            written.append(target / f"{name}.txt")
            written[-1].write_text(text, encoding="utf-8")
    return written


def _within_step(
    files: WorkFiles, leg: Leg, elements: Sequence[str], row: MetricsRow, target: Path
) -> FitPosition | None:
    """Take what pacemaker writes after every iteration, if it has done one in this step."""
    stamps = stamps_of(files)
    if stamps is None or not row.iter_num or row.loss is None:
        return None
    if leg.is_ladder and files.ladder_potential(row.ladder_step or 0).is_file():
        return None
    functions = _copy(files.interim_potential(), elements, row.nfuncs, target)
    done = stamps.iteration(row)
    if functions is None or done == 0:
        return None
    shifted = leg.offset.shift(row)
    return FitPosition(
        ladder_step=shifted.ladder_step or 0,
        iteration=(shifted.iter_num or 0) - row.iter_num + done,
        step_done=False,
        last_step=_is_last(files, leg, functions),
    )


def _between_steps(
    files: WorkFiles, leg: Leg, elements: Sequence[str], rows: Sequence[MetricsRow], target: Path
) -> FitPosition | None:
    """Take what pacemaker writes after every step of a ladder."""
    step = rows[-1].ladder_step or 0
    if not files.ladder_potential(step).is_file():
        step -= 1
    of_step = [row for row in rows if row.ladder_step == step]
    if not of_step:
        return None
    functions = _copy(files.ladder_potential(step), elements, of_step[-1].nfuncs, target)
    if functions is None:
        return None
    return FitPosition(
        ladder_step=step + leg.offset.ladder_step,
        iteration=max(row.iter_num or 0 for row in of_step),
        step_done=True,
        last_step=_is_last(files, leg, functions),
    )


def _copy(source: Path, elements: Sequence[str], functions: int | None, target: Path) -> int | None:
    """Copy a potential in the form that a fit can start from; return how many functions it has."""
    copy = target / POTENTIAL
    content = copy_whole(source, elements, functions, copy)
    if content is None:
        return None
    write_potential(as_start(content), copy)
    return count_functions(content)


def _is_last(files: WorkFiles, leg: Leg, functions: int) -> bool:
    """Tell whether a potential has all functions that the fit will have in the end."""
    if not leg.is_ladder:
        return not leg.partial
    return functions == count_functions(read_potential(files.target_potential))


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
