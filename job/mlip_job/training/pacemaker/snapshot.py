"""The state of a running fit: a copy from which another attempt can resume; the best potential.

Pacemaker rewrites ``interim_potential_0.yaml`` after every iteration, in place. A copy counts only
if the file did not change meanwhile, can be parsed, and has all its functions. The best potential
has the smallest loss on the validation part; pacemaker's process stores it
(`callbacks.mlip_job_callbacks`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from mlip_job.errors import TrainingError
from mlip_job.training.pacemaker import TABLES
from mlip_job.training.pacemaker.callbacks.mlip_job_callbacks import numbered_losses, read_rows
from mlip_job.training.pacemaker.potential_file import (
    POTENTIAL,
    as_start,
    count_functions,
    elements_of,
    read_potential,
    with_cores_of,
    write_potential,
)
from mlip_job.training.pacemaker.tables import MetricsRow, count_on, join_tables, read_table
from mlip_job.training.trainer import FitPosition, Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.training.pacemaker import PacemakerFiles
    from mlip_job.training.pacemaker.input import Segment


def take_snapshot(
    files: PacemakerFiles, segment: Segment, elements: Sequence[str], target: Path
) -> Snapshot | None:
    """Copy the newest potential of a fit that may be running into an empty directory.

    None if there is no resumable state yet.
    """
    if not segment.resumable:
        return None
    stamps = _stamps(files)
    rows = read_table(files.table("metrics")).rows
    if stamps is None or not rows:
        return None
    numbers = count_on(row.place for row in rows)
    counted = [row.model_copy(update={"iter_num": n}) for row, n in zip(rows, numbers, strict=True)]
    found = _within_step(files, segment, elements, counted[-1], target)
    if found is not None and _stamps(files) != stamps:
        found = None  # written concurrently: the iteration of the copy is unknown
    if found is None and segment.is_ladder:
        found = _between_steps(files, segment, elements, counted, target)
    if found is None:
        return None
    tables = write_tables(files, segment, target / "metrics", upto=found)
    shown = {**copy_best(files, target), **{f"metrics/{p.name}": p for p in tables}}
    return Snapshot(
        position=found,
        iterations=count_iterations(read_table(target / "metrics" / "metrics.txt").rows),
        files={POTENTIAL: target / POTENTIAL, **shown},
        shown=shown,
    )


def count_iterations(rows: Sequence[MetricsRow]) -> int:
    """Return the length of a learning curve: the rows that are no starting points."""
    return sum(1 for row in rows if row.iter_num)


def write_tables(
    files: PacemakerFiles, segment: Segment, target: Path, upto: FitPosition | None = None
) -> list[Path]:
    """Write the tables of the whole fit so far into a directory; return their paths."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name in TABLES:
        earlier = files.history / f"{name}.txt"
        metrics = None if name == "metrics" else files.table("metrics")
        text = join_tables(earlier, files.table(name), segment.offset, upto=upto, metrics=metrics)
        if text is not None:
            written.append(target / f"{name}.txt")
            written[-1].write_text(text, encoding="utf-8")
    return written


def _stamps(files: PacemakerFiles) -> tuple[int, int] | None:
    """Return when the newest row and the newest potential were written, ns."""
    try:
        row, potential = files.table("metrics").stat(), files.interim_potential.stat()
    except FileNotFoundError:
        return None
    return row.st_mtime_ns, potential.st_mtime_ns


