"""Evaluate structures in batches on all cores, with constant memory."""

from __future__ import annotations

import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mlip_job.dataset.xyz import count_atoms, parse
from mlip_job.errors import TrainingError
from mlip_job.evaluation.potential import Potential
from mlip_job.evaluation.reference_structures import ReferenceStructures
from mlip_job.runtime.processes import in_order, worker_pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import ProcessPoolExecutor
    from pathlib import Path
    from types import TracebackType

    from mlip_job.dataset.row import FloatArray
    from mlip_job.dataset.xyz import Labelled
    from mlip_job.evaluation.potential import Pair


@dataclass(frozen=True)
class Models:
    """The potentials to evaluate.

    `artefact` is measured and compared with `basis`, the potential it was converted from. The
    active set of `basis` gives extrapolation grades. Energies exclude the reference energies
    (eV per atom).
    """

    artefact: Path
    reference_energies: Mapping[str, float]
    basis: Path | None = None
    active_set: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A structure with its labels and predictions.

    Attributes
    ----------
    energy_reference, energy_predicted
        eV/atom, reference energies included.
    forces_reference, forces_predicted
        eV/Å.
    stress
        Reference and prediction (eV/Å³) and volume (Å³); only of labelled periodic structures.
    shortest
        Shortest distance of each pair of elements, Å.
    conversion
        Differences between artefact and basis: energy in eV/atom, largest force component in eV/Å.
    grade
        Largest extrapolation grade of its atoms.
    reference_energy
        eV/atom; included in both energies.
    """

    row_id: int
    formula: str
    config_type: str | None
    symbols: np.ndarray[Any, np.dtype[np.str_]]
    energy_reference: float
    energy_predicted: float
    forces_reference: FloatArray
    forces_predicted: FloatArray
    stress: tuple[FloatArray, FloatArray, float] | None
    shortest: dict[Pair, float]
    conversion: tuple[float, float] | None
    grade: float | None
    reference_energy: float = 0.0


@dataclass(frozen=True)
class Task:
    """One structure to measure; with `doubly`, also by the basis."""

    block: str
    doubly: bool


@dataclass
class Batch:
    """The results of some tasks, in task order."""

    measured: list[Measured] = field(default_factory=list)
    lowest: ReferenceStructures = field(default_factory=ReferenceStructures)


class Measurer:
    """Evaluates structures with models that are loaded once."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._artefact = Potential(models.artefact)
        self._basis = Potential(models.basis, models.active_set) if models.basis else None

    def measure(self, tasks: Iterable[Task]) -> Batch:
        """Measure structures.

        Raises
        ------
        TrainingError
            If a prediction contains NaN or infinity.
        """
        batch = Batch(lowest=ReferenceStructures(self._artefact.cutoff))
        for task in tasks:
            structure = parse(task.block)
            measured = self._measure(structure, doubly=task.doubly)
            batch.measured.append(measured)
            shortest = min(measured.shortest.values(), default=None)
            batch.lowest.offer(structure, self._references(structure), shortest)
        return batch

    def _measure(self, structure: Labelled, *, doubly: bool) -> Measured:
        what, count = f"row {structure.row_id} of the database", len(structure.atoms)
        answer = self._artefact.ask(structure.atoms, what)
        shortest = self._artefact.shortest_distances()
        conversion, grade = None, None
        if doubly and self._basis is not None:
            other = self._basis.ask(structure.atoms, what)
            grade = other.grade
            conversion = (
                abs(answer.energy - other.energy) / count,
                float(np.abs(answer.forces - other.forces).max()),
            )
        stress = None
        if answer.stress is not None and structure.stress is not None:
            stress = (structure.stress, answer.stress, float(structure.atoms.get_volume()))
        references = self._references(structure)
        return Measured(
            row_id=structure.row_id,
            formula=structure.atoms.get_chemical_formula("metal"),
            config_type=structure.config_type,
            symbols=np.array(structure.atoms.symbols),
            energy_reference=structure.energy / count,
            energy_predicted=(answer.energy + references) / count,
            forces_reference=structure.forces,
            forces_predicted=answer.forces,
            stress=stress,
            reference_energy=references / count,
            shortest=shortest,
            conversion=conversion,
            grade=grade,
        )

    def _references(self, structure: Labelled) -> float:
        return sum(self._models.reference_energies[symbol] for symbol in structure.atoms.symbols)


_BATCH_ATOMS = 1000  # about a second, even for a large basis
_ATOMS_WORTH_A_PROCESS = 20_000  # its imports take seconds
_SECONDS_FOR_A_SIGNAL = 0.5


class Measurers:
    """Context manager of worker `processes`; small sets are measured in this process."""

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
            If a potential can't be loaded or predicts NaN, or a process dies.
        """
        if self._pool is None:
            self._own = self._own or Measurer(self._models)
            yield from map(self._own.measure, _in_batches(tasks))
            return
        try:
            yield from in_order(self._pool, _measure, _in_batches(tasks), self.processes)
        except BrokenProcessPool:
            # If a signal was sent to all processes of the job, our handler raises here.
            time.sleep(_SECONDS_FOR_A_SIGNAL)
            raise TrainingError(
                "a process that evaluated the potential died, possibly out of memory",
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


# State of a worker process. Models are loaded with the first batch: an error of the initialiser
# would only break the pool.
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
