"""Summarise a dataset in its record: counts, settings, and notes for the user."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from mlip_job import __version__
from mlip_job.dataset.geometry import VACUUM
from mlip_job.dataset.record import (
    ConfigTypes,
    Counts,
    DatasetRecord,
    ElementCounts,
    EnergyOrigin,
    FileRecord,
    Ranges,
    RejectedRows,
    SideCounts,
    SideNames,
    SplitRecord,
    Versions,
    dataset_id,
)
from mlip_job.dataset.references import note_extreme_energies
from mlip_job.dataset.rows import SIDES, name_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config import DatabaseConfig, DatasetConfig, TrainingConfig
    from mlip_job.dataset.frames import GroupWeighting
    from mlip_job.dataset.references import ReferenceEnergies
    from mlip_job.dataset.rows import Side
    from mlip_job.dataset.split import Split
    from mlip_job.dataset.validation import Collected


_LISTED = 10
"""Config types in a note."""

_FAR_FROM_REFERENCE = 1.0
"""eV/atom."""


@dataclass(frozen=True)
class Outcome:
    """Results of all steps before writing.

    `repeats` is the number of rows that repeat the structure of another; `energy_range` has the
    smallest and the largest corrected energy, eV/atom.
    """

    collected: Collected
    elements: tuple[str, ...]
    repeats: int
    split: Split
    references: ReferenceEnergies
    energy_range: tuple[float, float]
    weighting: GroupWeighting | None


@dataclass(frozen=True)
class Written:
    """The files of a dataset, hashes of the contents of its identity, and force components."""

    contents: dict[str, str]
    force_components: dict[Side, int]
    frames: SideNames
    files: dict[str, FileRecord]


def summarise(
    outcome: Outcome,
    *,
    database: DatabaseConfig,
    dataset: DatasetConfig,
    training: TrainingConfig,
    parent: DatasetRecord | None,
    written: Written,
) -> DatasetRecord:
    """Return the record of a dataset whose other files are written."""
    collected, split, references = outcome.collected, outcome.split, outcome.references
    low, high = outcome.energy_range
    weights = dict(outcome.weighting.by_group) if outcome.weighting else None
    free_energies, entries = collected.free_energies, collected.entries
    atoms = entries.atoms
    return DatasetRecord(
        id=dataset_id(written.contents, references.energies, weights),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        database=collected.database,
        selection=database.select,
        cutoff=training.cutoff,
        elements=outcome.elements,
        counts=Counts(
            selected=collected.selected,
            accepted=len(entries),
            train=split.train,
            test=split.test,
            rejected=collected.rejected_count,
            reference_atoms=len(collected.references),
        ),
        atoms=SideCounts(
            train=int(atoms[split.on("train")].sum()), test=int(atoms[split.on("test")].sum())
        ),
        per_element=_per_element(collected),
        ranges=Ranges(
            min_energy_corrected_ev_per_atom=low,
            max_energy_corrected_ev_per_atom=high,
            max_force_ev_per_angstrom=collected.max_force,
            min_distance_angstrom=collected.min_distance,
        ),
        force_components=collected.force_components,
        partly_periodic=len(collected.partly_periodic),
        config_types=ConfigTypes(
            train=entries.count_config_types(split.on("train")),
            test=entries.count_config_types(split.on("test")),
        ),
        split=SplitRecord(
            seed=dataset.seed,
            test_fraction=training.test_fraction,
            wanted_test=split.wanted_test,
            inherited_train=split.inherited_train,
            inherited_test=split.inherited_test,
            group_by=dataset.group_by,
            key=dataset.split_key,
        ),
        rejections={
            str(reason): RejectedRows(count=len(rows), rows=tuple(rows))
            for reason, rows in sorted(collected.rejected.items())
        },
        reference_energies=references.energies,
        reference_energy_sources=references.sources,
        energy_from=EnergyOrigin(free_energy=free_energies, energy=len(entries) - free_energies),
        weights=weights,
        notes=(
            *_notes(outcome, dataset, training, parent),
            *_untested(outcome, written.force_components),
        ),
        frames=written.frames,
        files=written.files,
        versions=Versions(
            mlip_job=__version__,
            ase=version("ase"),
            numpy=version("numpy"),
            pandas=version("pandas"),
        ),
    )


def _notes(
    outcome: Outcome,
    dataset: DatasetConfig,
    training: TrainingConfig,
    parent: DatasetRecord | None,
) -> Iterator[str]:
    collected, split = outcome.collected, outcome.split
    total = len(collected.entries)
    if collected.slow_because:
        yield f"ASE itself read the rows, which takes longer: {collected.slow_because}"
    without = total - collected.free_energies
    if dataset.energy == "free_energy" and 0 < without < total:
        yield (
            f"{without} of {total} structures have no free energy, unlike the others: their energy "
            "was taken, which is consistent with the forces and with the others' free energy only "
            "where there is no electronic entropy"
        )
    if collected.rejected_count:
        yield f"rows that were rejected: {collected.rejected_count}, see rejections"
    yield from collected.label_notes
    if collected.lost_stresses:
        yield (
            f"stresses that can't be read ({name_rows(collected.lost_stresses)}), in single "
            "precision, of another size or not finite, were left out; these rows are used otherwise"
        )
    if collected.partly_periodic:
        dropped = collected.dropped_stresses
        yield (
            f"{len(collected.partly_periodic)} rows are periodic in one or two directions "
            f"({name_rows(collected.partly_periodic)}): {VACUUM:g} Å of vacuum in the others makes "
            "them periodic in all, which changes no energy of the potential"
        ) + (
            f"; {dropped} stresses of such rows, which depend on the vacuum, were left out"
            if dropped
            else ""
        )
    if outcome.repeats:
        yield f"{outcome.repeats} rows repeat the structure of another row; they share its side"
    if dataset.split_key is not None:
        yield (
            f"the key {dataset.split_key} decides the sides: {split.train} rows train, "
            f"{split.test} test; training.test_fraction and dataset.seed have no effect"
        )
    ungrouped = int(np.count_nonzero(collected.entries.group_codes < 0))
    if dataset.group_by is not None and ungrouped:
        yield f"{ungrouped} rows have no key {dataset.group_by}: each is a group of its own"
    yield from _split_notes(outcome, dataset, training, parent)
    yield from _reference_notes(outcome)
    if outcome.weighting:
        yield (
            "weights per config type, scaled to a mean of 1: energies by "
            f"{outcome.weighting.energy_scale:.6g}, forces by {outcome.weighting.force_scale:.6g}"
        )


def _split_notes(
    outcome: Outcome,
    dataset: DatasetConfig,
    training: TrainingConfig,
    parent: DatasetRecord | None,
) -> Iterator[str]:
    split, fraction = outcome.split, training.test_fraction
    if split.test != split.wanted_test:
        yield (
            f"the test side has {split.test} rows instead of {split.wanted_test}: groups or "
            "equal structures allow no closer count"
        )
    if split.test == 0:
        yield (
            "nothing was held out (training.test_fraction: 0): all errors are those of training "
            "structures, which say little about others"
        )
    if dataset.split_key is not None or parent is None:
        return
    changed = [
        f"{name} ({before:g}, now {now:g})"
        for name, before, now in (
            ("training.test_fraction", parent.split.test_fraction, fraction),
            ("dataset.seed", parent.split.seed, dataset.seed),
        )
        if before != now
    ]
    if changed and split.inherited:
        yield (
            f"{' and '.join(changed)}, changed since the parent generation: without effect on "
            f"its {split.inherited} rows, which keep their sides; {split.new} rows are new"
        )
    if split.new and not split.new_test and fraction:
        yield (
            f"none of the {split.new} new rows is a test row (training.test_fraction {fraction:g}"
            ", groups and equal structures allow none): what they add to the parent generation "
            "is not tested"
        )


def _untested(outcome: Outcome, force_components: Mapping[Side, int]) -> Iterator[str]:
    """Yield notes on config types and forces that only the training side has."""
    if outcome.split.test == 0:
        return
    entries, split = outcome.collected.entries, outcome.split
    trained, tested = (entries.count_config_types(split.on(side)) for side in SIDES)
    lacking = [f"{name} ({count} rows)" for name, count in trained.items() if name not in tested]
    if lacking:
        more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        yield (
            f"no test row is of the config types {', '.join(lacking[:_LISTED])}{more}: the errors "
            "on the test side say nothing about them (sides are chosen by structure and group, "
            "not by type; dataset.split_key can choose others)"
        )
    if force_components["train"] and not force_components["test"]:
        yield (
            "all forces of the test side vanish by symmetry, those of the training side do not "
            f"({force_components['train']} components): force errors on the test side, and limits "
            "on them (evaluation.gate), say nothing; add displaced structures as new rows, or "
            "choose the sides by dataset.split_key"
        )


def _reference_notes(outcome: Outcome) -> Iterator[str]:
    collected = outcome.collected
    if collected.ions:
        yield (
            f"isolated ions give no reference energy ({name_rows(collected.ions)}): isolated atoms "
            "have to be neutral"
        )
    unused = {atom.element for atom in collected.references} - set(outcome.elements)
    if unused:
        yield f"isolated atoms of {', '.join(sorted(unused))} are in no structure to train on"
    yield from outcome.references.notes
    yield from _nearly_free_atoms(outcome)
    corrected = outcome.references.corrected(collected.entries)
    if note := note_extreme_energies(collected.entries, corrected):
        yield note


def _nearly_free_atoms(outcome: Outcome) -> Iterator[str]:
    """Yield a note if the reference energies differ from those of nearly free atoms in the data.

    A model of short range gives an atom without neighbours its reference energy. If that differs,
    dissociating structures can't be fitted, and they degrade the fit of the others.
    """
    references, apart = outcome.references, outcome.collected.apart
    far = {
        element: (row, energy)
        for element, (row, energy) in apart.items()
        if references.sources.get(element) in ("least_squares", "undetermined")
        and abs(energy - references.energies[element]) > _FAR_FROM_REFERENCE
    }
    if far:
        rows = name_rows([row for row, _ in far.values()])
        given = ", ".join(f"{element}: {energy:.3f}" for element, (_, energy) in far.items())
        fitted = ", ".join(f"{element}: {references.energies[element]:.3f}" for element in far)
        yield (
            f"the data hold nearly free atoms ({rows}), far from the reference energies by least "
            f"squares ({fitted} eV): such structures can't be fitted and spoil the others; add "
            f"isolated atoms, set dataset.reference_energies: {{{given}}} (approximate: the atoms "
            "of these rows still interact), or deselect them"
        )


def _per_element(collected: Collected) -> dict[str, ElementCounts]:
    compositions = [(dict(c), n) for c, n in collected.entries.count_by_composition().items()]
    return {
        element: ElementCounts(
            structures=sum(rows for counts, rows in compositions if number in counts),
            atoms=sum(rows * counts.get(number, 0) for counts, rows in compositions),
        )
        for element, number in (
            (e, chemical_symbols.index(e)) for e in collected.entries.elements()
        )
    }
