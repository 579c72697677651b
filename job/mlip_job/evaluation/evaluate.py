"""Evaluate a potential after its fit: errors, comparison, physics checks and gate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlip_job.dataset.xyz import read_blocks, row_id
from mlip_job.errors import TrainingError
from mlip_job.evaluation.energy_volume import ReferenceStructures
from mlip_job.evaluation.measure import Models, Task, measuring
from mlip_job.evaluation.physics import check_physics
from mlip_job.evaluation.potential import Potential, cores_of, measure_speed, shorter
from mlip_job.evaluation.results import (
    QUANTITIES,
    Agreement,
    Conversion,
    Evaluation,
    GateVerdict,
    ParentComparison,
)
from mlip_job.evaluation.statistics import SetErrors
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import EvaluationConfig, GateConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.rows import Side
    from mlip_job.evaluation.results import PhysicsCheck, SetEvaluation
    from mlip_job.evaluation.statistics import SubsetErrors
    from mlip_job.models import Errors
    from mlip_job.paths import DatasetFiles
    from mlip_job.training.summary import RunSummary

_CHECKED_AGAINST_BASIS = 1000  # training structures, evenly spaced over the set

RELATIVE_TOLERANCE = 1e-3
"""Relative tolerance. Pacemaker's RMSEs are unweighted for any loss, over the fitted structures
(`pyace.metrics_aggregator.FitMetrics.compute_metrics`), and gracemaker's too
(`tensorpotential.metrics`). Splines and positions rounded to 1e-8 Å cause a measured difference of
3e-7."""
_FLOORS = (0.01, 0.01, 1e-3)  # relative differences are meaningless for an almost exact fit

CONVERSION_TOLERANCE_MEV = 1e-3
"""meV/atom and meV/Å; the measured difference of artefact and B-basis is 1e-15 eV."""

_HINT = (
    "the fit is kept, the file is not published: run again to convert and measure once more; "
    "if it stays, the trainer's environment is at fault (mlip-job check)"
)


@dataclass(frozen=True)
class Predecessor:
    """The generation that a new one is compared with, by its published potential.

    It may be one of another trainer. `common_test_rows` are test rows of both generations whose
    elements the predecessor covers.
    """

    generation: int
    potential: Path
    reference_energies: Mapping[str, float]
    common_test_rows: frozenset[int]


@dataclass(frozen=True)
class Subject:
    """A potential to evaluate, and the data of its fit, with notes on failures of earlier stages.

    Rows `left_out` by the weighting are not measured: the potential was not fitted to them, and the
    trainer's figures exclude them too. `validation` rows choose the best iteration; not fitted.
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

    def tasks(self, side: Side, with_basis_every: int = 1) -> Iterator[Task]:
        """Yield tasks for the fitted structures of a side."""
        left_out = frozenset(self.left_out.get(side, ()))
        for number, block in enumerate(read_blocks(self.dataset.xyz(side))):
            if row_id(block) not in left_out:
                yield Task(block, with_basis=number % with_basis_every == 0)


def evaluate(
    subject: Subject,
    config: EvaluationConfig,
    *,
    seed: int,
    cores: int,
    progress: Callable[[int], None],
) -> Evaluation:
    """Evaluate a potential.

    `progress` receives the number of structures measured since its last call; it may raise.

    Raises
    ------
    TrainingError
        If the potential can't be loaded, yields NaN, or is not the one that was fitted.
    """
    record, models = subject.record, subject.models
    train, test = SetErrors(seed, subject.validation), SetErrors(seed)
    stable = ReferenceStructures()
    every = math.ceil(record.counts.train / _CHECKED_AGAINST_BASIS)
    with measuring(models, atoms=record.atoms.train + record.atoms.test, cores=cores) as measure:
        for batch in measure(subject.tasks("train", every)):
            train.add_all(batch.measured)
            stable.join(batch.stable)
            progress(len(batch.measured))
        for batch in measure(subject.tasks("test")):
            test.add_all(batch.measured)
            progress(len(batch.measured))
    for name, counted, errors in (
        ("training", record.counts.train, train),
        ("test", record.counts.test, test),
    ):
        if counted and errors.structures == 0:
            raise TrainingError(
                f"the weighting left every structure of the {name} set out of the fit: there is "
                "nothing to measure",
                hint="raise training.weighting.energy_based.DEup, then run with --fresh",
            )
    agreements, notes = _agreements(subject, train, test)
    converted = conversion(train, test) if models.converted else None
    parent = _compare(subject, cores=cores, progress=progress)
    potential = Potential(models.artefact)
    physics = check_physics(
        potential,
        cores_of(models.basis or models.artefact),
        shortest=shorter(train.shortest, test.shortest),
        stable=stable,
        reference_energies=models.reference_energies,
        dynamics_steps=config.dynamics_steps,
    )
    of_test = test.result() if record.counts.test else None
    warnings = tuple(test.contradictions.warnings("test"))
    return Evaluation(
        train=train.result(),
        test=of_test,
        agreement=agreements,
        parent=parent,
        physics=physics,
        active_set=subject.active_set,
        gate=judge(config.gate, of_test, parent, physics),
        conversion=converted,
        speed=measure_speed(
            potential,
            (task.block for task in subject.tasks("test" if of_test else "train")),
            structures=record.counts.test or record.counts.train,
            atoms=record.atoms.test or record.atoms.train,
        ),
        warnings=warnings or tuple(train.contradictions.warnings("training")),
        notes=(*subject.notes, *notes, *_notes(subject, train, test, parent)),
    )


