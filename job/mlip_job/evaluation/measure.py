"""Evaluate structures in batches on all cores, with constant memory; contradictory labels."""

from __future__ import annotations

import math
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import GPa

from mlip_job.dataset.xyz import count_atoms, parse
from mlip_job.errors import TrainingError
from mlip_job.evaluation.energy_volume import ReferenceStructures
from mlip_job.evaluation.potential import Potential
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
    """A structure with its labels and predictions; energies per atom, in eV and Å.

    The `reference_energy` is included in both energies. The `stress`, reference, prediction and
    volume, is that of labelled periodic structures. `shortest` has the shortest distance of each
    pair of elements. The `conversion` is the difference between artefact and basis of the energy,
    and of the forces the largest component. The `grade` is the largest of its atoms.
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
            basis = self._basis if task.with_basis else None
            measured = self._measure(structure, references, basis)
            batch.measured.append(measured)
            shortest = min(measured.shortest.values(), default=None)
            batch.stable.add(structure, references, shortest)
        return batch

    def _measure(self, structure: Labelled, references: float, basis: Potential | None) -> Measured:
        what, count = f"row {structure.row_id} of the database", len(structure.atoms)
        found = self._artefact.predict(structure.atoms, what)
        shortest = self._artefact.shortest_distances()
        other = basis.predict(structure.atoms, what) if basis is not None else None
        conversion, stress = None, None
        if other is not None and self._converted:
            conversion = (
                abs(found.energy - other.energy) / count,
                float(np.abs(found.forces - other.forces).max()),
            )
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
            grade=other.grade if other is not None else None,
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


# -- contradictions ------------------------------------------------------------------------------

_SMALL_FORCES = 0.01  # eV/Å, RMS: smaller forces are noise
_FEWEST_ENERGIES, _SMALL_ENERGIES = 5, 0.001  # eV/atom, standard deviation
_FAR_BETTER = 0.25  # of the squared error, i.e. half of the error
_OPPOSITE, _CHANCE = 0.2, 3.0
"""A correlation below -0.2 is significant if it is also 3/√n away from zero."""

_ORDERS: Mapping[str, tuple[int, ...]] = {
    "xx, yy, zz, yz, xz, xy": (0, 1, 2, 3, 4, 5),
    "xx, yy, zz, xy, yz, xz": (0, 1, 2, 4, 5, 3),
    "xx, yy, zz, xy, xz, yz": (0, 1, 2, 5, 4, 3),
    "xx, xy, xz, yy, yz, zz": (0, 3, 5, 4, 2, 1),
}
"""Positions of ASE's six stress components (the first order) in a label of another order."""

_VOIGT = next(iter(_ORDERS))
_SIGNS = {1.0: "", -1.0: "the opposite sign"}
_UNITS = {"eV/Å³": 1.0, "GPa": GPa, "kbar": 0.1 * GPa}
_VIRIAL = "eV, multiplied by the volume"
_CONTRADICTORY = "energies and forces of the data may contradict each other"


@dataclass
class _PairMoments:
    """Sums over pairs of a label and its prediction, taken about zero or about their means."""

    about_mean: bool = False
    count: int = 0
    sums: FloatArray = field(default_factory=lambda: np.zeros(2))
    products: FloatArray = field(default_factory=lambda: np.zeros((2, 2)))

    def add(self, label: FloatArray, predicted: FloatArray) -> None:
        pairs = np.stack([label.ravel(), predicted.ravel()])
        self.count += pairs.shape[1]
        self.sums = self.sums + pairs.sum(axis=1)
        self.products = self.products + pairs @ pairs.T

    def warning(self, fewest: int, smallest: float, opposite: str, worse: str) -> str | None:
        """Warn of a negative correlation (Pearson's), or of an error above the trivial one.

        None if the labels are fewer or smaller than given. The texts take ``correlation``, ``rmse``
        and ``trivial`` (milli).
        """
        if self.count < fewest:
            return None
        means = self.sums / self.count if self.about_mean else np.zeros(2)
        moments = self.products / self.count - np.outer(means, means)
        trivial = math.sqrt(max(0.0, moments[0, 0]))
        if trivial < smallest:
            return None
        (label, both), (_, predicted) = self.products / self.count
        rmse = math.sqrt(max(0.0, label - 2 * both + predicted))
        size = math.sqrt(moments[0, 0] * moments[1, 1])
        correlation = moments[0, 1] / size if size else 0.0
        if correlation < -max(_OPPOSITE, _CHANCE / math.sqrt(self.count)):
            return opposite.format(correlation=correlation)
        return worse.format(rmse=1000 * rmse, trivial=1000 * trivial) if rmse > trivial else None


