"""Measure, compare, check and judge a potential after its fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlip_job.dataset.xyz import read_blocks, row_id
from mlip_job.errors import TrainingError
from mlip_job.evaluation.cores import shorter
from mlip_job.evaluation.gate import judge
from mlip_job.evaluation.measure import Measurers, Models, Task
from mlip_job.evaluation.physics import check_physics
from mlip_job.evaluation.potential import Potential, measure_speed
from mlip_job.evaluation.reference_structures import ReferenceStructures
from mlip_job.evaluation.results import (
    Agreement,
    Conversion,
    ErrorPair,
    Evaluation,
    ParentComparison,
    Speed,
)
from mlip_job.evaluation.statistics import SetTally
from mlip_job.naming import generation_name
from mlip_job.training.pacemaker.potential_file import read_potential

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from mlip_job.config import EvaluationConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.statistics import ErrorTally, PartTally
    from mlip_job.models import Errors
    from mlip_job.naming import DatasetFiles
    from mlip_job.training.summary import RunSummary

_HELD_AGAINST_BASIS = 1000  # training structures, spread evenly over them


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes
    ----------
    models
        The published potential, and what it was converted from.
    dataset, record
        What it was trained and tested on: its extended XYZ files, and what they hold.
    fitted
        Pacemaker's own figures.
    left_out
        Rows per side that the weighting kept out of the fit: nobody wanted them to be described,
        and pacemaker's figures don't count them either.
    validation
        Training rows that were kept out of the fit to choose its best iteration.
    predecessor
        What it is compared with.
    active_set
        Which kind of active set it has.
    notes
        What could not be found out already.
    """

    models: Models
    dataset: DatasetFiles
    record: DatasetRecord
    fitted: RunSummary
    left_out: Mapping[str, tuple[int, ...]]
    validation: frozenset[int]
    predecessor: Predecessor | None
    active_set: Literal["linear", "full"] | None
    notes: tuple[str, ...] = ()


def evaluate(
    subject: Subject,
    config: EvaluationConfig,
    *,
    seed: int,
    cores: int,
    look: Callable[[int], None],
) -> Evaluation:
    """Measure, compare, check and judge a potential.

    Parameters
    ----------
    subject
        What is evaluated.
    config
        Gate and checks.
    seed
        Of the samples for parity plots.
    cores
        Most processes.
    look
        Called with the number of structures measured since the last call; may raise.

    Raises
    ------
    TrainingError
        If the potential can't be loaded, yields NaN, or is not the one that pacemaker fitted.
    """
    record, models, structures = subject.record, subject.models, subject.dataset.xyz
    train, test, lowest = SetTally(seed, subject.validation), SetTally(seed), ReferenceStructures()
    atoms = record.atoms.train + record.atoms.test
    tested_out = subject.left_out.get("test", ())
    with Measurers(models, atoms=atoms, cores=cores) as measurers:
        every = math.ceil(record.counts.train / _HELD_AGAINST_BASIS)
        tasks = _tasks(structures("train"), subject.left_out.get("train", ()), every)
        for batch in measurers.measure(tasks):
            train.add_all(batch.measured)
            lowest.join(batch.lowest)
            look(len(batch.measured))
        tasks = _tasks(structures("test"), tested_out, every=1)
        for batch in measurers.measure(tasks):
            test.add_all(batch.measured)
            look(len(batch.measured))
    _require_some(train, test if record.counts.test else None)
    agreements = _agreements(subject, train, test)
    converted = conversion(train, test)
    parent, notes = None, list(subject.notes)
    if not record.counts.test:
        notes.append(
            "nothing was held out: all errors are those of training structures, which say little "
            "about others"
        )
    elif missing := sorted(train.elements - test.elements):
        notes.append(
            f"the test set holds no {' or '.join(missing)}: the errors on it say nothing about "
            f"{'these elements' if len(missing) > 1 else 'this element'}"
        )
    if subject.predecessor is not None:
        parent = compare(
            subject.predecessor,
            models,
            structures("test"),
            left_out=tested_out,
            atoms=record.atoms.test,
            cores=cores,
            look=look,
        )
        if parent is None:
            name = generation_name(subject.predecessor.generation)
            notes.append(f"not compared with {name}: no structure is test for both")
    potential = Potential(models.artefact)
    physics = check_physics(
        potential,
        read_potential(models.basis) if models.basis else {"species": ()},
        shortest=shorter(train.shortest, test.shortest),
        lowest=lowest,
        reference_energies=models.reference_energies,
        dynamics_steps=config.dynamics_steps,
    )
    of_test = test.result() if record.counts.test else None
    return Evaluation(
        train=train.result(),
        test=of_test,
        agreement=agreements,
        parent=parent,
        physics=physics,
        active_set=subject.active_set,
        gate=judge(config.gate, of_test, parent, physics),
        conversion=converted,
        speed=_speed(subject, potential),
        warnings=_warnings(train, test),
        notes=tuple(notes),
    )


