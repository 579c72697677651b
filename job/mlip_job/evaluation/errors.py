"""How far a potential is from DFT on one side of a dataset."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np
from ase.units import GPa

from mlip_job.evaluation.contradictions import Contradictions
from mlip_job.evaluation.results import ConfigTypeErrors, SetEvaluation, WorstStructure
from mlip_job.evaluation.tally import ErrorTally, PairSample, grade_statistics

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from mlip_job.dataset.row import FloatArray
    from mlip_job.evaluation.measured import Measured
    from mlip_job.evaluation.potential import Pair

SAMPLE_SIZE = 1000
"""Pairs of values in a parity plot."""

WORST = 10
"""Structures that are named."""


@dataclass
class PartTally:
    """Errors of some of the structures of a side, in meV/atom and meV/Å."""

    structures: int = 0
    energy: ErrorTally = field(default_factory=ErrorTally)
    force: ErrorTally = field(default_factory=ErrorTally)

    def add(self, energy: FloatArray, force: FloatArray) -> None:
        """Add a structure."""
        self.structures += 1
        self.energy.add(energy)
        self.force.add(force)


class SetTally:
    """Collects what was measured on one side, in meV/atom, meV/Å and GPa.

    Parameters
    ----------
    seed
        Of the samples for parity plots.
    apart
        Rows whose errors are told apart from the rest.

    Attributes
    ----------
    structures, atoms
        Numbers.
    energy, force
        Errors of all.
    apart, rest
        Errors of the rows that are told apart, and of the others; empty where there are none.
    shortest
        Shortest distance of each pair of elements, Å.
    conversion
        How many structures the artefact and what it was converted from were held against each other
        for, and how far they were apart at most (eV/atom, eV/Å).
    contradictions
        What tells labels that mean something else from errors.
    """

    def __init__(self, seed: int = 0, apart: Collection[int] = ()) -> None:
        self.structures = 0
        self.atoms = 0
        self.apart, self.rest = PartTally(), PartTally()
        self._apart = apart
        self.energy = ErrorTally()
        self.force = ErrorTally()
        self.shortest: dict[Pair, float] = {}
        self.conversion = (0, 0.0, 0.0)
        self.contradictions = Contradictions()
        self._stress = ErrorTally()
        self._per_element: defaultdict[str, ErrorTally] = defaultdict(ErrorTally)
        self._per_type: defaultdict[str, PartTally] = defaultdict(PartTally)
        self._energies = PairSample(SAMPLE_SIZE, seed)
        self._forces = PairSample(SAMPLE_SIZE, seed)
        self._grades: list[float] = []
        self._worst_energies: list[tuple[float, int, WorstStructure]] = []
        self._worst_forces: list[tuple[float, int, WorstStructure]] = []

    @property
    def elements(self) -> frozenset[str]:
        """Those whose forces were measured."""
        return frozenset(self._per_element)

    def add_all(self, structures: Iterable[Measured]) -> None:
        """Add structures."""
        for measured in structures:
            self.add(measured)

    def add(self, measured: Measured) -> None:
        """Add one structure."""
        self.structures += 1
        self.atoms += len(measured.symbols)
        energy = 1000 * np.array([measured.energy_predicted - measured.energy_reference])
        force = 1000 * (measured.forces_predicted - measured.forces_reference)
        self.energy.add(energy)
        self.force.add(force)
        self.contradictions.add(measured)
        if measured.stress is not None:
            reference, predicted, _ = measured.stress
            self._stress.add((predicted - reference) / GPa)
        for element in np.unique(measured.symbols):
            self._per_element[str(element)].add(force[measured.symbols == element])
        self._per_type[measured.config_type or ""].add(energy, force)
        if self._apart:
            part = self.apart if measured.row_id in self._apart else self.rest
            part.add(energy, force)
        self._energies.add(
            np.array([measured.energy_reference]), np.array([measured.energy_predicted])
        )
        self._forces.add(measured.forces_reference, measured.forces_predicted)
        self._note_extremes(measured, float(energy[0]), float(np.abs(force).max()))

    def _note_extremes(self, measured: Measured, energy_error: float, force_error: float) -> None:
        for pair, distance in measured.shortest.items():
            self.shortest[pair] = min(distance, self.shortest.get(pair, distance))
        if measured.conversion is not None:
            count, energy, force = self.conversion
            self.conversion = (
                count + 1,
                max(energy, measured.conversion[0]),
                max(force, measured.conversion[1]),
            )
        if measured.grade is not None:
            self._grades.append(measured.grade)
        structure = WorstStructure(
            row_id=measured.row_id,
            formula=measured.formula,
            config_type=measured.config_type,
            energy_error_mev_per_atom=energy_error,
            max_force_error_mev_per_angstrom=force_error,
            extrapolation_grade=measured.grade,
        )
        # Of equal errors the one with the lower row id counts as worse, whatever the order.
        _keep(self._worst_energies, (abs(energy_error), -measured.row_id, structure))
        _keep(self._worst_forces, (force_error, -measured.row_id, structure))

    def result(self) -> SetEvaluation:
        """Return the figures."""
        return SetEvaluation(
            structures=self.structures,
            atoms=self.atoms,
            energy_mev_per_atom=self.energy.statistics(),
            force_mev_per_angstrom=self.force.statistics(),
            stress_gpa=self._stress.statistics() if self._stress.count else None,
            force_per_element_mev_per_angstrom={
                element: tally.statistics() for element, tally in sorted(self._per_element.items())
            },
            per_config_type={
                name: ConfigTypeErrors(
                    structures=tally.structures,
                    energy_mev_per_atom=tally.energy.statistics(),
                    force_mev_per_angstrom=tally.force.statistics(),
                )
                for name, tally in sorted(self._per_type.items())
            },
            energy_error_histogram_mev_per_atom=self.energy.histogram(),
            force_error_histogram_mev_per_angstrom=self.force.histogram(),
            energy_parity_ev_per_atom=self._energies.parity(),
            force_parity_ev_per_angstrom=self._forces.parity(),
            worst=tuple(self._worst()),
            extrapolation_grade=grade_statistics(np.array(self._grades)) if self._grades else None,
        )

    def _worst(self) -> Iterable[WorstStructure]:
        """Return the worst by energy and by force in turns, each structure once."""
        by_energy = (s for *_, s in sorted(self._worst_energies, key=lambda w: w[:2], reverse=True))
        by_force = (s for *_, s in sorted(self._worst_forces, key=lambda w: w[:2], reverse=True))
        in_turns = chain.from_iterable(zip_longest(by_energy, by_force))
        found = {structure.row_id: structure for structure in in_turns if structure is not None}
        return list(found.values())[:WORST]


def _keep(
    heap: list[tuple[float, int, WorstStructure]], entry: tuple[float, int, WorstStructure]
) -> None:
    """Keep the largest entries; row ids are unique, so structures are never compared."""
    if len(heap) < WORST:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)
