"""Detect labels with a wrong sign, unit or component order from the predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
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
class _PairMoments:
    """Sums over pairs of a label and its prediction."""

    count: int = 0
    sums: FloatArray = field(default_factory=lambda: np.zeros(2))
    products: FloatArray = field(default_factory=lambda: np.zeros((2, 2)))

    def add(self, label: FloatArray, predicted: FloatArray) -> None:
        pairs = np.stack([label.ravel(), predicted.ravel()])
        self.count += pairs.shape[1]
        self.sums = self.sums + pairs.sum(axis=1)
        self.products = self.products + pairs @ pairs.T

    @property
    def rmse(self) -> float:
        (label, both), (_, predicted) = self.products / self.count
        return math.sqrt(max(0.0, label - 2 * both + predicted))

    def baseline(self, *, about_mean: bool) -> float:
        """Return the RMSE of always predicting the mean of the labels, or zero."""
        return math.sqrt(max(0.0, self._second_moments(about_mean)[0, 0]))

    def correlation(self, *, about_mean: bool) -> float:
        """Return the correlation about the means (Pearson's), or about zero."""
        moments = self._second_moments(about_mean)
        size = math.sqrt(moments[0, 0] * moments[1, 1])
        return float(moments[0, 1] / size) if size else 0.0

    def is_opposite(self, *, about_mean: bool) -> bool:
        """Return whether the correlation is significantly negative."""
        limit = max(_OPPOSITE, _CHANCE / math.sqrt(self.count))
        return self.correlation(about_mean=about_mean) < -limit

    def _second_moments(self, about_mean: bool) -> FloatArray:
        means = self.sums / self.count if about_mean else np.zeros(2)
        moments: FloatArray = self.products / self.count - np.outer(means, means)
        return moments


class Contradictions:
    """Collects sums that distinguish wrong labels from a poor potential."""

    def __init__(self) -> None:
        self._energies = _PairMoments()
        self._forces = _PairMoments()
        self._stresses = 0
        self._predicted_squares = 0.0
        keys = product(_SIGNS, (*_UNITS, _VIRIAL), _ORDERS)
        self._squares: dict[tuple[float, str, str], float] = dict.fromkeys(keys, 0.0)

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
        if not forces.count or (zero := forces.baseline(about_mean=False)) < _SMALL_FORCES:
            return
        if forces.is_opposite(about_mean=False):
            yield (
                f"PREDICTED FORCES HAVE THE OPPOSITE SIGN: on the {side} set their correlation "
                f"with the labels is {forces.correlation(about_mean=False):.2f}; the data may hold "
                "gradients instead of forces"
            )
        elif forces.rmse > zero:
            yield (
                f"PREDICTED FORCES ARE WORSE THAN ZERO: on the {side} set their RMSE is "
                f"{1000 * forces.rmse:.4g} meV/Å, that of predicting no force at all "
                f"{1000 * zero:.4g}; do not use this potential before you know why"
            )

    def _of_energies(self, side: str) -> Iterator[str]:
        energies = self._energies
        if energies.count < _FEWEST_ENERGIES:
            return
        if (mean := energies.baseline(about_mean=True)) < _SMALL_ENERGIES:
            return
        if energies.is_opposite(about_mean=True):
            yield (
                f"PREDICTED ENERGIES ARE ANTICORRELATED: on the {side} set their correlation with "
                f"the labels is {energies.correlation(about_mean=True):.2f}; energies and forces "
                "of the data may contradict each other"
            )
        elif energies.rmse > mean:
            yield (
                f"PREDICTED ENERGIES ARE WORSE THAN THEIR MEAN: on the {side} set their RMSE is "
                f"{1000 * energies.rmse:.4g} meV/atom, that of always predicting the mean "
                f"{1000 * mean:.4g}; energies and forces of the data may contradict each other"
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
        conventions = [
            _SIGNS[sign],
            "" if unit == "eV/Å³" else f"the unit {unit}",
            "" if order == _VOIGT else f"the order {order}",
        ]
        rmse, better = (
            math.sqrt(squares / (6 * self._stresses)) / GPa for squares in (as_given, found)
        )
        yield (
            f"STRESSES OF THE DATA SEEM TO HAVE {' AND '.join(filter(None, conventions))}: read "
            f"like this, their RMSE on the {side} set is {better:.3g} GPa instead of {rmse:.3g}; "
            f"ASE's are in eV/Å³, positive under tension, in the order {_VOIGT}"
        )