def _warnings(train: SetTally, test: SetTally) -> tuple[str, ...]:
    """Return where predictions contradict the data: on the test set, or else on what was fitted."""
    found = tuple(test.contradictions.warnings("test"))
    return found or tuple(train.contradictions.warnings("training"))


def _agreements(subject: Subject, train: SetTally, test: SetTally) -> tuple[Agreement, ...]:
    """Hold each set that pacemaker was given against its figures; the second one is either."""
    fitted = subject.fitted
    if subject.validation:
        found = (
            agreement("train", train.rest, fitted.train),
            agreement("validation", train.apart, fitted.test),
        )
    else:
        found = (agreement("train", train, fitted.train), agreement("test", test, fitted.test))
    return tuple(one for one in found if one is not None)


def _speed(subject: Subject, potential: Potential) -> Speed:
    """Measure on the test set, or on the training set where nothing is held out."""
    counts, atoms = subject.record.counts, subject.record.atoms
    side = "test" if counts.test else "train"
    tasks = _tasks(subject.dataset.xyz(side), subject.left_out.get(side, ()), every=1)
    return measure_speed(
        potential,
        (task.block for task in tasks),
        structures=counts.test or counts.train,
        atoms=atoms.test or atoms.train,
    )


def _require_some(train: SetTally, test: SetTally | None) -> None:
    for side, tally in (("training", train), ("test", test)):
        if tally is not None and tally.structures == 0:
            raise TrainingError(
                f"the weighting left every structure of the {side} set out of the fit: there is "
                "nothing to measure",
                hint="raise training.weighting.energy_based.DEup, then run with --fresh",
            )


def _tasks(structures: Path, left_out: Collection[int], every: int) -> Iterator[Task]:
    """Yield what was fitted of a side, every n-th structure to be held against the basis too."""
    out = frozenset(left_out)
    for number, block in enumerate(read_blocks(structures)):
        if not (out and row_id(block) in out):
            yield Task(block, doubly=number % every == 0)


RELATIVE_TOLERANCE = 1e-3
_FLOOR_MEV = 0.01  # where a fit is all but exact, relative differences mean nothing

CONVERSION_TOLERANCE_MEV = 1e-3
"""meV/atom and meV/Å."""

_HINT = (
    "the fit is kept, the file is not published: run again to convert and measure once more; "
    "if it stays, the trainer's environment is at fault (mlip-job check)"
)