def _within_step(
    files: PacemakerFiles, segment: Segment, elements: Sequence[str], row: MetricsRow, target: Path
) -> FitPosition | None:
    """Copy the potential of the last iteration, if there was one in this step."""
    stamps = _stamps(files)
    if stamps is None or not row.iter_num or row.loss is None:
        return None
    if segment.is_ladder and files.ladder_potential(row.place.ladder_step).is_file():
        return None
    # The row comes first, then the potential; the test set may be evaluated in between.
    row_ns, potential_ns = stamps
    lag = 0 if potential_ns >= row_ns else 1
    functions = copy_potential(files.interim_potential, elements, row.nfuncs, target / POTENTIAL)
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
    files: PacemakerFiles,
    segment: Segment,
    elements: Sequence[str],
    rows: Sequence[MetricsRow],
    target: Path,
) -> FitPosition | None:
    """Copy the potential of the last complete step of a ladder."""
    step = rows[-1].place.ladder_step
    if not files.ladder_potential(step).is_file():
        step -= 1
    of_step = [row for row in rows if row.ladder_step == step]
    if not of_step:
        return None
    functions = copy_potential(
        files.ladder_potential(step), elements, of_step[-1].nfuncs, target / POTENTIAL
    )
    if functions is None:
        return None
    return FitPosition(
        ladder_step=step + segment.offset.ladder_step,
        iteration=max(row.place.iteration for row in of_step),
        step_done=True,
        last_step=_is_last(files, segment, functions),
    )


def copy_potential(
    source: Path, elements: Sequence[str], functions: int | None, copy: Path
) -> int | None:
    """Copy a potential in the form that a fit can start from; return the number of functions.

    None if it is incomplete: a truncated file may still be valid YAML, with fewer functions.
    """
    try:
        shutil.copyfile(source, copy)
        content = read_potential(copy)
    except (OSError, TrainingError):
        return None
    count = count_functions(content)
    if functions not in (None, count) or elements_of(content) != tuple(sorted(elements)):
        return None
    write_potential(as_start(content), copy)
    return count


def _is_last(files: PacemakerFiles, segment: Segment, functions: int) -> bool:
    """Return whether a potential already has all functions of the final one."""
    if not segment.is_ladder:
        return not segment.partial
    return functions == count_functions(read_potential(files.directory / "target_potential.yaml"))


# -- the best potential --------------------------------------------------------------------------


class Best(BaseModel, frozen=True, extra="ignore"):
    """The best potential so far, with its position in the whole fit.

    The loss is on the validation part, without regularisation; the rows are of pacemaker's tables.
    """

    potential: Path
    ladder_step: int
    cycle: int
    iteration: int
    loss: float
    train: MetricsRow
    validation: MetricsRow


def configure_callback(files: PacemakerFiles, segment: Segment, patience: int) -> None:
    """Write the settings of the callback before pacemaker starts.

    The fit stops after `patience` iterations without an improvement.
    """
    history = files.history / "test_metrics.txt"
    step = (segment.offset.ladder_step, 0)
    settings = {
        "patience": patience,
        "ladder_step": segment.offset.ladder_step,
        "iteration": segment.offset.iteration,
        "start": segment.first_coefficients,
        # Exclude rows of a potential that is in no checkpoint.
        "earlier": numbered_losses(read_rows(history, step), 0) if history.is_file() else [],
    }
    files.early_stopping.write_text(json.dumps(settings), encoding="utf-8")


def read_best(record: Path) -> Best | None:
    """Read ``best.json``; return None if there is none.

    Raise a TrainingError if it is damaged.
    """
    try:
        best = Best.model_validate_json(record.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise TrainingError(f"{record} can't be read: {type(error).__name__}") from None
    return best.model_copy(update={"potential": record.parent / best.potential.name})


def copy_best(files: PacemakerFiles, target: Path) -> dict[str, Path]:
    """Copy the best potential of a fit that may be running, and its record, into a directory."""
    for _ in range(2):  # it may be replaced meanwhile, but not twice within this moment
        try:
            shutil.copyfile(files.best, target / files.best.name)
            best = read_best(target / files.best.name)
            if best is None:
                return {}
            shutil.copyfile(files.directory / best.potential.name, best.potential)
        except FileNotFoundError:
            continue
        return {files.best.name: target / files.best.name, best.potential.name: best.potential}
    return {}


def make_final(best: Best, output: Path) -> None:
    """Replace pacemaker's final potential by the best one."""
    content = with_cores_of(read_potential(output), read_potential(best.potential))
    content["metadata"] = {**content.get("metadata", {}), "_loss": best.train.loss}
    write_potential(content, output)
