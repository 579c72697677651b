"""The result of a run of pacemaker, from its work directory: tables first, the log for the rest."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from mlip_job.errors import ConfigError
from mlip_job.training.pacemaker import TABLES
from mlip_job.training.pacemaker.callbacks.mlip_job_callbacks import BEST, SETTINGS
from mlip_job.training.pacemaker.log import LogParser
from mlip_job.training.pacemaker.snapshot import Best, read_best
from mlip_job.training.pacemaker.tables import MetricsRow, MetricsTable, read_table
from mlip_job.training.process import describe_exit, is_out_of_memory, read_lines
from mlip_job.training.summary import DIVERGED, BestPotential, FitCycle, RunSummary, SetSizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.models import Errors
    from mlip_job.training.pacemaker.log import LogState
    from mlip_job.training.summary import LinearStart

    Tables = Mapping[str, MetricsTable]

LOGS = ("train.log", "log.txt")
"""The console output that this package kept, and pacemaker's own log, which lacks tracebacks."""

_KNOWN_FILES = (*LOGS, "metrics.txt", "input.yaml", "output_potential.yaml")
_NOTHING_TO_IMPROVE = (
    "pacemaker found nothing to improve: the potential is the one that the fit began with; a "
    "larger basis leaves more to fit"
)
_TRIAL_POINT = (
    "the optimiser gave up within a line search: pacemaker's last figures of the test set are of a "
    "trial point, not of the potential that it saved"
)
# Endings of scipy's minimiser.
_PRECISION_LOSS = 2  # BFGS: its line search found no better point
_ENDED_AT_ITERATION = (0, 1, 99)  # converged, too many iterations, ended by a callback
_PRINT_PRECISION_MEV = 0.0051  # the log prints two decimals
_ONLY_PRINTED = ("mae_energy_mev_per_atom", "max_energy_mev_per_atom", "max_force_mev_per_angstrom")
"""Errors that the log has, but no table."""
_SAME = 1e-9  # relative: the last iteration is measured twice


def summarise_run(directory: Path, *, exit_code: int | None = None) -> RunSummary:
    """Summarise a work directory of pacemaker's.

    Without an exit code a file ``exit_code`` in the directory is read, if there is one.

    Raise a ConfigError if it is not a work directory of pacemaker.
    """
    if not any((directory / name).is_file() for name in _KNOWN_FILES):
        raise ConfigError(
            f"{directory} is no work directory of pacemaker",
            hint=f"it holds none of {', '.join(_KNOWN_FILES)}",
        )
    state = _read_log(directory)
    # A run of ours joins the tables of all its attempts in a folder.
    joined = directory / "metrics"
    folder = joined if (joined / "metrics.txt").is_file() else directory
    tables = {name: read_table(folder / f"{name}.txt") for name in TABLES}
    exit_code = _read_exit_code(directory) if exit_code is None else exit_code
    status, cause = _judge(state, tables["metrics"], exit_code)
    rows = tables["metrics"].rows
    last = rows[-1] if rows else MetricsRow()
    train, test, warnings = _final_errors(state, tables)
    index = _final_index(state, tables["cycle_metrics"])
    row = None if index is None else tables["cycle_metrics"].rows[index]
    kept = read_best(directory / BEST)
    best = better_than_last(kept, state, tables)
    if kept is not None and best is not None:
        row = kept.train
        train, test, warnings = kept.train.errors, kept.validation.errors, []
    cycles = tuple(_cycles(rows))
    return RunSummary(
        status=status,
        cause=cause,
        exit_code=exit_code,
        train=train,
        test=test,
        loss_shares=row.loss_shares if row is not None else None,
        kappa=state.kappa,
        second_set="validation" if (directory / SETTINGS).is_file() else "test",
        best=best,
        iterations=sum(c.iterations for c in cycles) if rows else None,
        functions=state.functions if last.nfuncs is None else last.nfuncs,
        parameters=state.parameters if last.ncoefs is None else last.ncoefs,
        # A fit that was interrupted in the last step of a ladder ends without one.
        ladder=state.ladder or any(r.ladder_step for r in rows) if state.phases else None,
        cycles=cycles,
        early_stopping=state.early_stopping,
        optimiser_message=state.optimiser_results[-1].message if state.optimiser_results else None,
        structures=_structures(state),
        versions=dict(state.versions),
        timings_s=state.phase_seconds(),
        train_curve=tuple(r.point for r in rows),
        test_curve=tuple(r.point for r in tables["test_metrics"].rows),
        warnings=(*_warnings(state, tables), *warnings),
    )


