"""Code within pacemaker's process, which may belong to another environment.

It imports nothing of this package. `keep_best` stores the potential with the smallest validation
loss, and stops a fit that does not improve: pacemaker calls it after every iteration
(``fit.callbacks``). Its state is in files of the work directory, which checkpoints contain.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CALLBACK = "mlip_job_callbacks.keep_best"
"""Name in ``fit.callbacks``."""

SETTINGS = "early_stopping.json"
"""Settings, written before pacemaker starts."""

BEST = "best.json"
"""The best potential so far: path, iteration, and its rows of both tables."""

Row = dict[str, str]


def keep_best(
    *,
    basis_config: Any,
    current_fit_iteration: int,
    current_fit_cycle: int,
    current_ladder_step: int,
) -> None:
    """Check the validation loss, if pacemaker evaluated it in this iteration.

    Pacemaker adds the rows of an iteration to its tables before it calls this.

    Raise a StopIteration to end the minimiser, and so this step and cycle, normally.
    """
    settings = json.loads(Path(SETTINGS).read_text(encoding="utf-8"))
    step = (current_ladder_step, current_fit_cycle)
    train, validation = (
        read_rows(Path(name), step) for name in ("metrics.txt", "test_metrics.txt")
    )
    begun = settings["iteration"] if current_ladder_step == 0 else 0
    if current_fit_iteration == 0:
        _consider_start(settings, begun, train[0], validation[0])
    if train[-1]["iter_num"] != validation[-1]["iter_num"]:
        return
    iteration = begun + current_fit_iteration + 1
    _keep(basis_config.save, settings, iteration, train[-1], validation[-1])
    earlier = settings["earlier"] if current_ladder_step == 0 else []
    losses = [*map(tuple, earlier), *numbered_losses(validation, begun)]
    gained = last_gain(losses)
    if iteration - gained >= settings["patience"]:
        logging.getLogger(__name__).info(
            "EARLY STOPPING: no better potential on the validation set since iteration %d", gained
        )
        raise StopIteration


def validation_loss(row: Mapping[str, str]) -> float:
    """Return the loss of a row of ``test_metrics.txt`` without regularisation."""
    return float(row["e_loss_contrib"]) + float(row["f_loss_contrib"])


def numbered_losses(rows: Sequence[Row], begun: int) -> list[tuple[int, float]]:
    """Return iteration and validation loss of each row, numbered from `begun`.

    After running out of GPU memory, pacemaker restarts the step with smaller batches from 0.
    """
    found: list[tuple[int, float]] = []
    before = -1
    for row in rows:
        number = int(row["iter_num"])
        if number <= before:
            begun = found[-1][0]
        before = number
        found.append((begun + number, validation_loss(row)))
    return found


def last_gain(losses: Sequence[tuple[int, float]]) -> int:
    """Return the iteration that improved the validation loss last, of iterations with losses."""
    at, best = losses[0]
    for iteration, loss in losses[1:]:
        if loss < best or not math.isfinite(best):
            at, best = iteration, loss
    return at


def _consider_start(settings: dict[str, Any], begun: int, train: Row, validation: Row) -> None:
    """Store the start potential of the step if it is the best so far."""
    in_first = train["ladder_step"] == "0"
    start = settings["start"] if in_first else "current_extended_potential.yaml"
    if start is not None and train["cycle_step"] == "0":
        _keep(lambda name: shutil.copyfile(start, name), settings, begun, train, validation)


def _keep(save: Any, settings: dict[str, Any], iteration: int, train: Row, validation: Row) -> None:
    """Store a potential if it is the best so far; each ladder step starts over."""
    step = settings["ladder_step"] + int(train["ladder_step"])
    loss = validation_loss(validation)
    best = _read_best()
    better = best is None or best["ladder_step"] != step or loss < best["loss"]
    if not better or not math.isfinite(loss):
        return
    name = f"best_potential_{step}_{train['cycle_step']}_{iteration}.yaml"
    save(name)
    content = {
        "potential": name,
        "ladder_step": step,
        "cycle": int(train["cycle_step"]),
        "iteration": iteration,
        "loss": loss,
        "train": train,
        "validation": validation,
    }
    written = Path(f"{BEST}.new")
    written.write_text(json.dumps(content), encoding="utf-8")
    written.replace(BEST)
    if best is not None and best["potential"] != name:
        Path(Path(best["potential"]).name).unlink(missing_ok=True)


def _read_best() -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(Path(BEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def read_rows(table: Path, step: tuple[int, int]) -> list[Row]:
    """Return the rows of a table that are of a ladder step and cycle."""
    header, *lines = table.read_text(encoding="utf-8").splitlines() or [""]
    columns = header.split()
    rows = (dict(zip(columns, line.split(), strict=False)) for line in lines)
    place = {"ladder_step": str(step[0]), "cycle_step": str(step[1])}
    return [row for row in rows if len(row) == len(columns) and row.items() >= place.items()]
