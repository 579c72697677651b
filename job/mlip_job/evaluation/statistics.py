"""Statistics of a stream of errors in constant memory."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import GPa

from mlip_job.evaluation.measure import Contradictions
from mlip_job.evaluation.results import (
    QUANTITIES,
    ConfigTypeErrors,
    GradeStatistics,
    Histogram,
    Parity,
    Percentiles,
    SetEvaluation,
    WorstStructure,
)
from mlip_job.models import Errors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.evaluation.measure import Measured
    from mlip_job.evaluation.potential import Pair

    Counts = np.ndarray[Any, np.dtype[np.int64]]

EXACT_UP_TO = 10_000
"""Up to this number values are stored exactly; more are counted in bins."""

SAMPLE_SIZE = 1000
"""Number of pairs in a parity plot."""

WORST = 10
"""Number of worst structures to list."""

_COMPONENTS = 6  # of a stress

# Bins of equal relative width, 0.2 %: percentiles are accurate to half of it. The middle bin is 0.
_SIZES = np.geomspace(1e-9, 1e12, 24_500)
_EDGES = np.concatenate([-_SIZES[::-1], _SIZES])
_MIDDLES = np.convolve(np.pad(_EDGES, 1, mode="edge"), [0.5, 0.5], mode="valid")

_GRADE_TOLERANCE = 1.01  # of the active set: grades of its own structures are up to 1.01
_HISTOGRAM_BINS = 41  # odd, so that the middle bin is centred at zero
_HISTOGRAM_REACH = 0.99  # fraction of the errors between the outermost edges


class ErrorStream:
    """Errors, added in batches.

    Number, RMSE, MAE and maximum are exact, None without any error. Percentiles (nearest rank) are
    exact up to `EXACT_UP_TO` values, and accurate to 0.1 % beyond.
    """

    def __init__(self) -> None:
        self.count = 0
        self._squares = self._absolute = self._largest = 0.0
        self._kept: list[FloatArray] = []
        self._bins: Counts | None = None

    def add(self, errors: FloatArray) -> None:
        """Add errors of any shape."""
        errors = errors.ravel()
        if errors.size == 0:
            return
        absolute = np.abs(errors)
        self.count += errors.size
        self._squares += float(np.square(errors).sum())
        self._absolute += float(absolute.sum())
        self._largest = max(self._largest, float(absolute.max()))
        self._kept.append(errors)
        if self.count > EXACT_UP_TO:
            numbers = np.searchsorted(_EDGES, np.concatenate(self._kept))
            counts = np.bincount(numbers, minlength=_MIDDLES.size)
            self._bins = counts if self._bins is None else self._bins + counts
            self._kept.clear()

    @property
    def rmse(self) -> float | None:
        """Root mean square of the errors."""
        return math.sqrt(self._squares / self.count) if self.count else None

    @property
    def mae(self) -> float | None:
        """Mean absolute error."""
        return self._absolute / self.count if self.count else None

    @property
    def max(self) -> float | None:
        """Largest absolute error."""
        return self._largest if self.count else None

    def percentiles(self) -> Percentiles:
        """Return percentiles of the absolute errors; requires at least one value."""
        values, counts = self._weighted()
        # The middle of a bin may lie above the largest value in it.
        return _percentiles(np.minimum(np.abs(values), self._largest), counts)

    def histogram(self) -> Histogram:
        """Return counts in equal bins around zero; the outermost include all values beyond."""
        values, counts = self._weighted()
        (reach,) = _at_ranks(np.abs(values), counts, _HISTOGRAM_REACH)
        reach = reach or self._largest or 1.0
        edges = np.linspace(-reach, reach, _HISTOGRAM_BINS + 1)
        shown, _ = np.histogram(np.clip(values, -reach, reach), bins=edges, weights=counts)
        return Histogram(edges=tuple(edges.tolist()), counts=tuple(map(int, shown.tolist())))

    def _weighted(self) -> tuple[FloatArray, Counts]:
        """Return values and their counts."""
        if self._bins is None:
            values = np.concatenate(self._kept)
            return values, np.ones(values.size, dtype=np.int64)
        filled = self._bins > 0
        return _MIDDLES[filled], self._bins[filled]


def _at_ranks(values: FloatArray, counts: Counts, *fractions: float) -> list[float]:
    """Return percentiles by nearest rank."""
    order = np.argsort(values)
    cumulative = np.cumsum(counts[order])
    ranks = [math.ceil(fraction * cumulative[-1]) for fraction in fractions]
    return [float(value) for value in values[order][np.searchsorted(cumulative, ranks)]]


def _percentiles(values: FloatArray, counts: Counts) -> Percentiles:
    p50, p90, p99 = _at_ranks(values, counts, 0.5, 0.9, 0.99)
    return Percentiles(count=int(counts.sum()), p50=p50, p90=p90, p99=p99)


def grade_statistics(grades: FloatArray) -> GradeStatistics:
    """Return the statistics of extrapolation grades, one per structure."""
    return GradeStatistics(
        **dict(_percentiles(grades, np.ones(grades.size, dtype=np.int64))),
        max=float(grades.max()),
        above_one=int((grades > _GRADE_TOLERANCE).sum()),
    )


class PairSample:
    """A random sample of pairs of values; all pairs if they are few.

    The sample depends on the seed and the order of the pairs, not on the batches.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)
        self._seen = 0
        self._rows: FloatArray = np.empty((0, 4))  # a random key, the position, the pair

    def add(self, reference: FloatArray, predicted: FloatArray) -> None:
        """Add pairs."""
        positions = np.arange(self._seen, self._seen + reference.size, dtype=np.float64)
        self._seen += reference.size
        keys = self._random.random(reference.size)
        new = np.column_stack([keys, positions, reference.ravel(), predicted.ravel()])
        rows = np.concatenate([self._rows, new])
        if len(rows) > self._size:
            rows = rows[np.argpartition(rows[:, 0], self._size)[: self._size]]
        self._rows = rows

    def parity(self) -> Parity:
        """Return the sample in the order in which its pairs were added."""
        rows = self._rows[np.argsort(self._rows[:, 1])]
        return Parity(
            reference=tuple(rows[:, 2].tolist()),
            predicted=tuple(rows[:, 3].tolist()),
            sampled_from=self._seen,
        )