class Contradictions:
    """Detects labels with a wrong sign, unit or component order from the predictions.

    Its sums distinguish them from a poor potential.
    """

    def __init__(self) -> None:
        self._energies, self._forces = _PairMoments(about_mean=True), _PairMoments()
        self._stresses = 0
        self._predicted_squares = 0.0
        keys = product(_SIGNS, (*_UNITS, _VIRIAL), _ORDERS)
        self._squares: dict[tuple[float, str, str], float] = dict.fromkeys(keys, 0.0)

    def add(self, measured: Measured) -> None:
        """Add a structure."""
        energies = np.array([measured.energy_reference, measured.energy_predicted])
        self._energies.add(*np.split(energies - measured.reference_energy, 2))
        self._forces.add(measured.forces_reference, measured.forces_predicted)
        if measured.stress is None:
            return
        label, predicted, volume = measured.stress
        self._stresses += 1
        self._predicted_squares += float(predicted @ predicted)
        factors = {**_UNITS, _VIRIAL: 1 / volume}
        for sign, unit, order in self._squares:
            error = predicted - sign * factors[unit] * label[list(_ORDERS[order])]
            self._squares[sign, unit, order] += float(error @ error)

    def warnings(self, side: str) -> Iterator[str]:
        """Yield a warning for each contradiction between labels and predictions."""
        correlated = f"on the {side} set their correlation with the labels is {{correlation:.2f}}"
        error = f"on the {side} set their RMSE is {{rmse:.4g}}"
        found = (
            self._forces.warning(
                1,
                _SMALL_FORCES,
                f"PREDICTED FORCES HAVE THE OPPOSITE SIGN: {correlated}; the data may hold "
                "gradients instead of forces",
                f"PREDICTED FORCES ARE WORSE THAN ZERO: {error} meV/Å, that of predicting no force "
                "at all {trivial:.4g}; do not use this potential before you know why",
            ),
            self._energies.warning(
                _FEWEST_ENERGIES,
                _SMALL_ENERGIES,
                f"PREDICTED ENERGIES ARE ANTICORRELATED: {correlated}; {_CONTRADICTORY}",
                f"PREDICTED ENERGIES ARE WORSE THAN THEIR MEAN: {error} meV/atom, that of always "
                f"predicting the mean {{trivial:.4g}}; {_CONTRADICTORY}",
            ),
            self._of_stresses(side),
        )
        yield from filter(None, found)

    def _of_stresses(self, side: str) -> str | None:
        if not self._stresses:
            return None
        as_given = self._squares[1.0, "eV/Å³", _VOIGT]
        best = min(self._squares, key=lambda key: self._squares[key])
        found = self._squares[best]
        if found > _FAR_BETTER * min(as_given, self._predicted_squares):
            return None
        sign, unit, order = best
        conventions = [
            _SIGNS[sign],
            "" if unit == "eV/Å³" else f"the unit {unit}",
            "" if order == _VOIGT else f"the order {order}",
        ]
        rmse, better = (
            math.sqrt(squares / (6 * self._stresses)) / GPa for squares in (as_given, found)
        )
        return (
            f"STRESSES OF THE DATA SEEM TO HAVE {' AND '.join(filter(None, conventions))}: read "
            f"like this, their RMSE on the {side} set is {better:.3g} GPa instead of {rmse:.3g}; "
            f"ASE's are in eV/Å³, positive under tension, in the order {_VOIGT}"
        )
