"""The best potential of a fit: the one with the smallest loss on the validation part.

Pacemaker's process stores it (`callbacks.mlip_job_callbacks`). This module writes the settings of
the callback and makes the stored potential the result.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlip_job.errors import TrainingError
from mlip_job.training.pacemaker.callbacks.mlip_job_callbacks import (
    CALLBACK,
    numbered_losses,
    read_rows,
)
from mlip_job.training.pacemaker.potential_file import (
    read_potential,
    with_cores_of,
    write_potential,
)
from mlip_job.training.pacemaker.tables import MetricsRow, row_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.paths import WorkFiles
    from mlip_job.training.pacemaker.input import Segment


@dataclass(frozen=True)
class EarlyStopping:
    """Criterion to stop a fit whose validation loss no longer improves.

    Attributes
    ----------
    patience
        Iterations without an improvement.
    least_fall
        Minimum relative decrease of the validation loss per iteration; a smaller one is ignored.
    """

    patience: int = 200
    least_fall: float = 0.0


@dataclass(frozen=True)
class Kept:
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


def prepare(files: WorkFiles, segment: Segment, stopping: EarlyStopping) -> None:
    """Write the settings of the callback before pacemaker starts."""
    history = files.history / "test_metrics.txt"
    step = (segment.offset.ladder_step, 0)
    earlier = numbered_losses(read_rows(history, step), 0) if history.is_file() else []
    settings = {
        "patience": stopping.patience,
        "least_fall": stopping.least_fall,
        "ladder_step": segment.offset.ladder_step,
        "iteration": segment.offset.iteration,
        "start": _start(segment.content["potential"]),
        # Exclude rows of a potential that is in no checkpoint.
        "earlier": earlier,
    }
    files.early_stopping.write_text(json.dumps(settings), encoding="utf-8")


def is_kept_by(content: Mapping[str, Any]) -> bool:
    """Return whether an input file makes pacemaker store the best potential."""
    return CALLBACK in content["fit"].get("callbacks", ())


def _start(potential: object) -> str | None:
    """Return the file with the first coefficients of a fit; None if all are zero."""
    if isinstance(potential, str):
        return potential
    grown = isinstance(potential, dict) and "initial_potential" in potential
    return "current_extended_potential.yaml" if grown else None


def read_kept(record: Path) -> Kept | None:
    """Read ``best.json``; return None if there is none.

    Raises
    ------
    TrainingError
        If it is damaged.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return Kept(
            potential=record.parent / Path(content["potential"]).name,
            ladder_step=int(content["ladder_step"]),
            cycle=int(content["cycle"]),
            iteration=int(content["iteration"]),
            loss=float(content["loss"]),
            train=row_of(content["train"]) or MetricsRow(),
            validation=row_of(content["validation"]) or MetricsRow(),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{record} can't be read: {type(error).__name__}") from None


def copy_kept(files: WorkFiles, target: Path) -> dict[str, Path]:
    """Copy the best potential of a fit that may be running, and its record, into a directory."""
    for _ in range(2):  # it may be replaced meanwhile, but not twice within this moment
        try:
            shutil.copyfile(files.best, target / files.best.name)
            kept = read_kept(target / files.best.name)
            if kept is None:
                return {}
            shutil.copyfile(files.directory / kept.potential.name, kept.potential)
        except FileNotFoundError:
            continue
        return {files.best.name: target / files.best.name, kept.potential.name: kept.potential}
    return {}


def make_final(kept: Kept, output: Path) -> None:
    """Replace pacemaker's final potential by the best one."""
    taken = with_cores_of(read_potential(output), read_potential(kept.potential))
    taken["metadata"] = {**taken.get("metadata", {}), "_loss": kept.train.loss}
    write_potential(taken, output)
