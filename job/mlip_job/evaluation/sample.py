"""A sample of a dataset's side, held in memory, that many potentials are measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.config.training import GroupWeights
from mlip_job.dataset.reading import parse, read_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlip_job.dataset.reading import Labelled
    from mlip_job.dataset.row import FloatArray
    from mlip_job.evaluation.potential import Potential

MOST_ATOMS = 20_000
"""In a sample: seconds to measure, also with a large basis."""

_NEUTRAL = GroupWeights()


@dataclass(frozen=True)
class SampleErrors:
    """What pacemaker's tables say of a set: squares are weighted means, the rest is not weighted.

    Attributes
    ----------
    energy_squares, force_squares
        Weighted mean of (ΔE/n)², eV², and of |ΔF|² over atoms, (eV/Å)².
    energy_rmse, force_rmse, force_mae
        eV/atom; eV/Å, of components.
    """

    energy_squares: float
    force_squares: float
    energy_rmse: float
    force_rmse: float
    force_mae: float


class Sample:
    """Structures spread evenly over a file: every n-th, so that they have about so many atoms.

    Parameters
    ----------
    path
        Of extended XYZ.
    atoms
        How many the file holds.
    reference_energies
        eV per atom of each element, that a potential's energies lack.
    by_group
        Relative weights of config types; others weigh 1.
    most_atoms
        Above so many, not all structures are taken.

    Attributes
    ----------
    structures
        What was taken.
    """

    def __init__(
        self,
        path: Path,
        *,
        atoms: int,
        reference_energies: Mapping[str, float],
        by_group: Mapping[str, GroupWeights] | None = None,
        most_atoms: int = MOST_ATOMS,
    ) -> None:
        stride = sample_stride(atoms, most_atoms)
        blocks = islice(read_blocks(path), 0, None, stride)
        self.structures: list[Labelled] = [parse(block) for block in blocks]
        weights = [(by_group or {}).get(s.config_type or "", _NEUTRAL) for s in self.structures]
        self._energy_weights = _normalised(np.array([w.energy for w in weights]))
        counts = [len(s.atoms) for s in self.structures]
        self._force_weights = _normalised(np.repeat([w.forces for w in weights], counts))
        self._references = [
            sum(reference_energies[symbol] for symbol in s.atoms.symbols) for s in self.structures
        ]

    def measure(self, potential: Potential) -> SampleErrors:
        """Measure a potential.

        Raises
        ------
        TrainingError
            If an answer holds NaN or infinity.
        """
        energies, forces = [], []
        for structure, references in zip(self.structures, self._references, strict=True):
            answer = potential.ask(structure.atoms, f"row {structure.row_id} of the database")
            energies.append((answer.energy + references - structure.energy) / len(structure.atoms))
            forces.append(answer.forces - structure.forces)
        energy, force = np.array(energies), np.concatenate(forces)
        return SampleErrors(
            energy_squares=float(self._energy_weights @ energy**2),
            force_squares=float(self._force_weights @ (force**2).sum(axis=1)),
            energy_rmse=float(np.sqrt(np.mean(energy**2))),
            force_rmse=float(np.sqrt(np.mean(force**2))),
            force_mae=float(np.mean(np.abs(force))),
        )


def sample_stride(atoms: int, most_atoms: int = MOST_ATOMS) -> int:
    """Return n, where every n-th structure of a file is taken; 1 is all of them."""
    return max(1, math.ceil(atoms / most_atoms))


def _normalised(weights: FloatArray) -> FloatArray:
    total = weights.sum()
    return weights / total if total > 0 else weights
