"""Accepted but suspicious labels: zeroed, huge and unbalanced forces, charged cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlip_job.dataset.periodicity import neighbours
from mlip_job.dataset.row import name_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.dataset.row import BoolArray, FloatArray
    from mlip_job.dataset.structures import Structures

HUGE_FORCE = 100.0
"""eV/Å. Larger forces come from coinciding atoms or an unconverged calculation."""

NET_FORCE = 0.01
"""eV/Å per atom. DFT leaves at most a few meV/Å."""

_NOT_RELAXED = 0.05
"""eV/Å. If all forces are smaller and rounded, some may be zero by rounding."""

_DIGIT = 1e-4
"""eV/Å. Last digit of rounded forces."""

_NEAR = 5.0
"""Å. Radius of the environment of an atom that is examined."""

_LOPSIDED = 0.002
"""Fraction of the maximum asymmetry of an environment; positions are rounded."""


def have_zeroed_forces(structures: Structures, cutoff: float) -> tuple[BoolArray, BoolArray]:
    """Return in which structures some, and in which all, forces are zero without symmetry.

    ``Atoms.get_forces()`` returns such for fixed atoms, or along fixed directions; zeros for all
    atoms stand for missing forces. The force on an atom vanishes by symmetry only where its
    neighbours are on all sides alike.

    Parameters
    ----------
    structures
        Periodic in all directions or in none.
    cutoff
        Å, of the potential: forces don't reach further.
    """
    zero = structures.forces == 0
    some, every = (np.zeros(len(structures), dtype=np.bool_) for _ in range(2))
    if not zero.any():
        return some, every
    starts = structures.starts[:-1]
    largest = np.maximum.reduceat(np.abs(structures.forces).max(axis=1), starts)
    suspect = np.logical_or.reduceat(zero.any(axis=1), starts) & (structures.counts > 1)
    for index in np.flatnonzero(suspect).tolist():
        atoms = slice(structures.starts[index], structures.starts[index + 1])
        rounded = _are_rounded(structures.forces[atoms])
        if 0 < largest[index] <= _NOT_RELAXED and rounded:
            continue
        lopsided = _lopsidedness(structures, index, min(cutoff, _NEAR))
        whole = zero[atoms].all(axis=1) & (np.linalg.norm(lopsided, axis=1) > _LOPSIDED)
        components = zero[atoms] & (np.abs(lopsided) > _LOPSIDED)
        (every if largest[index] == 0 else some)[index] = bool(
            whole.any() or (components.any() and not rounded)
        )
    return some, every


def have_net_forces(structures: Structures) -> BoolArray:
    """Return in which structures the net force exceeds `NET_FORCE` per atom."""
    sums = np.add.reduceat(structures.forces, structures.starts[:-1])
    net: BoolArray = np.linalg.norm(sums, axis=1) > NET_FORCE * structures.counts
    return net


def _are_rounded(forces: FloatArray) -> bool:
    """Return whether forces have so few digits that small ones may be rounded to zero."""
    scaled = forces / _DIGIT
    return bool((np.abs(scaled - np.rint(scaled)) < 1e-6).all())  # noqa: PLR2004 - of a digit


def _lopsidedness(structures: Structures, index: int, reach: float) -> FloatArray:
    """Return the asymmetry of each atom's environment, as vectors of length 0 to 1.

    It is a weighted mean of the directions to them, shape (atoms, 3). The weight falls to zero at
    `reach` and tells elements apart, so that the mean vanishes wherever the force has to.
    """
    row = structures.row(index)
    first, second, vectors = neighbours(row, reach)
    distances = np.linalg.norm(vectors, axis=1)
    weights = (1 - distances / reach) ** 2 * row.numbers[second]
    total = np.bincount(first, weights, minlength=len(row.numbers))
    directions = vectors * (weights / distances)[:, None]
    sums = [np.bincount(first, part, minlength=len(row.numbers)) for part in directions.T]
    lopsided: FloatArray = np.transpose(sums) / np.where(total > 0, total, 1.0)[:, None]
    return lopsided


def have_huge_forces(structures: Structures) -> BoolArray:
    """Return in which structures some atom has a force above `HUGE_FORCE`."""
    lengths = np.linalg.norm(structures.forces, axis=1)
    huge: BoolArray = np.maximum.reduceat(lengths, structures.starts[:-1]) > HUGE_FORCE
    return huge


def note_zeroed_forces(rows: Sequence[int]) -> str:
    """Return the note on rows with zeroed forces."""
    return (
        f"forces of exactly zero, which symmetry does not explain, on some atoms ({len(rows)}: "
        f"{name_rows(rows)}): those of fixed atoms (FixAtoms)? Energies and forces contradict each "
        "other there; store the forces of atoms.get_forces(apply_constraint=False) in a "
        "SinglePointCalculator, or deselect the rows"
    )


def note_missing_forces(rows: Sequence[int]) -> str:
    """Return the note on rows whose forces are all zero."""
    return (
        f"forces of exactly zero on all atoms, which symmetry does not explain ({len(rows)}: "
        f"{name_rows(rows)}): missing forces stored as zeros? The fit takes these structures for "
        "equilibria; store the calculated forces in a SinglePointCalculator, or deselect the rows"
    )


def note_net_forces(rows: Sequence[int]) -> str:
    """Return the note on rows with a net force."""
    return (
        f"forces that add up to more than {NET_FORCE:g} eV/Å per atom ({len(rows)}: "
        f"{name_rows(rows)}), which no potential can give: forces of fixed atoms set to zero, a "
        "drift that was not removed, an external field, or forces of another structure? Correct "
        "or deselect the rows; another training.energy_weight or force_weight is no remedy"
    )


def note_charged_cells(charges: Mapping[int, float], periodic: int) -> str | None:
    """Return a note if periodic cells of different charge are mixed.

    `charges` has the charge (e) of each charged row among the `periodic` ones.
    """
    kinds = {round(charge, 3) for charge in charges.values()}
    neutral = periodic - len(charges)
    if not charges or (neutral == 0 and len(kinds) == 1):
        return None
    rows = sorted(charges)
    others = f"together with {neutral} neutral ones" if neutral else "of different charges"
    return (
        f"charged periodic cells ({len(rows)}: {name_rows(rows)}) {others}: their energies hold "
        "that of a compensating background and depend on the size of the cell, which a potential "
        "of short range can't fit; correct the energies, or select rows of one charge"
    )


def note_huge_forces(rows: Sequence[int], largest: float) -> str:
    """Return the note on rows with huge forces; `largest` is in eV/Å."""
    return (
        f"forces above {HUGE_FORCE:g} eV/Å, up to {largest:.4g} ({len(rows)}: {name_rows(rows)}): "
        "such structures are hardly right and dominate the fit; dataset.max_force, for example "
        f"{HUGE_FORCE / 2:g}, leaves them out"
    )