def agreement(
    side: Literal["train", "test", "validation"], ours: SetTally | PartTally, theirs: Errors | None
) -> Agreement | None:
    """Hold the errors of the artefact against pacemaker's; None where pacemaker gave none.

    Raises
    ------
    TrainingError
        If they differ; it names both figures.
    """
    if theirs is None:
        return None
    energy, force = theirs.rmse_energy_mev_per_atom, theirs.rmse_force_mev_per_angstrom
    if energy is None or force is None:
        return None
    found = Agreement(
        side=side,
        energy_mev_per_atom=ours.energy.rmse,
        energy_by_pacemaker_mev_per_atom=energy,
        force_mev_per_angstrom=ours.force.rmse,
        force_by_pacemaker_mev_per_angstrom=force,
        relative_tolerance=RELATIVE_TOLERANCE,
    )
    for what, unit, own, given in (
        ("energy", "meV/atom", found.energy_mev_per_atom, energy),
        ("force", "meV/Å", found.force_mev_per_angstrom, force),
    ):
        if abs(own - given) > RELATIVE_TOLERANCE * given + _FLOOR_MEV:
            raise TrainingError(
                f"the potential is not the one that was fitted: its {what} RMSE on the {side} "
                f"{'part' if side == 'validation' else 'set'} "
                f"is {own:.4f} {unit}, pacemaker says {given:.4f} {unit}",
                hint=_HINT,
            )
    return found


def conversion(train: SetTally, test: SetTally) -> Conversion:
    """Hold the artefact against the potential that it was converted from.

    Raises
    ------
    TrainingError
        If they differ.
    """
    structures = train.conversion[0] + test.conversion[0]
    energy = 1000 * max(train.conversion[1], test.conversion[1])
    force = 1000 * max(train.conversion[2], test.conversion[2])
    if max(energy, force) > CONVERSION_TOLERANCE_MEV:
        raise TrainingError(
            f"potential.yace is not what potential.yaml is: on {structures} structures they differ "
            f"by up to {energy:.4g} meV/atom and {force:.4g} meV/Å",
            hint=_HINT,
        )
    return Conversion(
        structures=structures,
        max_energy_difference_mev_per_atom=energy,
        max_force_difference_mev_per_angstrom=force,
    )


@dataclass(frozen=True)
class Predecessor:
    """The generation that a new one is compared with.

    Attributes
    ----------
    generation
        Its number.
    potential
        Its published ``.yace``.
    reference_energies
        eV per atom, that its energies lack.
    common_test_rows
        Rows that are test rows for both generations.
    """

    generation: int
    potential: Path
    reference_energies: Mapping[str, float]
    common_test_rows: frozenset[int]


def compare(
    predecessor: Predecessor,
    models: Models,
    structures: Path,
    *,
    left_out: Collection[int],
    atoms: int,
    cores: int,
    look: Callable[[int], None],
) -> ParentComparison | None:
    """Evaluate both potentials on the structures that are test for both; None if there are none.

    What is in the predecessor's test set is made of elements that it knows.

    Parameters
    ----------
    predecessor
        The older one.
    models
        The newer one.
    structures, left_out, atoms
        The newer one's test set, the rows of it that don't count, and how many atoms it has.
    cores
        Most processes.
    look
        Called with the number of structures measured since the last call.
    """
    rows = predecessor.common_test_rows.difference(left_out)
    old, new = SetTally(), SetTally()
    older = Models(predecessor.potential, predecessor.reference_energies)
    newer = Models(models.artefact, models.reference_energies)
    for which, tally in ((older, old), (newer, new)):
        with Measurers(which, atoms=atoms, cores=cores) as measurers:
            tasks = (Task(b, doubly=False) for b in read_blocks(structures) if row_id(b) in rows)
            for batch in measurers.measure(tasks):
                tally.add_all(batch.measured)
                look(len(batch.measured))
    if new.structures == 0:
        return None
    return ParentComparison(
        generation=predecessor.generation,
        structures=new.structures,
        energy_mev_per_atom=_pair(old.energy, new.energy),
        force_mev_per_angstrom=_pair(old.force, new.force),
    )


def _pair(old: ErrorTally, new: ErrorTally) -> ErrorPair:
    change = new.rmse / old.rmse - 1 if old.rmse > 0 else None
    return ErrorPair(old=old.rmse, new=new.rmse, change=change)