def better_than_last(kept: Best | None, state: LogState, tables: Tables) -> BestPotential | None:
    """Return which potential is the result, if it is not the last one.

    Only the last step of a ladder counts: earlier potentials lack functions.
    """
    rows = tables["metrics"].rows
    if kept is None or not rows or kept.ladder_step != rows[-1].place.ladder_step:
        return None
    is_last = (kept.cycle, kept.iteration) == rows[-1].place[1:]
    if is_last and len({row.cycle_step for row in rows}) == 1:
        return None
    last = _last_loss(state, tables)
    if last is not None and last <= kept.loss * (1 + _SAME):
        return None
    return BestPotential(
        ladder_step=kept.ladder_step,
        cycle=kept.cycle,
        iteration=kept.iteration,
        loss=kept.loss,
        last_loss=last if last is not None and math.isfinite(last) else None,
    )


def _read_log(directory: Path) -> LogState:
    parser = LogParser()
    for log in (directory / name for name in LOGS):
        if log.is_file():
            for line in read_lines(log):
                parser.feed(line)
            break
    return parser.state


def _read_exit_code(directory: Path) -> int | None:
    try:
        return int((directory / "exit_code").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _cycles(rows: Sequence[MetricsRow]) -> Iterator[FitCycle]:
    for (ladder_step, cycle), group in groupby(rows, key=lambda row: row.place[:2]):
        members = list(group)
        yield FitCycle(
            ladder_step=ladder_step,
            cycle=cycle,
            functions=members[-1].nfuncs,
            iterations=max(row.place.iteration for row in members),
            final_loss=members[-1].loss,
        )


def _structures(state: LogState) -> dict[Literal["train", "test"], SetSizes]:
    sides: tuple[Literal["train", "test"], ...] = ("train", "test")
    fitted = (state.fitted_train, state.fitted_test)
    return {
        side: SetSizes(found=sizes.found, kept=sizes.kept, fitted=count)
        for side, count, sizes in zip(sides, fitted, state.datasets, strict=False)
    }


def _warnings(state: LogState, tables: Tables) -> Iterator[str]:
    for side, sizes in _structures(state).items():
        if sizes.found is not None and sizes.kept is not None and sizes.kept != sizes.found:
            yield (
                f"pacemaker dropped {sizes.found - sizes.kept} of {sizes.found} {side} structures: "
                "an atom in them has no neighbour within the cutoff"
            )
        if sizes.kept is not None and sizes.fitted is not None and sizes.fitted != sizes.kept:
            removed = sizes.kept - sizes.fitted
            yield f"the weighting removed {removed} of {sizes.kept} {side} structures"
    for before, after in state.batch_sizes:
        if after:
            yield f"out of GPU memory: pacemaker reduced the batch size from {before} to {after}"
    if state.extreme_energies:
        yield "energies per atom below -20 or above 250 eV: pacemaker fitted reference energies"
    if state.potential_saved and _began_at_its_best(state, tables["metrics"].rows):
        yield _NOTHING_TO_IMPROVE
    for name, table in tables.items():
        if table.dropped:
            yield f"{name}.txt: {table.dropped} unreadable lines left out"


# -- success or failure --------------------------------------------------------------------------


def _judge(
    state: LogState, metrics: MetricsTable, exit_code: int | None
) -> tuple[Literal["succeeded", "failed", "incomplete"], str | None]:
    """Determine the status of a run; pacemaker may exit with 0 after a failure."""
    cause = describe_failure(state, exit_code)
    if cause is not None:
        return "failed", cause
    phase = state.phase.replace("_", " ") if state.phases else "nothing had begun"
    if exit_code not in (None, 0):
        return "failed", f"exit code {exit_code} while {phase}"
    if not state.potential_saved:
        if exit_code == 0:
            return "failed", "it ended without saving a potential"
        return "incomplete", f"the log ends while {phase}"
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
    if first is None or last is None:
        return DIVERGED
    best = min(row.loss for row in rows if row.loss is not None)
    return None if best < first else f"the loss did not fall (from {first:.4g} to {last:.4g})"


def _began_at_its_best(state: LogState, rows: Sequence[MetricsRow]) -> bool:
    """Return whether the fit started from a potential at a minimum of the loss.

    Zero coefficients are a minimum too where nothing can be learnt; that is no success. A linear
    fit is a minimum but for the radial functions, so that a failed line search may end it as well.
    """
    if state.starting_potential is None or not state.optimiser_results:
        return False
    ended, linear = state.optimiser_results[-1], "linear_start.yaml" in state.starting_potential
    if not ended.success and not (linear and ended.status == _PRECISION_LOSS):
        return False
    losses = [math.nan if row.loss is None else row.loss for row in rows]
    same = all(math.isclose(loss, losses[0]) for loss in losses)
    return bool(losses) and math.isfinite(losses[0]) and same


# Messages of python-ace 0.4 and their causes.
_MEANINGS: Mapping[str, str] = {
    "energy_corrected contains NaNs": "an energy in the dataset is NaN",
    "column contains NaN": "forces in the dataset hold NaN",
    "Neither 'energy_corrected' column": "the dataset has no energy_corrected column and the input "
    "gives no data.reference_energy",
    "has no attribute 'query_data'": "the input has no backend section",
    "No such file or directory": "a file is missing",
    "ParserError": "the input is not valid YAML",
    "ScannerError": "the input is not valid YAML",
    "UnpicklingError": "a dataset is no gzip-pickled data frame",
    "No space left on device": "the disk is full",
    "Disk quota exceeded": "the disk's quota is used up",
    "'ConcatV2' Op with length 0": "an element has no function of three bodies while others do: "
    "raise training.functions_per_element",
    "IndexError": "the basis may have no functions for some combination of elements",
}


def describe_failure(state: LogState, exit_code: int | None) -> str | None:
    """Return the cause of a failure from log and exit code; None if unknown."""
    # TensorFlow logs memory that it asks for and can do without: the exception decides.
    out_of_memory = is_out_of_memory(state.exception) if state.exception else state.out_of_memory
    if out_of_memory and not state.potential_saved:
        return _describe_memory(state)
    if exit_code and (by_signal := describe_exit(exit_code)):
        return by_signal
    if state.exception is not None:
        meaning = next((m for sign, m in _MEANINGS.items() if sign in state.exception), None)
        return f"{meaning} ({state.exception})" if meaning else state.exception
    return None


def _describe_memory(state: LogState) -> str:
    """Suggest what to reduce; pacemaker already reduced the batch size."""
    smallest = min((size for sizes in state.batch_sizes for size in sizes if size), default=None)
    if smallest == 1:
        return (
            "out of memory even with one structure at a time: reduce the basis "
            "(training.functions_per_element), or leave out the largest structures"
        )
    tried = f" down to a batch of {smallest}" if smallest else ""
    return (
        f"out of memory{tried}: reduce training.batch_size or the basis, or give the job more "
        "memory"
    )


# -- the errors of the result --------------------------------------------------------------------


def _final_errors(
    state: LogState, tables: Tables
) -> tuple[Errors | None, Errors | None, list[str]]:
    """Return the errors of the result on train and test, and warnings about them.

    They are those of the last ladder step, and of its best cycle. Pacemaker measures the test set
    once more when the optimiser has ended, with the parameters of its last evaluation. If that was
    no iteration but a trial of a line search, the test errors of the last iteration are returned
    instead, if the test set was measured then.
    """
    warnings: list[str] = []
    train = _of_cycle(state, tables["cycle_metrics"], "Cycle last iteration:", warnings)
    test_cycles = tables["test_cycle_metrics"]
    if not _reaches_last_step(tables):
        return train, None, warnings  # an attempt without a test set finished the fit
    if test_cycles.rows and _gave_up(state, test_cycles):
        warnings.append(_TRIAL_POINT)
        return train, _of_last_iteration(state, tables), warnings
    test = _of_cycle(state, test_cycles, "TEST Cycle last iteration:", warnings)
    return train, test, warnings


def _final_index(state: LogState, table: MetricsTable) -> int | None:
    """Return the row of the result in a table of cycles: of the last step and its best cycle."""
    in_step = _in_last_step(table.rows)
    return in_step[state.best_cycle] if state.best_cycle < len(in_step) else None


def _last_loss(state: LogState, tables: Tables) -> float | None:
    """Return the test loss of the last potential, without regularisation."""
    cycles = tables["test_cycle_metrics"]
    if not _reaches_last_step(tables) or _gave_up(state, cycles):
        return None
    index = _final_index(state, cycles)
    return None if index is None else cycles.rows[index].error_loss


def _of_cycle(
    state: LogState, table: MetricsTable, title: str, warnings: list[str]
) -> Errors | None:
    index = _final_index(state, table)
    if index is None:
        return None
    row = table.rows[index]
    blocks = [figures for found, figures in state.blocks if found == title]
    # The log is that of pacemaker's last start, the table may have the rows of earlier ones too.
    in_log = index - len(table.rows) + len(blocks)
    printed = blocks[in_log] if 0 <= in_log < len(blocks) else {}
    warnings += _disagreements(row.errors, printed)
    return row.errors.model_copy(update={name: printed.get(name) for name in _ONLY_PRINTED})


def _reaches_last_step(tables: Tables) -> bool:
    """Return whether the test set was evaluated in the last step of the fit."""
    test, train = tables["test_cycle_metrics"].rows[-1:], tables["cycle_metrics"].rows[-1:]
    return [row.ladder_step for row in test] == [row.ladder_step for row in train]


def _gave_up(state: LogState, cycles: MetricsTable) -> bool:
    """Return whether the optimiser of the best cycle ended within a line search."""
    in_step = _in_last_step(cycles.rows)
    index = state.best_cycle - len(in_step)
    if index >= 0 or -index > len(state.optimiser_results):
        return False
    return state.optimiser_results[index].status not in _ENDED_AT_ITERATION


def _of_last_iteration(state: LogState, tables: Tables) -> Errors | None:
    train, test = tables["metrics"].rows, tables["test_metrics"].rows
    step = train[-1].ladder_step if train else None
    places = [
        row.place
        for row in train
        if row.ladder_step == step and row.place.cycle == state.best_cycle
    ]
    found = [row for row in test if row.place in places[-1:]]
    return found[0].errors if found else None


def _in_last_step(rows: Sequence[MetricsRow]) -> list[int]:
    return [i for i, row in enumerate(rows) if row.ladder_step == rows[-1].ladder_step]


def _disagreements(table: Errors, printed: Mapping[str, float]) -> Iterator[str]:
    """Compare the table with the log, to the decimals that the log prints."""
    pairs = (
        ("energy", table.rmse_energy_mev_per_atom, printed.get("rmse_energy_mev_per_atom")),
        ("force", table.rmse_force_mev_per_angstrom, printed.get("rmse_force_mev_per_angstrom")),
    )
    for name, in_table, in_log in pairs:
        if in_table is None or in_log is None:
            continue
        if abs(in_table - in_log) > _PRINT_PRECISION_MEV + 1e-9 * abs(in_table):
            yield f"the {name} RMSE is {in_table:.2f} in the table and {in_log:.2f} in the log"


# -- a published linear fit ----------------------------------------------------------------------


def undetermined(made: LinearStart) -> Iterator[str]:
    """Yield warnings about functions that the data do not determine."""
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
    """Summarise a published linear fit: it has no curve and no log."""
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
        structures={"train": SetSizes(found=None, kept=None, fitted=made.structures)},
        versions={},
        timings_s={},
        train_curve=(),
        test_curve=(),
        warnings=tuple(undetermined(made)),
    )
