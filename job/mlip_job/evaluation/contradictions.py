"""Detect labels with a wrong sign, unit or component order from the predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from ase.units import GPa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.dataset.rows import FloatArray
    from mlip_job.evaluation.measure import Measured

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


@dataclass
class PairMoments:
    """Sums over pairs of a label and its prediction."""

    count: int = 0
    sums: FloatArray = field(default_factory=lambda: np.zeros(2))
    products: FloatArray = field(default_factory=lambda: np.zeros((2, 2)))

    def add(self, label: FloatArray, predicted: FloatArray) -> None:
        """Add pairs."""
        pairs = np.stack([label.ravel(), predicted.ravel()])
        self.count += pairs.shape[1]
        self.sums = self.sums + pairs.sum(axis=1)
        self.products = self.products + pairs @ pairs.T

    @property
    def error(self) -> float:
        """RMSE."""
        (label, both), (_, predicted) = self.products / self.count
        return math.sqrt(max(0.0, label - 2 * both + predicted))

    @property
    def size(self) -> float:
        """Root mean square of the labels: the error of predicting zero."""
        return math.sqrt(self.products[0, 0] / self.count)

    @property
    def spread(self) -> float:
        """Standard deviation of the labels: the error of predicting their mean."""
        return math.sqrt(max(0.0, self._covariance()[0, 0]))

    @property
    def cosine(self) -> float:
        """Cosine similarity of labels and predictions: a correlation about zero, from -1 to 1."""
        size = math.sqrt(self.products[0, 0] * self.products[1, 1])
        return float(self.products[0, 1] / size) if size else 0.0

    @property
    def correlation(self) -> float:
        """Pearson correlation."""
        covariance = self._covariance()
        size = math.sqrt(covariance[0, 0] * covariance[1, 1])
        return float(covariance[0, 1] / size) if size else 0.0

    def is_opposite(self, correlation: float) -> bool:
        """Tell whether the correlation of `count` pairs is significantly negative."""
        return correlation < -max(_OPPOSITE, _CHANCE / math.sqrt(self.count))

    def _covariance(self) -> FloatArray:
        means = self.sums / self.count
        covariance: FloatArray = self.products / self.count - np.outer(means, means)
        return covariance


class Contradictions:
    """Collects sums that distinguish wrong labels from a poor potential."""

    def __init__(self) -> None:
        self._energies = PairMoments()
        self._forces = PairMoments()
        self._stresses = 0
        self._predicted_squares = 0.0
        self._squares: dict[tuple[float, str, str], float] = {
            (sign, unit, order): 0.0
            for sign in _SIGNS
            for unit in (*_UNITS, _VIRIAL)
            for order in _ORDERS
        }

    def add(self, measured: Measured) -> None:
        """Add a structure."""
        offset = measured.reference_energy
        self._energies.add(
            np.array([measured.energy_reference - offset]),
            np.array([measured.energy_predicted - offset]),
        )
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
        yield from self._of_forces(side)
        yield from self._of_energies(side)
        yield from self._of_stresses(side)

    def _of_forces(self, side: str) -> Iterator[str]:
        forces = self._forces
        if not forces.count or forces.size < _SMALL_FORCES:
            return
        if forces.is_opposite(forces.cosine):
            yield (
                f"PREDICTED FORCES POINT THE OTHER WAY: on the {side} set their correlation with "
                f"the data's is {forces.cosine:.2f}; the data may hold gradients instead of forces"
            )
        elif forces.error > forces.size:
            yield (
                f"PREDICTED FORCES ARE WORSE THAN ZERO: on the {side} set their RMSE is "
                f"{1000 * forces.error:.4g} meV/Å, that of predicting no force at all "
                f"{1000 * forces.size:.4g}; do not use this potential before you know why"
            )

    def _of_energies(self, side: str) -> Iterator[str]:
        energies = self._energies
        if energies.count < _FEWEST_ENERGIES or energies.spread < _SMALL_ENERGIES:
            return
        if energies.is_opposite(energies.correlation):
            yield (
                f"PREDICTED ENERGIES GO THE OTHER WAY: on the {side} set their correlation with "
                f"the data's is {energies.correlation:.2f}; the data's energies and forces may "
                "contradict each other"
            )
        elif energies.error > energies.spread:
            yield (
                f"PREDICTED ENERGIES ARE WORSE THAN THEIR MEAN: on the {side} set their RMSE is "
                f"{1000 * energies.error:.4g} meV/atom, that of always predicting the mean "
                f"{1000 * energies.spread:.4g}; the data's energies and forces may contradict each "
                "other"
            )

    def _of_stresses(self, side: str) -> Iterator[str]:
        if not self._stresses:
            return
        as_given = self._squares[1.0, "eV/Å³", _VOIGT]
        best = min(self._squares, key=lambda key: self._squares[key])
        found = self._squares[best]
        if found > _FAR_BETTER * min(as_given, self._predicted_squares):
            return
        sign, unit, order = best
        meant = [
            _SIGNS[sign],
            "" if unit == "eV/Å³" else f"the unit {unit}",
            "" if order == _VOIGT else f"the order {order}",
        ]
        rmse, better = (
            math.sqrt(squares / (6 * self._stresses)) / GPa for squares in (as_given, found)
        )
        yield (
            f"STRESSES OF THE DATA SEEM TO HAVE {' AND '.join(m for m in meant if m)}: so read "
            f"their RMSE on the {side} set is {better:.3g} GPa instead of {rmse:.3g}; ASE's are in "
            f"eV/Å³, positive under tension, in the order {_VOIGT}"
        )
