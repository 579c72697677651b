"""Gracemaker's ``input.yaml`` from a TrainingConfig, and its data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import yaml

from mlip_job.config.training import deep_merge
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from ase import Atoms

    from mlip_job.config import TrainingConfig
    from mlip_job.training.trainer import FitData

    FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

CHECKPOINT_ITERATIONS = 10
"""Iterations between checkpoints; a resumed fit repeats at most as many."""

# What the job itself guarantees; an override would break the guarantee.
_OWNED = ("seed", "cutoff", "data", "potential.preset", "potential.filename", "fit.maxiter")
_COMPONENTS = 3


class Labelled(Protocol):
    """A structure with its labels, in eV and Å; the stress is in Voigt order, or None."""

    @property
    def row_id(self) -> int:
        """Its row in the database."""

    @property
    def atoms(self) -> Atoms:
        """The structure."""

    @property
    def energy(self) -> float:
        """Total energy."""

    @property
    def forces(self) -> FloatArray:
        """Of all atoms, shape (n, 3)."""

    @property
    def stress(self) -> FloatArray | None:
        """As ASE orders and signs it."""


def loss_weights(training: TrainingConfig, stress_weight: float) -> dict[str, float]:
    r"""Return gracemaker's weights for those of a·MSE(E/atom) + b·mean(\|ΔF\|²) + c·MSE(stress).

    Gracemaker minimises the sum of weighted means (`tensorpotential.loss`: ``WeightedSSE…Loss``),
    of forces over components, hence 3b for the mean squared length. The stress (eV/Å³) is a mean
    over the six components.
    """
    return {
        "energy": training.energy_weight,
        "forces": _COMPONENTS * training.force_weight,
        "stress": stress_weight,
    }


def build_input(
    training: TrainingConfig, data: FitData, *, stress_weight: float, remaining: int
) -> dict[str, Any]:
    """Return the content of ``input.yaml``.

    `remaining` iterations are to be done: gracemaker counts from its start. Without a second set
    the last iteration is the result.

    Raises
    ------
    ConfigError
        If an override sets a key that follows from another setting.
    """
    weights = loss_weights(training, stress_weight)
    content: dict[str, Any] = {
        "seed": training.seed,
        "cutoff": training.cutoff,
        # No reference_energy: with one gracemaker ignores the column energy_corrected.
        "data": {
            "filename": _one_or_all(data.train),
            **({"test_filename": _one_or_all(data.second)} if data.second else {}),
        },
        "potential": potential_section(training),
        "fit": {
            "loss": {
                name: {"type": "square", "weight": weight}
                for name, weight in weights.items()
                if weight > 0
            },
            "optimizer": "L-BFGS-B",
            "maxiter": remaining,
            "batch_size": training.batch_size,
            "test_batch_size": training.batch_size,
            "checkpoint_freq": CHECKPOINT_ITERATIONS,
            "jit_compile": False,
            "progressbar": False,
        },
    }
    # The potential section already has its overrides.
    return deep_merge(content, {k: v for k, v in training.overrides.items() if k != "potential"})


def potential_section(training: TrainingConfig) -> dict[str, Any]:
    """Return the ``potential`` section, with overrides.

    Raises
    ------
    ConfigError
        If an override sets a key that follows from another setting.
    """
    _check_overrides(training.overrides)
    section = {"preset": "FS", "kwargs": {}, "scale": True}
    return deep_merge(section, training.overrides.get("potential", {}))


def dump_input(content: Mapping[str, Any]) -> str:
    """Return ``input.yaml`` as text."""
    return yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=100)


def write_frame(
    structures: Iterable[Labelled],
    reference_energies: Mapping[str, float],
    path: Path,
    *,
    stress: bool,
) -> int:
    """Write a data frame for gracemaker; return the number of structures with a stress.

    With `stress` structures without one get the weight 0: gracemaker takes a missing stress of a
    periodic structure for an error.
    """
    rows = [_row(each, reference_energies, with_stress=stress) for each in structures]
    pd.DataFrame(rows).to_pickle(path, compression="gzip")
    return sum(1 for row in rows if row.get("virial_weight"))


def _row(
    structure: Labelled, reference_energies: Mapping[str, float], *, with_stress: bool
) -> dict[str, Any]:
    atoms = structure.atoms
    reference = sum(reference_energies[symbol] for symbol in atoms.symbols)
    row: dict[str, Any] = {
        "name": f"row-{structure.row_id}",
        "ase_atoms": atoms,
        "energy_corrected": structure.energy - reference,
        "forces": structure.forces,
    }
    if with_stress:
        row["stress"] = [0.0] * 6 if structure.stress is None else list(structure.stress)
        row["virial_weight"] = 0.0 if structure.stress is None else 1.0
    return row


def _one_or_all(files: Sequence[str]) -> str | list[str]:
    return files[0] if len(files) == 1 else list(files)


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    for owned in _OWNED:
        value: Any = overrides
        for part in owned.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            raise ConfigError(
                f"training.overrides sets {owned}, which follows from another setting: change that"
            )
