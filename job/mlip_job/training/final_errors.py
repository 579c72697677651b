"""The errors that a fit ended with, from pacemaker's tables and its log."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mlip_job.training.run_summary import Errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.training.log_state import LogState, StatisticsBlock
    from mlip_job.training.tables import MetricsRow, MetricsTable

_PRINT_PRECISION_MEV = 0.0051  # the log prints two decimals
# Of scipy's minimiser: converged, too many iterations, ended by a callback.
_ENDED_AT_ITERATION = (0, 1, 99)
_TRIAL_POINT = (
    "the optimiser gave up within a line search: pacemaker's last figures of the test set are of a "
    "trial point, not of the potential that it saved"
)


def final_errors(
    state: LogState, tables: Mapping[str, MetricsTable]
) -> tuple[Errors | None, Errors | None, list[str]]:
    """Return the errors of the result on train and test, and what a person should know of them.

    They are those of the last ladder step, and of its best cycle. Pacemaker measures the test set
    once more when the optimiser has ended, with the parameters of its last evaluation. Where that
    was no iteration but a trial of a line search, its figures are left alone: those of the last
    iteration are taken, where the test set was measured then, else none.

    Parameters
    ----------
    state
        What the log says.
    tables
        By name: ``metrics``, ``test_metrics``, ``cycle_metrics``, ``test_cycle_metrics``.
    """
    warnings: list[str] = []
    train = _of_cycle(state, tables["cycle_metrics"], "Cycle last iteration:", warnings)
    test_cycles = tables["test_cycle_metrics"]
    if not _reaches_last_step(test_cycles, tables["cycle_metrics"]):
        return train, None, warnings  # an attempt without a test set finished the fit
    if test_cycles.rows and _gave_up(state, test_cycles):
        warnings.append(_TRIAL_POINT)
        return train, _of_last_iteration(state, tables), warnings
    test = _of_cycle(state, test_cycles, "TEST Cycle last iteration:", warnings)
    return train, test, warnings


def final_row(state: LogState, table: MetricsTable) -> MetricsRow | None:
    """Return the row of the result in a table of cycles: of the last step and its best cycle."""
    index = _final_index(state, table)
    return None if index is None else table.rows[index]


def errors_of(row: MetricsRow) -> Errors:
    """Return the errors that a row of a table tells of."""
    return _errors(row, None)


def last_loss(state: LogState, tables: Mapping[str, MetricsTable]) -> float | None:
    """Return the loss on the test set, without regularisation, of what pacemaker ended with."""
    cycles = tables["test_cycle_metrics"]
    if not _reaches_last_step(cycles, tables["cycle_metrics"]) or _gave_up(state, cycles):
        return None
    row = final_row(state, cycles)
    if row is None or row.e_loss_contrib is None or row.f_loss_contrib is None:
        return None
    return row.e_loss_contrib + row.f_loss_contrib


def milli(value: float | None) -> float | None:
    """Return eV as meV; None for what is no finite number."""
    return None if value is None or not math.isfinite(value) else 1000 * value


def _of_cycle(
    state: LogState, table: MetricsTable, title: str, warnings: list[str]
) -> Errors | None:
    index = _final_index(state, table)
    if index is None:
        return None
    row = table.rows[index]
    blocks = [block for block in state.blocks if block.title == title]
    # The log is that of pacemaker's last start, the table may hold the rows of earlier ones too.
    in_log = index - len(table.rows) + len(blocks)
    block = blocks[in_log] if 0 <= in_log < len(blocks) else None
    if block is not None and (problem := _disagreement(row, block)):
        warnings.append(problem)
    return _errors(row, block)


def _final_index(state: LogState, table: MetricsTable) -> int | None:
    in_step = _in_last_step(table.rows)
    return in_step[state.best_cycle] if state.best_cycle < len(in_step) else None


def _reaches_last_step(test_cycles: MetricsTable, cycles: MetricsTable) -> bool:
    """Tell whether the test set was measured in the step that the fit ended with."""
    test, train = test_cycles.rows[-1:], cycles.rows[-1:]
    return [row.ladder_step for row in test] == [row.ladder_step for row in train]


def _gave_up(state: LogState, cycles: MetricsTable) -> bool:
    """Tell whether the optimiser ended elsewhere than at an iteration, in the best cycle."""
    in_step = _in_last_step(cycles.rows)
    index = state.best_cycle - len(in_step)
    if index >= 0 or -index > len(state.optimiser_results):
        return False
    return state.optimiser_results[index].status not in _ENDED_AT_ITERATION


def _of_last_iteration(state: LogState, tables: Mapping[str, MetricsTable]) -> Errors | None:
    train, test = tables["metrics"].rows, tables["test_metrics"].rows
    step = train[-1].ladder_step if train else None
    of_cycle = [
        row
        for row in train
        if row.ladder_step == step and (row.cycle_step or 0) == state.best_cycle
    ]
    if not of_cycle:
        return None
    last = of_cycle[-1]
    place = (last.ladder_step, last.cycle_step, last.iter_num)
    found = [row for row in test if (row.ladder_step, row.cycle_step, row.iter_num) == place]
    return _errors(found[0], None) if found else None


def _in_last_step(rows: Sequence[MetricsRow]) -> list[int]:
    return [i for i, row in enumerate(rows) if row.ladder_step == rows[-1].ladder_step]


def _errors(row: MetricsRow, block: StatisticsBlock | None) -> Errors:
    return Errors(
        loss=row.loss,
        rmse_energy_mev_per_atom=milli(row.rmse_energy_ev_per_atom),
        rmse_force_mev_per_angstrom=milli(row.rmse_force_ev_per_angstrom),
        mae_energy_mev_per_atom=_from_block(block, "mae", 0),
        mae_force_mev_per_angstrom=milli(row.mae_force_ev_per_angstrom),
        max_energy_mev_per_atom=_from_block(block, "max", 0),
        max_force_mev_per_angstrom=_from_block(block, "max", 2),
    )


def _disagreement(row: MetricsRow, block: StatisticsBlock) -> str | None:
    """Hold the table against the log, within what the log prints."""
    pairs = (
        ("energy", milli(row.rmse_energy_ev_per_atom), _from_block(block, "rmse", 0)),
        ("force", milli(row.rmse_force_ev_per_angstrom), _from_block(block, "rmse", 2)),
    )
    for name, in_table, in_log in pairs:
        if in_table is None or in_log is None:
            continue
        if abs(in_table - in_log) > _PRINT_PRECISION_MEV + 1e-9 * abs(in_table):
            return f"the {name} RMSE is {in_table:.2f} in the table and {in_log:.2f} in the log"
    return None


def _from_block(block: StatisticsBlock | None, kind: str, column: int) -> float | None:
    if block is None or kind not in block.errors:
        return None
    value = milli(block.errors[kind][column])
    # Back to the two decimals that were printed.
    return round(value, 2) if value is not None else None
