"""Energy over volume, which has to have a minimum for a crystal."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from ase.eos import EquationOfState
from ase.units import GPa

from mlip_job.evaluation.lowest import vacuum_width
from mlip_job.evaluation.results import EnergyVolumeCheck

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.dataset.row import FloatArray
    from mlip_job.evaluation.lowest import LowestStructures, Stable
    from mlip_job.evaluation.potential import Potential

# Relative to the structure's own, which need not be relaxed; the fit takes 10 % around the minimum.
_VOLUMES = np.linspace(0.76, 1.36, 31)
_FITTED_EACH_SIDE = 5
_EQUATION = "birchmurnaghan"
"""F. Birch, Phys. Rev. 71, 809 (1947), of third order, as `ase.eos` has it."""


def check_energy_volume(
    potential: Potential, lowest: LowestStructures, reference_energies: Mapping[str, float]
) -> Iterator[EnergyVolumeCheck]:
    """Yield the curve of the most stable crystal of each element that the data holds."""
    for element in potential.elements:
        crystal = lowest.pure(element)
        if crystal is None:
            yield _skipped(element, f"the data holds no crystal of {element} alone")
        elif vacuum_width(crystal.atoms) > potential.cutoff:
            message = f"the most stable structure of {element}, {crystal}, has a vacuum"
            yield _skipped(element, message)
        else:
            yield _check(potential, element, crystal, reference_energies[element])


def _check(
    potential: Potential, element: str, crystal: Stable, reference_energy: float
) -> EnergyVolumeCheck:
    atoms = crystal.atoms
    volumes, energies = [], []
    for relative in _VOLUMES:
        scaled = atoms.copy()
        scaled.set_cell(atoms.cell * relative ** (1 / 3), scale_atoms=True)
        answer = potential.ask(scaled, f"{crystal} at {relative:.2f} of its volume")
        volumes.append(scaled.get_volume() / len(atoms))
        energies.append(answer.energy / len(atoms) + reference_energy)
    minimum = _fit(np.array(volumes), np.array(energies))
    if minimum is None:
        message = f"{element} ({crystal}) has no minimum from 76 to 136 % of its volume"
    else:
        volume, modulus = minimum
        message = f"{element} ({crystal}): {volume:.2f} Å³ per atom, bulk modulus {modulus:.0f} GPa"
    return EnergyVolumeCheck(
        verdict="failed" if minimum is None else "passed",
        message=message,
        element=element,
        structure=str(crystal),
        volumes_angstrom3_per_atom=tuple(volumes),
        energies_ev_per_atom=tuple(energies),
        minimum_angstrom3_per_atom=minimum[0] if minimum else None,
        bulk_modulus_gpa=minimum[1] if minimum else None,
    )


def _fit(volumes: FloatArray, energies: FloatArray) -> tuple[float, float] | None:
    """Return volume and bulk modulus (GPa) at the minimum, or None where the curve has none."""
    lowest = _downhill(energies, int(np.abs(_VOLUMES - 1).argmin()))
    if lowest in (0, len(energies) - 1):
        return None
    near = slice(max(0, lowest - _FITTED_EACH_SIDE), lowest + _FITTED_EACH_SIDE + 1)
    volumes, energies = volumes[near], energies[near]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a poor fit shows in what is checked below
            volume, _, modulus = EquationOfState(volumes, energies, eos=_EQUATION).fit(warn=False)
    except (RuntimeError, ValueError):  # scipy finds no parameters
        return None
    if not (volumes[0] < volume < volumes[-1] and modulus > 0):
        return None
    return float(volume), float(modulus / GPa)


def _downhill(energies: FloatArray, start: int) -> int:
    """Return the local minimum that a structure would relax into."""
    while True:
        neighbours = range(max(0, start - 1), min(len(energies), start + 2))
        lower = min(neighbours, key=lambda index: energies[index])
        if energies[lower] >= energies[start]:
            return start
        start = lower


def _skipped(element: str, message: str) -> EnergyVolumeCheck:
    return EnergyVolumeCheck(
        verdict="skipped",
        message=message,
        element=element,
        structure="",
        volumes_angstrom3_per_atom=(),
        energies_ev_per_atom=(),
        minimum_angstrom3_per_atom=None,
        bulk_modulus_gpa=None,
    )
