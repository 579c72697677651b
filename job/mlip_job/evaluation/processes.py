"""Structures are measured in batches, over all cores; memory stays flat."""

from __future__ import annotations

import time
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Self

from mlip_job.dataset.xyz import count_atoms
from mlip_job.errors import TrainingError
from mlip_job.evaluation.measured import Measurer
from mlip_job.runtime.processes import in_order, worker_pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import ProcessPoolExecutor
    from types import TracebackType

    from mlip_job.evaluation.measured import Batch, Models, Task

_BATCH_ATOMS = 1000  # takes a second or so, also with a large basis
_ATOMS_WORTH_A_PROCESS = 20_000  # its start takes seconds of imports
_SECONDS_FOR_A_SIGNAL = 0.5


class Measurers:
    """Context manager: as many processes as are worth their start, or this one alone.

    Parameters
    ----------
    models
        What each of them loads.
    atoms
        How many there are to measure.
    cores
        Most processes.

    Attributes
    ----------
    processes
        How many there are beside this one.
    """

    def __init__(self, models: Models, *, atoms: int, cores: int) -> None:
        processes = min(cores, atoms // _ATOMS_WORTH_A_PROCESS)
        self.processes = processes if processes > 1 else 0
        self._models = models
        self._own: Measurer | None = None
        self._pool: ProcessPoolExecutor | None = None
        if self.processes:
            self._pool = worker_pool(self.processes, _initialise, models)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def measure(self, tasks: Iterable[Task]) -> Iterator[Batch]:
        """Measure structures; yield batches in the order of the tasks.

        Raises
        ------
        TrainingError
            If a potential can't be loaded or answers with NaN, or a process dies.
        """
        if self._pool is None:
            self._own = self._own or Measurer(self._models)
            yield from map(self._own.measure, _in_batches(tasks))
            return
        try:
            yield from in_order(self._pool, _measure, _in_batches(tasks), self.processes)
        except BrokenProcessPool:
            # Perhaps a signal was sent to all processes of the job; then our own handler raises.
            time.sleep(_SECONDS_FOR_A_SIGNAL)
            raise TrainingError(
                "a process that evaluated the potential died, most likely out of memory",
                hint="give the job more memory, or fewer cores",
            ) from None


def _in_batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    batch: list[Task] = []
    atoms = 0
    for task in tasks:
        batch.append(task)
        atoms += count_atoms(task.block)
        if atoms >= _BATCH_ATOMS:
            yield batch
            batch, atoms = [], 0
    if batch:
        yield batch


# Of a process that was started to measure. What can't be loaded is found with the first batch: an
# error of the initialiser would only break the pool.
_models: Models | None = None
_measurer: Measurer | None = None


def _initialise(models: Models) -> None:
    global _models  # noqa: PLW0603 - a pool's processes have no other place for it
    _models = models


def _measure(tasks: list[Task]) -> Batch:
    global _measurer  # noqa: PLW0603
    if _measurer is None:
        assert _models is not None  # noqa: S101 - the initialiser has run
        _measurer = Measurer(_models)
    return _measurer.measure(tasks)