# -- agreement -----------------------------------------------------------------------------------

_AgreementSide = Literal["train", "test", "validation"]
_NO_STRESS = {"rmse_stress_gpa": None, "mae_stress_gpa": None, "max_stress_gpa": None}


def _agreements(
    subject: Subject, train: SetErrors, test: SetErrors
) -> tuple[tuple[Agreement, ...], tuple[str, ...]]:
    """Compare the sets given to the trainer: fitted, and validation part or test; and notes."""
    fitted, validation = subject.fitted, bool(subject.validation)
    sets: tuple[tuple[_AgreementSide, SubsetErrors, Errors | None], ...] = (
        ("train", train.rest if validation else train.all, fitted.train),
        ("validation", train.apart, fitted.test) if validation else ("test", test.all, fitted.test),
    )
    found = tuple(one for each in sets if (one := agreement(*each)) is not None)
    notes = tuple(
        f"the stress RMSE on the {_set_name(side)} is not compared with the trainer's, which takes "
        "a missing stress for 0"
        for side, ours, theirs in sets
        if theirs is not None and theirs.rmse_stress_gpa is not None and not ours.all_have_stress
    )
    return found, notes


def _set_name(side: _AgreementSide) -> str:
    return "validation part" if side == "validation" else f"{side} set"


def agreement(side: _AgreementSide, ours: SubsetErrors, theirs: Errors | None) -> Agreement | None:
    """Compare the errors of the artefact with the trainer's; None if it reported none.

    Stresses are compared if the trainer fitted them and every structure has one.

    Raises
    ------
    TrainingError
        If they differ; the message names both figures.
    """
    if theirs is None:
        return None
    if theirs.rmse_energy_mev_per_atom is None or theirs.rmse_force_mev_per_angstrom is None:
        return None
    comparable = ours.all_have_stress and theirs.rmse_stress_gpa is not None
    known = {} if comparable else _NO_STRESS
    errors, by_trainer = ours.errors().model_copy(update=known), theirs.model_copy(update=known)
    compared = zip(QUANTITIES, errors.rmse, by_trainer.rmse, _FLOORS, strict=True)
    for (what, unit), here, given, floor in compared:
        if here is None or given is None:
            continue
        if not abs(here - given) <= RELATIVE_TOLERANCE * given + floor:  # NaN agrees with nothing
            raise TrainingError(
                f"the potential is not the one that was fitted: its {what} RMSE on the "
                f"{_set_name(side)} is {here:.4f} {unit}, the trainer says {given:.4f} {unit}",
                hint=_HINT,
            )
    return Agreement(
        side=side,
        errors=errors,
        errors_by_trainer=by_trainer,
        relative_tolerance=RELATIVE_TOLERANCE,
    )


def conversion(train: SetErrors, test: SetErrors) -> Conversion:
    """Compare the artefact with the potential that it was converted from.

    Raises
    ------
    TrainingError
        If they differ.
    """
    counts, energies, forces = zip(train.conversions, test.conversions, strict=True)
    structures, energy, force = sum(counts), 1000 * max(energies), 1000 * max(forces)
    if max(energy, force) > CONVERSION_TOLERANCE_MEV:
        raise TrainingError(
            f"potential.yace differs from potential.yaml: on {structures} structures "
            f"by up to {energy:.4g} meV/atom and {force:.4g} meV/Å",
            hint=_HINT,
        )
    return Conversion(
        structures=structures,
        max_energy_difference_mev_per_atom=energy,
        max_force_difference_mev_per_angstrom=force,
    )


