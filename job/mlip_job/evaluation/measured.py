"""What a potential says of labelled structures, beside what DFT does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip_job.dataset.xyz import parse
from mlip_job.evaluation.lowest import LowestStructures
from mlip_job.evaluation.potential import Potential

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mlip_job.dataset.row import FloatArray
    from mlip_job.dataset.xyz import Labelled
    from mlip_job.evaluation.potential import Pair


@dataclass(frozen=True)
class Models:
    """What a structure is put to.

    Attributes
    ----------
    artefact
        The potential to be measured.
    reference_energies
        eV per atom of each element, that its energies lack.
    basis
        The potential that the artefact was converted from, to hold against it.
    active_set
        Of `basis`, for extrapolation grades.
    """

    artefact: Path
    reference_energies: Mapping[str, float]
    basis: Path | None = None
    active_set: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A structure, what DFT says of it, and what the potential does.

    Attributes
    ----------
    row_id, formula, config_type, symbols
        Which structure, and the element of each atom.
    energy_reference, energy_predicted
        eV/atom, reference energies included.
    forces_reference, forces_predicted
        eV/Å.
    stress
        The reference, the prediction (eV/Å³) and the volume (Å³), where the structure is periodic
        and DFT gave its stress.
    shortest
        Shortest distance of each pair of elements, Å.
    conversion
        How far artefact and basis are apart: eV/atom, and the largest force component in eV/Å.
    grade
        Largest extrapolation grade of its atoms.
    reference_energy
        eV/atom, of its atoms; both energies hold it.
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
    """One structure to measure; `doubly` with the basis too."""

    block: str
    doubly: bool


@dataclass
class Batch:
    """What became of some tasks, in their order."""

    measured: list[Measured] = field(default_factory=list)
    lowest: LowestStructures = field(default_factory=LowestStructures)


class Measurer:
    """Puts structures to models that are loaded once.

    Parameters
    ----------
    models
        What to load.

    Raises
    ------
    TrainingError
        If one of them can't be loaded.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._artefact = Potential(models.artefact)
        self._basis = Potential(models.basis, models.active_set) if models.basis else None

    def measure(self, tasks: Iterable[Task]) -> Batch:
        """Measure structures.

        Raises
        ------
        TrainingError
            If an answer holds NaN or infinity.
        """
        batch = Batch(lowest=LowestStructures(self._artefact.cutoff))
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