@dataclass
class SubsetErrors:
    """Errors of a subset of structures, in meV/atom, meV/Å and GPa."""

    structures: int = 0
    energy: ErrorStream = field(default_factory=ErrorStream)
    force: ErrorStream = field(default_factory=ErrorStream)
    stress: ErrorStream = field(default_factory=ErrorStream)

    def add(self, energy: FloatArray, force: FloatArray, stress: FloatArray | None) -> None:
        """Add a structure."""
        self.structures += 1
        self.energy.add(energy)
        self.force.add(force)
        if stress is not None:
            self.stress.add(stress)

    @property
    def all_have_stress(self) -> bool:
        """Whether the stress of every structure was measured."""
        return self.stress.count == _COMPONENTS * self.structures

    def errors(self) -> Errors:
        """Return RMSE, MAE and largest error of each quantity."""
        return Errors(
            rmse_energy_mev_per_atom=self.energy.rmse,
            rmse_force_mev_per_angstrom=self.force.rmse,
            rmse_stress_gpa=self.stress.rmse,
            mae_energy_mev_per_atom=self.energy.mae,
            mae_force_mev_per_angstrom=self.force.mae,
            mae_stress_gpa=self.stress.mae,
            max_energy_mev_per_atom=self.energy.max,
            max_force_mev_per_angstrom=self.force.max,
            max_stress_gpa=self.stress.max,
        )