# -- predecessor ---------------------------------------------------------------------------------


def _compare(
    subject: Subject, *, cores: int, progress: Callable[[int], None]
) -> ParentComparison | None:
    """Evaluate both potentials on their common test structures; None without any."""
    predecessor, models = subject.predecessor, subject.models
    if predecessor is None:
        return None
    old, new = SetErrors(), SetErrors()
    older = Models(predecessor.potential, predecessor.reference_energies)
    newer = Models(models.artefact, models.reference_energies)
    common = predecessor.common_test_rows
    for which, errors in ((older, old), (newer, new)):
        tasks = (Task(t.block) for t in subject.tasks("test") if row_id(t.block) in common)
        with measuring(which, atoms=subject.record.atoms.test, cores=cores) as measure:
            for batch in measure(tasks):
                errors.add_all(batch.measured)
                progress(len(batch.measured))
    if new.structures == 0:
        return None
    return ParentComparison(
        generation=predecessor.generation,
        structures=new.structures,
        old=old.all.errors(),
        new=new.all.errors(),
    )


def _notes(
    subject: Subject, train: SetErrors, test: SetErrors, parent: ParentComparison | None
) -> Iterator[str]:
    if not subject.record.counts.test:
        yield (
            "nothing was held out: all errors are those of training structures, which say little "
            "about others"
        )
    elif missing := sorted(train.elements - test.elements):
        yield (
            f"the test set holds no {' or '.join(missing)}: the errors on it say nothing about "
            f"{'these elements' if len(missing) > 1 else 'this element'}"
        )
    if subject.predecessor is not None and parent is None:
        name = generation_name(subject.predecessor.generation)
        yield f"not compared with {name}: no structure is test for both"


# -- gate ----------------------------------------------------------------------------------------

_NEGLIGIBLE = (0.5, 2.0)
"""meV/atom and meV/Å, below the accuracy of reference data; never a regression."""


def judge(
    gate: GateConfig,
    test: SetEvaluation | None,
    parent: ParentComparison | None,
    physics: Sequence[PhysicsCheck],
) -> GateVerdict:
    """Return the verdict; limits on test errors reject a potential without a test set."""
    reasons = (
        *_too_large(gate, test),
        *(_regressions(gate.max_regression, parent) if parent is not None else ()),
        *_failed_checks(gate, physics),
    )
    unchecked: dict[str, None] = {}
    for kind in ("energy_volume", "dynamics"):
        checks = [check for check in physics if check.kind == kind]
        if all(check.verdict == "skipped" for check in checks):
            unchecked |= dict.fromkeys(check.message for check in checks)
    return GateVerdict(
        accepted=not reasons,
        reasons=reasons,
        limits_set=gate.has_limits,
        unchecked=tuple(unchecked),
    )


def _too_large(gate: GateConfig, test: SetEvaluation | None) -> Iterator[str]:
    limits = (gate.max_energy_rmse_mev, gate.max_force_rmse_mev)
    if test is None:
        if limits != (None, None):
            yield "nothing was held out: the limits of the gate on test errors can't be judged"
        return
    for (what, unit), found, limit in zip(QUANTITIES, test.rmse, limits, strict=False):
        # NaN exceeds any limit.
        if limit is not None and found is not None and not found <= limit:
            yield (
                f"the {what} RMSE on the test set is {found:.4g} {unit}, "
                f"more than the {limit:g} that the gate allows"
            )


def _regressions(most: float | None, parent: ParentComparison) -> Iterator[str]:
    if most is None:
        return
    for (what, unit), rmse, negligible in zip(QUANTITIES, parent.rmse, _NEGLIGIBLE, strict=False):
        if rmse is not None and not rmse.new - rmse.old <= max(most * rmse.old, negligible):
            yield (
                f"the {what} RMSE on the {parent.structures} test structures shared with "
                f"{generation_name(parent.generation)} is {rmse.new:.4g} {unit} after "
                f"{rmse.old:.4g}: worse by more than {100 * most:g} %"
            )


def _failed_checks(gate: GateConfig, physics: Sequence[PhysicsCheck]) -> Iterator[str]:
    required = gate.require_physics
    for check in physics:
        if check.verdict == "failed" and (required is True or (required and check.unstable)):
            what = "check of stability" if check.unstable else "check"
            yield f"a physics {what} failed: {check.message}"
