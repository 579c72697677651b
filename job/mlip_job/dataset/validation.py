"""Accept or reject rows, with reasons.

`examine` has the rules for one row. `have_sound_geometry` and `have_labels` apply those that need
no distances to many structures at once: what they accept, `examine` accepts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from ase.neighborlist import primitive_neighbor_list

from mlip_job.dataset.geometry import complete_cells
from mlip_job.dataset.rows import name_rows
from mlip_job.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlip_job.dataset.collect import Collected
    from mlip_job.dataset.entries import Entries
    from mlip_job.dataset.references import ReferenceEnergies
    from mlip_job.dataset.rows import BoolArray, FloatArray, StructureRow, Structures
    from mlip_job.dataset.split import Split


COINCIDENCE = 1e-3
"""Å. Atoms closer than this are one atom stored twice: no bond is a hundredth of that short."""

_NEAR = 3.5
"""Å. Nearly every atom of condensed matter has a neighbour this close; looking there first saves
most of the time that a search up to the cutoff takes."""

_ISOLATED = 9.0
"""Å. An atom whose images are so far away has the energy of an isolated one, to a meV or so."""

MIN_VOLUME = 1e-6
"""Å³, of slabs Å² and of wires Å. Periodic cells below it are flat."""

MAX_LENGTH = 1e9
"""Å. Distances of atoms that are further out are lost in rounding."""


VANISHING_FORCE = 1e-3
"""eV/Å. DFT leaves so much of a force that vanishes by symmetry."""


class Rejection(StrEnum):
    """Reason to reject a row; the value is shown to the user."""

    UNREADABLE = "values can't be decoded (an array of the wrong size, or JSON nested too deep)"
    SINGLE_PRECISION = "forces in single precision (float32): store them as float64"
    NO_ATOMS = "no atoms"
    UNKNOWN_ELEMENT = "atom of no known element"
    BAD_GEOMETRY = "positions or cell not finite, beyond 1e9 Å, or misshapen"
    FLAT_CELL = "periodic cell without volume, or periodic vectors without area or length"
    NO_ENERGY = "no energy"
    BAD_ENERGY = "energy not finite"
    NO_FORCES = "no forces"
    MISSHAPEN_FORCES = "forces misshapen"
    BAD_FORCES = "forces not finite"
    COINCIDING_ATOMS = "atoms at the same place"
    LONELY_ATOM = "atom without a neighbour within the cutoff"
    LARGE_FORCE = "force above max_force"


@dataclass(frozen=True)
class RowRules:
    """Requirements on a row.

    Attributes
    ----------
    cutoff
        Å. Every atom needs a neighbour within it: pacemaker silently drops other structures.
    prefer_free_energy
        Whether to prefer the free energy if a row has one.
    max_force
        eV/Å, or None for no limit.
    """

    cutoff: float
    prefer_free_energy: bool
    max_force: float | None


@dataclass(frozen=True)
class Finding:
    """Result of the validation of a row.

    Attributes
    ----------
    rejection
        Why the row is rejected, or None.
    is_reference
        Whether the row is an isolated atom: it gives a reference energy, and is not trained on.
    energy
        eV, the energy to train on; NaN in a rejected row.
    is_free_energy
        Whether that is the row's free energy.
    max_force
        eV/Å, the largest force on an atom; 0 if the row is not for training.
    min_distance
        Å, the smallest distance of two atoms; infinite if there are none.
    apart_energy
        eV/atom, of a rejected row of one element in which no atom has a neighbour within the
        cutoff: nearly that of an isolated atom.
    """

    rejection: Rejection | None = None
    is_reference: bool = False
    energy: float = float("nan")
    is_free_energy: bool = False
    max_force: float = 0.0
    min_distance: float = float("inf")
    apart_energy: float | None = None


def examine(row: StructureRow, rules: RowRules) -> Finding:
    """Check one row; the first violated rule is its rejection.

    A single atom is a reference atom if it is not periodic, or has no image within twice the cutoff
    (at most 9 Å): a crystal stretched just past the cutoff is not one. It needs an energy but no
    forces: they are zero by symmetry, and many codes don't write them.
    """
    rejection = _geometry_problem(row)
    is_free_energy = rules.prefer_free_energy and row.free_energy is not None
    energy = row.free_energy if is_free_energy else row.energy
    if rejection is None and energy is None:
        rejection = Rejection.NO_ENERGY
    if rejection is not None or energy is None:
        return Finding(rejection)
    if not np.isfinite(energy):
        return Finding(Rejection.BAD_ENERGY)
    has_neighbour, min_distance = _neighbours(row, rules.cutoff)
    if len(row.numbers) == 1 and not has_neighbour.any() and _is_isolated(row, rules.cutoff):
        return Finding(is_reference=True, energy=energy, is_free_energy=is_free_energy)
    rejection = _bond_problem(has_neighbour, min_distance) or _forces_problem(row, rules.max_force)
    if rejection is not None:
        apart = len(set(row.numbers.tolist())) == 1 and not has_neighbour.any()
        return Finding(rejection, apart_energy=energy / len(row.numbers) if apart else None)
    return Finding(
        energy=energy,
        is_free_energy=is_free_energy,
        max_force=_largest(row.forces),
        min_distance=min_distance,
    )


def examine_geometry(row: StructureRow, cutoff: float) -> Rejection | None:
    """Check a row except for its labels; return the reason to reject it, or None.

    An atom without a neighbour within `cutoff` (Å) is a reason, even in a structure of one atom.
    """
    return _geometry_problem(row) or _bond_problem(*_neighbours(row, cutoff))


def _geometry_problem(row: StructureRow) -> Rejection | None:
    if len(row.numbers) == 0:
        return Rejection.NO_ATOMS
    if row.numbers.min() < 1 or row.numbers.max() >= len(chemical_symbols):
        return Rejection.UNKNOWN_ELEMENT
    in_bounds = all((np.abs(lengths) < MAX_LENGTH).all() for lengths in (row.positions, row.cell))
    if row.positions.shape != (len(row.numbers), 3) or not in_bounds:
        return Rejection.BAD_GEOMETRY
    if abs(np.linalg.det(_cell(row))) < MIN_VOLUME:
        return Rejection.FLAT_CELL
    return None


def _cell(row: StructureRow) -> FloatArray:
    """Return the cell with unit vectors in the directions without periodicity."""
    cell: FloatArray = complete_cells(row.cell[None], row.pbc[None])[0]
    return cell


def _is_isolated(row: StructureRow, cutoff: float) -> bool:
    reach = max(cutoff, min(2 * cutoff, _ISOLATED))
    return not _neighbours(row, reach)[0].any()


def _bond_problem(has_neighbour: BoolArray, min_distance: float) -> Rejection | None:
    if min_distance < COINCIDENCE:
        return Rejection.COINCIDING_ATOMS
    return None if has_neighbour.all() else Rejection.LONELY_ATOM


def _forces_problem(row: StructureRow, limit: float | None) -> Rejection | None:
    if row.forces is None:
        return Rejection.NO_FORCES
    if 2 * row.forces.size == 3 * len(row.numbers):
        return Rejection.SINGLE_PRECISION  # read as half as many numbers of twice the size
    if row.forces.shape != (len(row.numbers), 3):
        return Rejection.MISSHAPEN_FORCES
    if not np.isfinite(row.forces).all():
        return Rejection.BAD_FORCES
    if limit is not None and _largest(row.forces) > limit:
        return Rejection.LARGE_FORCE
    return None


def _largest(forces: FloatArray | None) -> float:
    return 0.0 if forces is None else float(np.linalg.norm(forces, axis=1).max())


def _neighbours(row: StructureRow, cutoff: float) -> tuple[BoolArray, float]:
    """Return which atoms have a neighbour within the cutoff, and the smallest distance (Å)."""
    cell = _cell(row)
    has_neighbour = np.zeros(len(row.numbers), dtype=np.bool_)
    min_distance = float("inf")
    for reach in (min(_NEAR, cutoff), cutoff):
        indices, distances = primitive_neighbor_list("id", row.pbc, cell, row.positions, reach)
        has_neighbour[indices] = True
        min_distance = min(min_distance, float(distances.min(initial=np.inf)))
        if has_neighbour.all():
            break
    return has_neighbour, min_distance


def choose_energies(structures: Structures, rules: RowRules) -> tuple[FloatArray, BoolArray]:
    """Return the energies to train on (eV, NaN for none), and which of them are free energies."""
    is_free = structures.has_free_energy & rules.prefer_free_energy
    energies = np.where(structures.has_energy, structures.energies, np.nan)
    return np.where(is_free, structures.free_energies, energies), is_free


def have_sound_geometry(structures: Structures) -> BoolArray:
    """Return which have known elements, finite positions and cells that are not flat."""
    known = (structures.numbers > 0) & (structures.numbers < len(chemical_symbols))
    in_bounds = np.abs(structures.positions) < MAX_LENGTH
    bounded_cell = (np.abs(structures.cells) < MAX_LENGTH).all(axis=(1, 2))
    with np.errstate(all="ignore"):  # of cells that are not finite
        cells = complete_cells(structures.cells, structures.pbc)
        flat = np.abs(np.linalg.det(cells)) < MIN_VOLUME
    sound: BoolArray = bounded_cell & ~flat
    return sound & structures.all_atoms(known) & structures.all_atoms(in_bounds)


def have_labels(structures: Structures, rules: RowRules) -> BoolArray:
    """Return which have an energy and forces to train on."""
    energies, _ = choose_energies(structures, rules)
    labelled = np.isfinite(energies) & structures.all_atoms(np.isfinite(structures.forces))
    if rules.max_force is not None:
        with np.errstate(all="ignore"):  # of forces that are not finite
            within = np.linalg.norm(structures.forces, axis=1) <= rules.max_force
        labelled &= structures.all_atoms(within)
    return labelled


def count_force_components(structures: Structures) -> int:
    """Return the number of nonzero force components.

    In strained or compressed crystals most vanish by symmetry.
    """
    return int(np.count_nonzero(np.abs(structures.forces) > VANISHING_FORCE))


def largest_force(structures: Structures) -> float:
    """Return the length of the largest force on any atom, eV/Å."""
    x, y, z = np.square(structures.forces).T
    return float(np.sqrt((x + y + z).max()))


_SUSPICIOUS = 10.0
"""eV/atom. Energies minus correct reference energies are cohesive energies, which are smaller."""

_ENERGY_RANGE = (-20.0, 250.0)
"""eV/atom. Outside this range pacemaker refits the reference energies after a warning
(``pyace.preparedata.ACEDataset.process_dataset``)."""


def require_few_rejections(collected: Collected, max_fraction: float) -> None:
    """Raise `DataError` if more than `max_fraction` of the rows are rejected, or all are."""
    candidates = collected.selected - len(collected.references)
    reasons = "; ".join(
        f"{reason}: {len(rows)} ({name_rows(rows)})"
        for reason, rows in sorted(collected.rejected.items())
    )
    if collected.rejected_count > max_fraction * candidates:
        elsewhere = note_labels_elsewhere(collected)
        raise DataError(
            f"{collected.rejected_count} of {candidates} rows can't be trained on, more than "
            f"dataset.max_rejected_fraction ({max_fraction:g}) allows: {reasons}"
            + (f"; {elsewhere}" if elsewhere else ""),
            hint="correct them, exclude them with database.select, "
            "or raise dataset.max_rejected_fraction",
        )
    if len(collected.entries) == 0:
        raise DataError(
            f"nothing is left to train on: {len(collected.references)} isolated atoms"
            + (f"; {reasons}" if reasons else ""),
            hint="check database.select and training.cutoff",
        )


def note_labels_elsewhere(collected: Collected) -> str | None:
    """Return a note if rows without energy or forces have them under other names."""
    if not collected.labels_elsewhere:
        return None
    places = ", ".join(collected.labels_elsewhere)
    return (
        f"rows without energy or forces seem to hold them in {places}, "
        "which are no labels to ASE: store them as results of a SinglePointCalculator "
        '(docs/dataset.md, "Labels under other names", has the script)'
    )


def require_group_key(entries: Entries, group_by: str | None) -> None:
    """Raise `DataError` if no row has the grouping key, which is probably misspelt."""
    if group_by is not None and not entries.groups:
        raise DataError(
            f"no row has the key_value_pair {group_by!r} that dataset.group_by names",
            hint="check its spelling, or set group_by: null",
        )


def require_configured_elements(
    entries: Entries, configured: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the elements of the data, sorted.

    Raises
    ------
    DataError
        If `configured` is a list and the data has other elements: pacemaker ignores atoms of
        elements that its potential lacks, and one that the data lacks shifts its ZBL pairs.
    """
    found = entries.elements()
    if isinstance(configured, str):
        return found
    for element in found:
        if element not in configured:
            raise DataError(
                f"the data holds {element} ({name_rows(_rows_with(entries, element))}), "
                "which training.elements lacks",
                hint="add it, set elements: auto, or exclude the rows with database.select",
            )
    absent = [element for element in configured if element not in found]
    if absent:
        examples = "; ".join(f"{e}: {name_rows(_rows_with(entries, e)[:3])}" for e in found)
        raise DataError(
            f"training.elements names {', '.join(absent)}, which no structure to train on holds "
            f"(the data has {examples})",
            hint="take it out, set elements: auto, or select rows that hold it",
        )
    return found