class SetErrors:
    """Collects the measurements of one side; `seed` determines the samples for parity plots.

    `all`, `apart` and `rest` are the errors of all rows, of those given as `apart`, and of the
    others; the last two are empty without such rows. `shortest` has the shortest distance of each
    pair of elements, Å. `conversions` has the number of structures compared between artefact and
    basis, and the largest differences (eV/atom, eV/Å).
    """

    def __init__(self, seed: int = 0, apart: Collection[int] = ()) -> None:
        self.all, self.apart, self.rest = SubsetErrors(), SubsetErrors(), SubsetErrors()
        self.atoms = 0
        self.shortest: dict[Pair, float] = {}
        self.conversions = (0, 0.0, 0.0)
        self.contradictions = Contradictions()
        self._apart = apart
        self._per_element: defaultdict[str, SubsetErrors] = defaultdict(SubsetErrors)
        self._per_type: defaultdict[str, SubsetErrors] = defaultdict(SubsetErrors)
        self._energies, self._forces, self._stresses = (
            PairSample(SAMPLE_SIZE, seed) for _ in QUANTITIES
        )
        self._grades: list[float] = []
        self._worst_energies: list[tuple[float, int, WorstStructure]] = []
        self._worst_forces: list[tuple[float, int, WorstStructure]] = []

    @property
    def structures(self) -> int:
        """Number of structures."""
        return self.all.structures

    @property
    def elements(self) -> frozenset[str]:
        """Elements whose forces were measured."""
        return frozenset(self._per_element)

    def add_all(self, structures: Iterable[Measured]) -> None:
        """Add structures."""
        for measured in structures:
            self._add(measured)

    def _add(self, measured: Measured) -> None:
        self.atoms += len(measured.symbols)
        reference = np.array([measured.energy_reference])
        predicted = np.array([measured.energy_predicted])
        energy = 1000 * (predicted - reference)
        force = 1000 * (measured.forces_predicted - measured.forces_reference)
        self._energies.add(reference, predicted)
        self._forces.add(measured.forces_reference, measured.forces_predicted)
        stress = None
        if measured.stress is not None:
            labels, predictions, _ = measured.stress
            stress = (predictions - labels) / GPa
            self._stresses.add(labels / GPa, predictions / GPa)
        self.contradictions.add(measured)
        subsets = [self.all, self._per_type[measured.config_type or ""]]
        if self._apart:
            subsets.append(self.apart if measured.row_id in self._apart else self.rest)
        for subset in subsets:
            subset.add(energy, force, stress)
        for element in np.unique(measured.symbols):
            self._per_element[str(element)].force.add(force[measured.symbols == element])
        for pair, distance in measured.shortest.items():
            self.shortest[pair] = min(distance, self.shortest.get(pair, distance))
        if measured.conversion is not None:
            (count, *largest), (of_energy, of_force) = self.conversions, measured.conversion
            self.conversions = (count + 1, max(largest[0], of_energy), max(largest[1], of_force))
        if measured.grade is not None:
            self._grades.append(measured.grade)
        self._keep_if_worst(measured, float(energy[0]), float(np.abs(force).max()))

    def _keep_if_worst(self, measured: Measured, energy: float, force: float) -> None:
        structure = WorstStructure(
            row_id=measured.row_id,
            formula=measured.formula,
            config_type=measured.config_type,
            energy_error_mev_per_atom=energy,
            max_force_error_mev_per_angstrom=force,
            extrapolation_grade=measured.grade,
        )
        for heap, error in ((self._worst_energies, abs(energy)), (self._worst_forces, force)):
            # Ties are resolved by the lower row id, so that the order of structures does not
            # matter; row ids are unique, so structures are never compared.
            heapq.heappush(heap, (error, -measured.row_id, structure))
            if len(heap) > WORST:
                heapq.heappop(heap)

    def result(self) -> SetEvaluation:
        """Return the figures."""
        energy, force = self.all.energy, self.all.force
        stress = self.all.stress if self.all.stress.count else None
        return SetEvaluation(
            **dict(self.all.errors()),
            structures=self.structures,
            atoms=self.atoms,
            per_element={name: each.errors() for name, each in sorted(self._per_element.items())},
            per_config_type={
                name: ConfigTypeErrors(**dict(each.errors()), structures=each.structures)
                for name, each in sorted(self._per_type.items())
            },
            energy_percentiles_mev_per_atom=energy.percentiles(),
            force_percentiles_mev_per_angstrom=force.percentiles(),
            stress_percentiles_gpa=stress.percentiles() if stress else None,
            energy_error_histogram_mev_per_atom=energy.histogram(),
            force_error_histogram_mev_per_angstrom=force.histogram(),
            stress_error_histogram_gpa=stress.histogram() if stress else None,
            energy_parity_ev_per_atom=self._energies.parity(),
            force_parity_ev_per_angstrom=self._forces.parity(),
            stress_parity_gpa=self._stresses.parity() if stress else None,
            worst=_in_turns(self._worst_energies, self._worst_forces),
            extrapolation_grade=grade_statistics(np.array(self._grades)) if self._grades else None,
        )


def _in_turns(*heaps: Sequence[tuple[float, int, WorstStructure]]) -> tuple[WorstStructure, ...]:
    """Return the worst structures, alternating between the heaps, without duplicates."""
    descending = ((entry[2] for entry in sorted(heap, reverse=True)) for heap in heaps)
    found = {s.row_id: s for s in chain.from_iterable(zip_longest(*descending)) if s is not None}
    return tuple(found.values())[:WORST]
