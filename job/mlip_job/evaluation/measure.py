"""Evaluate structures in batches on all cores, with constant memory."""

from __future__ import annotations

import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip_job.dataset.xyz import count_atoms, parse
from mlip_job.errors import TrainingError
from mlip_job.evaluation.potential import Potential
from mlip_job.evaluation.reference_structures import ReferenceStructures
from mlip_job.runtime.processes import in_order, worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.dataset.xyz import Labelled
    from mlip_job.evaluation.potential import Pair


@dataclass(frozen=True)
class Models:
    """The potentials to evaluate.

    `artefact` is measured and compared with `basis`, the potential it was converted from; they are
    the same file if nothing was converted, as for GRACE/FS. The active set of `basis` gives
    extrapolation grades. Reference energies are in eV.
    """

    artefact: Path
    reference_energies: Mapping[str, float]
    basis: Path | None = None
    active_set: Path | None = None

    @property
    def converted(self) -> bool:
        """Whether the artefact was converted from another file, with which it is compared."""
        return self.basis is not None and self.basis != self.artefact


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
    """One structure to measure, as extended XYZ; also by the basis if `with_basis`."""

    block: str
    with_basis: bool = False


@dataclass
class Batch:
    """The results of some tasks, in task order."""

    measured: list[Measured] = field(default_factory=list)
    stable: ReferenceStructures = field(default_factory=ReferenceStructures)


_BATCH_ATOMS = 1000  # about a second, even for a large basis
_ATOMS_WORTH_A_PROCESS = 20_000  # its imports take seconds
_SECONDS_FOR_A_SIGNAL = 0.5


@contextmanager
def measuring(
    models: Models, *, atoms: int, cores: int
) -> Iterator[Callable[[Iterable[Task]], Iterator[Batch]]]:
    """Yield a function that measures structures and yields batches in the order of the tasks.

    It uses a pool of processes, or this process for a small number of atoms.

    Raises
    ------
    TrainingError
        If a potential can't be loaded or predicts NaN, or a process dies.
    """
    processes = min(cores, atoms // _ATOMS_WORTH_A_PROCESS)
    if processes <= 1:
        measurer = _Measurer(models)
        yield lambda tasks: map(measurer.measure, _in_batches(tasks))
        return
    pool = worker_pool(processes, _initialise, models)
    try:
        yield lambda tasks: in_order(pool, _measure, _in_batches(tasks), processes)
    except BrokenProcessPool:
        # If a signal was sent to all processes of the job, our handler raises here.
        time.sleep(_SECONDS_FOR_A_SIGNAL)
        raise TrainingError(
            "a process that evaluated the potential died, possibly out of memory",
            hint="give the job more memory, or fewer cores",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


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


class _Measurer:
    """Evaluates structures with models that are loaded once."""

    def __init__(self, models: Models) -> None:
        self._references = models.reference_energies
        self._artefact = Potential(models.artefact)
        self._converted = models.converted
        self._basis = None
        if models.basis is not None and (models.converted or models.active_set is not None):
            self._basis = Potential(models.basis, models.active_set)

    def measure(self, tasks: Iterable[Task]) -> Batch:
        batch = Batch(stable=ReferenceStructures(self._artefact.cutoff))
        for task in tasks:
            structure = parse(task.block)
            references = sum(self._references[symbol] for symbol in structure.atoms.symbols)
            measured = self._measure(
                structure, references, self._basis if task.with_basis else None
            )
            batch.measured.append(measured)
            shortest = min(measured.shortest.values(), default=None)
            batch.stable.add(structure, references, shortest)
        return batch

    def _measure(self, structure: Labelled, references: float, basis: Potential | None) -> Measured:
        what, count = f"row {structure.row_id} of the database", len(structure.atoms)
        found = self._artefact.predict(structure.atoms, what)
        shortest = self._artefact.shortest_distances()
        conversion, grade = None, None
        if basis is not None:
            other = basis.predict(structure.atoms, what)
            grade = other.grade
            if self._converted:
                conversion = (
                    abs(found.energy - other.energy) / count,
                    float(np.abs(found.forces - other.forces).max()),
                )
        stress = None
        if found.stress is not None and structure.stress is not None:
            stress = (structure.stress, found.stress, float(structure.atoms.get_volume()))
        return Measured(
            row_id=structure.row_id,
            formula=structure.atoms.get_chemical_formula("metal"),
            config_type=structure.config_type,
            symbols=np.array(structure.atoms.symbols),
            energy_reference=structure.energy / count,
            energy_predicted=(found.energy + references) / count,
            forces_reference=structure.forces,
            forces_predicted=found.forces,
            stress=stress,
            shortest=shortest,
            conversion=conversion,
            grade=grade,
            reference_energy=references / count,
        )


# State of a worker process. Models are loaded with the first batch: an error of the initialiser
# would only break the pool.
_worker: dict[str, Any] = {}


def _initialise(models: Models) -> None:
    _worker["models"] = models


def _measure(tasks: list[Task]) -> Batch:
    if "measurer" not in _worker:
        _worker["measurer"] = _Measurer(_worker["models"])
    measurer: _Measurer = _worker["measurer"]
    return measurer.measure(tasks)