def note_extreme_energies(entries: Entries, corrected: FloatArray) -> str | None:
    """Return a note if energies minus reference energies are far from cohesive energies."""
    values = corrected / entries.atoms
    rows = entries.row_ids[np.abs(values) > _SUSPICIOUS].tolist()
    if not rows:
        return None
    return (
        f"energies less the reference energies are beyond ±{_SUSPICIOUS:g} eV/atom "
        f"({name_rows(rows)}): strongly compressed structures, or wrong reference energies"
    )


def require_elements_in_training(entries: Entries, split: Split, elements: Iterable[str]) -> None:
    """Raise `DataError` if an element occurs in test rows only."""
    trained = entries.elements(split.on("train"))
    for element in elements:
        if element not in trained:
            rows = name_rows(_rows_with(entries, element))
            raise DataError(
                f"{element} occurs only in the test side ({rows})",
                hint=f"provide more structures with {element}, or try another dataset.seed "
                "(with dataset.split_key: put some of them on the train side)",
            )


def require_determined_references(
    entries: Entries, references: ReferenceEnergies, fitted: Mapping[str, float]
) -> None:
    """Raise `DataError` if inherited, undetermined reference energies contradict the data.

    Parameters
    ----------
    entries, references
        The rows and the energies per element.
    fitted
        Least-squares energies of the undetermined elements from the rows, eV; empty if the rows
        don't determine them either.
    """
    undetermined = [e for e, source in references.sources.items() if source == "undetermined"]
    if not (undetermined and fitted):
        return
    values = references.corrected(entries) / entries.atoms
    wrong = entries.row_ids[np.abs(values - np.median(values)) > _SUSPICIOUS].tolist()
    if wrong or abs(float(np.median(values))) > _SUSPICIOUS:
        given = ", ".join(f"{e}: {fitted[e]:.4f}" for e in undetermined)
        raise DataError(
            f"the reference energies of {', '.join(undetermined)} come from a generation whose "
            "compositions could not tell them apart, and these data contradict them: energies "
            f"less the reference energies reach from {values.min():.3f} to {values.max():.3f} "
            f"eV/atom ({name_rows(wrong or entries.row_ids.tolist())})",
            hint=f"set dataset.reference_energies: {{{given}}} (a fit to these rows) and "
            "training.start_from: none, or add isolated atoms to a new family",
        )


