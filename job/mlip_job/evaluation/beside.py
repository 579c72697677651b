"""Measure the test set beside a fit: a process that looks at the potentials that pacemaker leaves.

It adds its rows to ``test_metrics.txt``, whose columns pacemaker has written before: to whoever
reads the tables it is the same curve, measured by another program.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.evaluation.potential import Potential
from mlip_job.evaluation.sample import Sample
from mlip_job.processes import die_with, stop_signals_blocked
from mlip_job.training.newest import copy_newest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection

    from mlip_job.config.training import GroupWeights
    from mlip_job.evaluation.sample import SampleErrors
    from mlip_job.naming import WorkFiles
    from mlip_job.training.tables import MetricsRow

_LOWEST_PRIORITY = 19
_POLL_SECONDS = 0.5
_SECONDS_TO_DIE = 5.0


@dataclass(frozen=True)
class TestSet:
    """What is measured beside a fit, and how.

    Attributes
    ----------
    files
        Where pacemaker runs; the test set is among the files of the dataset.
    elements, atoms
        Of the potential; of the test set.
    reference_energies
        eV per atom of each element.
    kappa
        Share of the forces in the loss; None where only pacemaker knows it.
    by_group
        Relative weights of config types.
    display_step
        Iterations between two measurements, at least.
    """

    __test__ = False  # no class of tests, whatever pytest makes of its name

    files: WorkFiles
    elements: tuple[str, ...]
    atoms: int
    reference_energies: Mapping[str, float]
    kappa: float | None
    by_group: Mapping[str, GroupWeights]
    display_step: int


class Companion:
    """The process beside a fit, which is over when `stop` returns.

    Parameters
    ----------
    test_set
        What it measures.

    Raises
    ------
    OSError
        If it can't be started.
    """

    def __init__(self, test_set: TestSet) -> None:
        # A fork would copy locks that other threads hold: the heartbeat's, an S3 client's.
        context = multiprocessing.get_context("spawn")
        self._failures, failures = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_measure_along, args=(test_set, failures, os.getpid()), daemon=True
        )
        with stop_signals_blocked():
            self._process.start()
        failures.close()

    def stop(self) -> str | None:
        """End it, wherever it is; return why it had ended before, in words, if it had."""
        failure = self._failure()
        self._process.kill()
        self._process.join(_SECONDS_TO_DIE)
        self._failures.close()
        return failure

    def _failure(self) -> str | None:
        with suppress(EOFError, OSError):
            if self._failures.poll():
                return str(self._failures.recv())
        code = self._process.exitcode
        # A scheduler that ends a job sends SIGTERM to all of its processes.
        if code is None or code == -signal.SIGTERM:
            return None
        by_signal = signal.Signals(-code).name if code < 0 else None
        return f"ended by {by_signal}" if by_signal else f"ended with exit code {code}"


def _measure_along(test_set: TestSet, failures: Connection, parent: int) -> None:
    """Measure until killed."""
    die_with(parent)
    os.nice(_LOWEST_PRIORITY)
    try:
        _follow(test_set)
    except Exception as error:  # noqa: BLE001 - whatever it is, the fit goes on without
        failures.send(f"{type(error).__name__}: {error}".partition("\n")[0])


def _follow(test_set: TestSet) -> None:
    files = test_set.files
    sample = Sample(
        files.dataset.xyz("test"),
        atoms=test_set.atoms,
        reference_energies=test_set.reference_energies,
        by_group=test_set.by_group,
    )
    due = _Due(test_set)
    while True:
        started = time.monotonic()
        row = copy_newest(files, test_set.elements, files.measured_potential, due)
        if row is not None:
            errors = sample.measure(Potential(files.measured_potential))
            add_row(test_set, row, errors)
            due.last = row
        # At least half of a core's time is left to the fit, however large the test set.
        time.sleep(max(_POLL_SECONDS, time.monotonic() - started))


class _Due:
    """Tells whether a potential is to be measured: every so many iterations, and a step's last.

    Attributes
    ----------
    last
        The row of the one that was measured last.
    """

    def __init__(self, test_set: TestSet) -> None:
        self.last: MetricsRow | None = None
        self._test_set = test_set

    def __call__(self, row: MetricsRow) -> bool:
        before = 0
        if self.last is not None and _step(self.last) == _step(row):
            before = self.last.iter_num or 0
        new = (row.iter_num or 0) - before
        ended = self._test_set.files.ladder_potential(row.ladder_step or 0).is_file()
        return new >= self._test_set.display_step or (new > 0 and ended)


def _step(row: MetricsRow) -> tuple[int, int]:
    return row.ladder_step or 0, row.cycle_step or 0


def add_row(test_set: TestSet, row: MetricsRow, errors: SampleErrors) -> None:
    """Add a row to ``test_metrics.txt``.

    Parameters
    ----------
    test_set
        What was measured.
    row
        Of the training set in the same iteration: regularisation is that of the coefficients.
    errors
        Of the test set.
    """
    values: dict[str, float | None] = {
        "ladder_step": row.ladder_step or 0,
        "cycle_step": row.cycle_step or 0,
        "iter_num": row.iter_num,
        "reg_loss": row.reg_loss,
        "rmse_epa": errors.energy_rmse,
        "rmse_f_comp": errors.force_rmse,
        "mae_f_comp": errors.force_mae,
        "nfuncs": row.nfuncs or 0,
        "ncoefs": row.ncoefs or 0,
    }
    if test_set.kappa is not None:
        energy = (1 - test_set.kappa) * errors.energy_squares
        force = test_set.kappa * errors.force_squares
        values |= {
            "loss": energy + force + (row.reg_loss or 0.0),
            "e_loss_contrib": energy,
            "f_loss_contrib": force,
        }
    table = test_set.files.table("test_metrics")
    columns = table.read_text(encoding="utf-8").partition("\n")[0].split()
    shown = (values.get(column) for column in columns)
    line = " ".join("nan" if value is None else repr(value) for value in shown)
    with table.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
