"""Copy the state of a running fit that another attempt can resume from.

Pacemaker rewrites ``interim_potential_0.yaml`` after every iteration, in place. A copy counts only
if the file did not change meanwhile, can be parsed, and has all its functions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mlip_job.paths import WorkFiles
from mlip_job.training.checkpoint import POTENTIAL, FitPosition, Snapshot
from mlip_job.training.pacemaker.best import copy_kept
from mlip_job.training.pacemaker.potential_file import (
    as_start,
    copy_whole,
    count_functions,
    read_potential,
    write_potential,
)
from mlip_job.training.pacemaker.tables import count_on, join_tables, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlip_job.training.pacemaker.input import Segment
    from mlip_job.training.pacemaker.tables import MetricsRow


def take_snapshot(
    files: WorkFiles, segment: Segment, elements: Sequence[str], target: Path
) -> Snapshot | None:
    """Copy the newest potential of a fit that may be running into an empty directory.

    Returns
    -------
    Snapshot or None
        None if there is no resumable state yet.
    """
    if not segment.resumable:
        return None
    stamps = _stamps(files)
    rows = read_table(files.table("metrics")).rows
    if stamps is None or not rows:
        return None
    numbers = count_on(row.place for row in rows)
    counted = [replace(row, iter_num=n) for row, n in zip(rows, numbers, strict=True)]
    found = _within_step(files, segment, elements, counted[-1], target)
    if found is not None and _stamps(files) != stamps:
        found = None  # written concurrently: the iteration of the copy is unknown
    if found is None and segment.is_ladder:
        found = _between_steps(files, segment, elements, counted, target)
    if found is None:
        return None
    tables = write_tables(files, segment, target / "metrics", upto=found)
    return Snapshot(
        position=found,
        iterations=count_iterations(read_table(target / "metrics" / "metrics.txt").rows),
        files={
            POTENTIAL: target / POTENTIAL,
            **copy_kept(files, target),
            **{f"metrics/{p.name}": p for p in tables},
        },
    )


def count_iterations(rows: Sequence[MetricsRow]) -> int:
    """Return the length of a learning curve: the rows that are no starting points."""
    return sum(1 for row in rows if row.iter_num)


def write_tables(
    files: WorkFiles, segment: Segment, target: Path, upto: FitPosition | None = None
) -> list[Path]:
    """Write the tables of the whole fit so far into a directory; return their paths."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name in WorkFiles.TABLES:
        earlier = files.history / f"{name}.txt"
        metrics = None if name == "metrics" else files.table("metrics")
        text = join_tables(earlier, files.table(name), segment.offset, upto=upto, metrics=metrics)
        if text is not None:
            written.append(target / f"{name}.txt")
            written[-1].write_text(text, encoding="utf-8")
    return written


def interim_potential(files: WorkFiles, cycle: int = 0) -> Path:
    """Return the file that pacemaker rewrites after every iteration."""
    return files.directory / f"interim_potential_{cycle}.yaml"


def ladder_potential(files: WorkFiles, step: int) -> Path:
    """Return the file that pacemaker writes after a step of a ladder."""
    return files.directory / f"interim_potential_ladder_step_{step}.yaml"


class _Stamps(NamedTuple):
    """When the newest row and the newest potential were written, ns."""

    row: int
    potential: int


def _stamps(files: WorkFiles) -> _Stamps | None:
    try:
        return _Stamps(
            files.table("metrics").stat().st_mtime_ns, interim_potential(files).stat().st_mtime_ns
        )
    except FileNotFoundError:
        return None


def _within_step(
    files: WorkFiles, segment: Segment, elements: Sequence[str], row: MetricsRow, target: Path
) -> FitPosition | None:
    """Copy the potential of the last iteration, if there was one in this step."""
    stamps = _stamps(files)
    if stamps is None or not row.iter_num or row.loss is None:
        return None
    if segment.is_ladder and ladder_potential(files, row.place.ladder_step).is_file():
        return None
    # The row comes first, then the potential; the test set may be evaluated in between.
    lag = 0 if stamps.potential >= stamps.row else 1
    functions = _copy(interim_potential(files), elements, row.nfuncs, target)
    if functions is None or row.iter_num == lag:
        return None
    place = segment.offset.shift(row).place
    return FitPosition(
        ladder_step=place.ladder_step,
        iteration=place.iteration - lag,
        step_done=False,
        last_step=_is_last(files, segment, functions),
    )


def _between_steps(
    files: WorkFiles,
    segment: Segment,
    elements: Sequence[str],
    rows: Sequence[MetricsRow],
    target: Path,
) -> FitPosition | None:
    """Copy the potential of the last complete step of a ladder."""
    step = rows[-1].place.ladder_step
    if not ladder_potential(files, step).is_file():
        step -= 1
    of_step = [row for row in rows if row.ladder_step == step]
    if not of_step:
        return None
    functions = _copy(ladder_potential(files, step), elements, of_step[-1].nfuncs, target)
    if functions is None:
        return None
    return FitPosition(
        ladder_step=step + segment.offset.ladder_step,
        iteration=max(row.place.iteration for row in of_step),
        step_done=True,
        last_step=_is_last(files, segment, functions),
    )


def _copy(source: Path, elements: Sequence[str], functions: int | None, target: Path) -> int | None:
    """Copy a potential in the form that a fit can start from; return the number of functions."""
    copy = target / POTENTIAL
    content = copy_whole(source, elements, functions, copy)
    if content is None:
        return None
    write_potential(as_start(content), copy)
    return count_functions(content)


def _is_last(files: WorkFiles, segment: Segment, functions: int) -> bool:
    """Return whether a potential already has all functions of the final one."""
    if not segment.is_ladder:
        return not segment.partial
    return functions == count_functions(read_potential(files.directory / "target_potential.yaml"))