def require_fitting_energies(
    entries: Entries, corrected: FloatArray, *, automatic: bool
) -> tuple[float, float]:
    """Return the smallest and largest corrected energy, eV/atom.

    Parameters
    ----------
    entries, corrected
        The rows and their energies minus the reference energies, eV.
    automatic
        Whether these were found in the data; for the hint.

    Raises
    ------
    DataError
        If one is so extreme that pacemaker would replace the reference energies.
    """
    values = corrected / entries.atoms
    smallest, largest = float(values.min()), float(values.max())
    low, high = _ENERGY_RANGE
    extreme = entries.row_ids[~((values >= low) & (values <= high))].tolist()
    if extreme:
        raise DataError(
            f"energies less the reference energies reach from {smallest:.3f} to "
            f"{largest:.3f} eV/atom; pacemaker takes {low:g} to {high:g} ({name_rows(extreme)})",
            hint="check the energies of these rows, and that isolated atoms and the parent "
            "generation were computed with the same settings"
            if automatic
            else "use dataset.reference_energies: auto",
        )
    return smallest, largest


def _rows_with(entries: Entries, element: str) -> list[int]:
    rows: list[int] = entries.row_ids[entries.holding(element)].tolist()
    return rows


def require_convex_hull(entries: Entries, elements: Sequence[str]) -> None:
    """Raise `ConfigError` if the compositions don't span the convex hull that pacemaker needs.

    Compositions on one line or plane, as those of a pseudo-binary oxide, make a flat simplex, on
    which its hull (``pyace.process_df.compute_convexhull_dist``) fails. A single composition needs
    none.
    """
    compositions = entries.count_by_composition()
    numbers = [chemical_symbols.index(element) for element in elements]
    counts = np.array([[dict(c).get(z, 0) for z in numbers] for c in compositions], np.float64)
    fractions = np.unique(counts / counts.sum(axis=1, keepdims=True), axis=0)
    if len(fractions) == 1:
        return
    dimensions = np.linalg.matrix_rank(fractions[1:] - fractions[0], tol=1e-6)
    if dimensions < len(elements) - 1:
        raise ConfigError(
            "training.weighting.energy_based: the compositions of the data span no convex hull: "
            f"the shares of {', '.join(elements)} vary in {dimensions} of {len(elements) - 1} "
            "directions",
            hint="set training.overrides: {fit: {weighting: {energy: cohesive}}}",
        )
