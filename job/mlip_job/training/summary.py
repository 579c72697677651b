"""A summary of any pacemaker work directory: tables first, the log for what only it has."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from mlip_job.errors import ConfigError
from mlip_job.training.best import better_than_last, read_kept
from mlip_job.training.failure import DIVERGED, describe_failure
from mlip_job.training.final_errors import errors_of, final_errors, final_row, milli
from mlip_job.training.in_pacemaker.mlip_job_callbacks import BEST, SETTINGS
from mlip_job.training.lines import read_lines
from mlip_job.training.log import LogParser
from mlip_job.training.loss_shares import shares_of
from mlip_job.training.phases import phase_seconds
from mlip_job.training.run_summary import CurvePoint, FitCycle, RunSummary, SetSizes
from mlip_job.training.tables import MetricsRow, MetricsTable, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlip_job.training.linear_task import LinearStart
    from mlip_job.training.log_state import LogState

LOGS = ("train.log", "log.txt")
"""What our runner kept of the console, and pacemaker's own log, which lacks tracebacks."""

_KNOWN_FILES = (*LOGS, "metrics.txt", "input.yaml", "output_potential.yaml")
_EXIT_CODE = "exit_code"
_PRECISION_LOSS = 2  # of scipy's BFGS: its line search found no better point
_NOTHING_TO_IMPROVE = (
    "pacemaker found nothing to improve: the potential is the one that the fit began with; a "
    "larger basis leaves more to fit"
)


def summarise_run(directory: Path, *, exit_code: int | None = None) -> RunSummary:
    """Summarise a work directory of pacemaker's.

    Parameters
    ----------
    directory
        Where it ran.
    exit_code
        Where the caller knows it; else a file ``exit_code`` is looked for.

    Raises
    ------
    ConfigError
        If it is no such directory.
    """
    if not any((directory / name).is_file() for name in _KNOWN_FILES):
        raise ConfigError(
            f"{directory} is no work directory of pacemaker",
            hint=f"it holds none of {', '.join(_KNOWN_FILES)}",
        )
    state = _read_log(directory)
    folder = _tables_folder(directory)
    tables = {
        name: read_table(folder / f"{name}.txt")
        for name in ("metrics", "test_metrics", "cycle_metrics", "test_cycle_metrics")
    }
    exit_code = _read_exit_code(directory) if exit_code is None else exit_code
    status, cause = _judge(state, tables["metrics"], exit_code)
    train_rows = tables["metrics"].rows
    train, test, warnings = final_errors(state, tables)
    row = final_row(state, tables["cycle_metrics"])
    kept = read_kept(directory / BEST)
    best = better_than_last(kept, state, tables)
    if kept is not None and best is not None:
        row = kept.train
        train, test, warnings = errors_of(kept.train), errors_of(kept.validation), []
    cycles = tuple(_cycles(train_rows))
    return RunSummary(
        status=status,
        cause=cause,
        exit_code=exit_code,
        train=train,
        test=test,
        loss_shares=shares_of(row),
        kappa=state.kappa,
        second_set="validation" if (directory / SETTINGS).is_file() else "test",
        best=best,
        iterations=sum(c.iterations for c in cycles) if train_rows else None,
        functions=_first_known(train_rows[-1].nfuncs if train_rows else None, state.functions),
        parameters=_first_known(train_rows[-1].ncoefs if train_rows else None, state.parameters),
        ladder=_is_ladder(state, train_rows) if state.phases else None,
        cycles=cycles,
        early_stopping=state.early_stopping,
        optimiser_message=state.optimiser_results[-1].message if state.optimiser_results else None,
        structures=_structures(state),
        versions=dict(state.versions),
        timings_s=phase_seconds(state),
        train_curve=tuple(_curve(train_rows)),
        test_curve=tuple(_curve(tables["test_metrics"].rows)),
        warnings=(*_warnings(state, tables), *warnings),
    )


def undetermined(made: LinearStart) -> Iterator[str]:
    """Yield what the users of a linear fit should know of functions that it could not fit."""
    for block in made.undetermined:
        centre, *others = block.split()
        neighbours = " and ".join(others or [centre])
        yield (
            f"no training structure has an atom of {centre} with {neighbours} as neighbour within "
            f"the cutoff, so the data determine none of the functions {block!r}: their "
            "coefficients are 0. Add such structures where the potential is to describe them; "
            "nothing is to be done where they can't occur"
        )


def summarise_linear_fit(made: LinearStart) -> RunSummary:
    """Summarise a linear fit that pacemaker did not continue: it has no curve and no log."""
    sizes = SetSizes(found=None, kept=None, fitted=made.structures)
    return RunSummary(
        status="succeeded",
        cause=None,
        exit_code=0,
        train=None,
        test=None,
        loss_shares=made.loss_shares,
        iterations=0,
        functions=made.functions,
        parameters=made.functions,
        ladder=False,
        cycles=(),
        early_stopping=None,
        optimiser_message=None,
        structures={"train": sizes},
        versions={},
        timings_s={},
        train_curve=(),
        test_curve=(),
        warnings=tuple(undetermined(made)),
    )


def _tables_folder(directory: Path) -> Path:
    """Return where the tables are: a run of ours joins those of all its attempts in a folder."""
    joined = directory / "metrics"
    return joined if (joined / "metrics.txt").is_file() else directory


def _read_log(directory: Path) -> LogState:
    parser = LogParser()
    for name in LOGS:
        if (directory / name).is_file():
            for line in read_lines(directory / name):
                parser.feed(line)
            break
    return parser.state


def _read_exit_code(directory: Path) -> int | None:
    try:
        return int((directory / _EXIT_CODE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _judge(
    state: LogState, metrics: MetricsTable, exit_code: int | None
) -> tuple[Literal["succeeded", "failed", "incomplete"], str | None]:
    """Decide how the run ended; exit code 0 alone means nothing with pacemaker."""
    cause = describe_failure(state, exit_code)
    if cause is not None:
        return "failed", cause
    if exit_code not in (None, 0):
        return "failed", f"exit code {exit_code} while {_phase_in_words(state)}"
    if not state.potential_saved:
        if exit_code == 0:
            return "failed", "it ended without saving a potential"
        return "incomplete", f"the log ends while {_phase_in_words(state)}"
    problem = _loss_problem(state, metrics.rows)
    return ("failed", problem) if problem else ("succeeded", None)


def _loss_problem(state: LogState, rows: Sequence[MetricsRow]) -> str | None:
    if _began_at_its_best(state, rows):
        return None
    if not any(row.iter_num for row in rows):
        evaluated = bool(rows) and rows[0].loss is not None
        said = state.optimiser_results[-1].message if state.optimiser_results else None
        return (
            "the optimiser did not make one iteration"
            + (f" (initial loss {rows[0].loss:.4g})" if evaluated else "")
            + (f": {said}" if said else "")
        )
    first, last = rows[0].loss, rows[-1].loss
    if first is None or last is None or not math.isfinite(last):
        return DIVERGED
    best = min(row.loss for row in rows if row.loss is not None)
    return None if best < first else f"the loss did not fall (from {first:.4g} to {last:.4g})"


def _began_at_its_best(state: LogState, rows: Sequence[MetricsRow]) -> bool:
    """Tell whether the fit began with a potential, and the optimiser found that it is a minimum.

    From nothing it would be a minimum as well where nothing can be learnt. A linear fit is one but
    for the radial functions, and a line search that finds no better point may end it too.
    """
    if state.starting_potential is None or not state.optimiser_results:
        return False
    ended, linear = state.optimiser_results[-1], "linear_start.yaml" in state.starting_potential
    if not ended.success and not (linear and ended.status == _PRECISION_LOSS):
        return False
    losses = [math.nan if row.loss is None else row.loss for row in rows]
    same = all(math.isclose(loss, losses[0]) for loss in losses)
    return bool(losses) and math.isfinite(losses[0]) and same


def _phase_in_words(state: LogState) -> str:
    return state.phases[-1][0].value.replace("_", " ") if state.phases else "nothing had begun"


def _is_ladder(state: LogState, rows: Sequence[MetricsRow]) -> bool:
    # A fit that was interrupted in the last step of a ladder ends without one.
    return state.ladder or any(row.ladder_step for row in rows)


def _first_known(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _cycles(rows: Sequence[MetricsRow]) -> Iterator[FitCycle]:
    by_cycle = groupby(rows, key=lambda row: (row.ladder_step or 0, row.cycle_step or 0))
    for (ladder_step, cycle), group in by_cycle:
        members = list(group)
        yield FitCycle(
            ladder_step=ladder_step,
            cycle=cycle,
            functions=members[-1].nfuncs,
            iterations=max(row.iter_num or 0 for row in members),
            final_loss=members[-1].loss,
        )


def _curve(rows: Sequence[MetricsRow]) -> Iterator[CurvePoint]:
    for row in rows:
        yield CurvePoint(
            ladder_step=row.ladder_step or 0,
            cycle=row.cycle_step or 0,
            iteration=row.iter_num or 0,
            loss=row.loss,
            rmse_energy_mev_per_atom=milli(row.rmse_energy_ev_per_atom),
            rmse_force_mev_per_angstrom=milli(row.rmse_force_ev_per_angstrom),
        )


def _structures(state: LogState) -> dict[Literal["train", "test"], SetSizes]:
    sides: tuple[tuple[Literal["train", "test"], int | None], ...] = (
        ("train", state.fitted_train),
        ("test", state.fitted_test),
    )
    return {
        side: SetSizes(found=sizes.found, kept=sizes.kept, fitted=fitted)
        for (side, fitted), sizes in zip(sides, state.datasets, strict=False)
    }


def _warnings(state: LogState, tables: dict[str, MetricsTable]) -> Iterator[str]:
    for side, sizes in _structures(state).items():
        if sizes.found is not None and sizes.kept is not None and sizes.kept != sizes.found:
            yield (
                f"pacemaker dropped {sizes.found - sizes.kept} of {sizes.found} {side} structures: "
                "an atom in them has no neighbour within the cutoff"
            )
        if sizes.kept is not None and sizes.fitted is not None and sizes.fitted != sizes.kept:
            removed = sizes.kept - sizes.fitted
            yield f"the weighting removed {removed} of {sizes.kept} {side} structures"
    for before, after in ((before, after) for before, after in state.batch_sizes if after):
        yield f"out of GPU memory: pacemaker reduced the batch size from {before} to {after}"
    if state.extreme_energies:
        yield "energies per atom below -20 or above 250 eV: pacemaker fitted reference energies"
    if state.potential_saved and _began_at_its_best(state, tables["metrics"].rows):
        yield _NOTHING_TO_IMPROVE
    for name, table in tables.items():
        if table.dropped:
            yield f"{name}.txt: {table.dropped} unreadable lines left out"
