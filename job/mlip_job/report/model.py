"""The report of a training: what was fitted to what, and how well. ``report.json``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mlip_job.errors import IntegrityError
from mlip_job.evaluation.results import Evaluation, SetEvaluation
from mlip_job.registry.manifest import (
    AttemptPart,
    ErrorFigures,
    Headline,
    Parent,
    PredecessorChange,
)
from mlip_job.training.linear import LinearStart
from mlip_job.training.loss import convergence_warnings, share_warnings
from mlip_job.training.pacemaker.input import kappa
from mlip_job.training.size import BasisSize
from mlip_job.training.summary import Errors, RunSummary
from mlip_job.training.trainer import added

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.results import ParentComparison
    from mlip_job.registry import TrainingState


_FORCES_SAY, _FAR_WORSE = 100, 2.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LossDefinition(_Part):
    """What was minimised: (1-κ)·MSE(E/atom) + κ·mean|ΔF|² plus regularisation.

    Attributes
    ----------
    energy_weight, force_weight
        The weights a and b of the fit: those that were asked for, or of the same sum where an
        override gave another κ.
    kappa
        b / (a + b), as pacemaker read it in input.yaml, or chose it by ``kappa: auto``.
    definition
        What the weights mean, in words.
    stress_fitted
        Always false: pacemaker fits no stress.
    """

    energy_weight: float
    force_weight: float
    kappa: float
    definition: str
    stress_fitted: Literal[False] = False


class DatasetSummary(_Part):
    """The dataset in short; its own record has the rest.

    Attributes
    ----------
    split_key
        The key_value_pair that decided the sides, or None.
    """

    id: str
    train: int
    test: int
    rejected: int
    split_key: str | None = None
    reference_energies_ev: dict[str, float]
    reference_energy_sources: dict[str, str]
    notes: tuple[str, ...]


class TrainingReport(_Part):
    """The report of one training.

    Attributes
    ----------
    parent
        The generation that the fit started from.
    basis
        How many functions per element were chosen, and why.
    linear_start
        The linear fit that it started from.
    attempts
        All that the fit went through, and how much of the learning curve is each one's own.
    fit
        What pacemaker's tables and log say, see `RunSummary`; its ``second_set`` says whether they
        are of the test set or of the validation part.
    evaluation
        What was found out about the published potential; docs/evaluation.md.
    left_out_by_weighting
        Row ids per side that an energy-based weighting kept out of the fit.
    energy_reference
        How a DFT energy is recovered from the potential's.
    timings_s
        Wall time of the stages before publishing, s; of all attempts together.
    phases_s
        Likewise of pacemaker's phases within the stage ``fit``. Building its graphs, for the
        training set and again for the test set, are phases of their own.
    warnings
        What a person should know before using the potential.
    """

    schema_version: Literal[1] = 1
    family: str
    generation: int
    elements: tuple[str, ...]
    parent: Parent | None
    basis: BasisSize | None = None
    linear_start: LinearStart | None = None
    attempts: tuple[AttemptPart, ...]
    loss: LossDefinition
    dataset: DatasetSummary
    fit: RunSummary
    evaluation: Evaluation | None = None
    left_out_by_weighting: dict[str, tuple[int, ...]]
    energy_reference: str
    timings_s: dict[str, float]
    phases_s: dict[str, float] = {}
    warnings: tuple[str, ...]

    def headline(self) -> Headline:
        """Return what a table of generations shows; without an evaluation none is accepted."""
        evaluation = self.evaluation
        return Headline(
            train=_measured(evaluation.train) if evaluation else _fitted(self.fit.train),
            test=_measured(evaluation.test) if evaluation else _fitted(self._tested()),
            iterations=self.fit.iterations or 0,
            functions=self.fit.functions,
            accepted=evaluation is not None and evaluation.gate.accepted,
            rejected_because=evaluation.gate.reasons if evaluation else (),
            loss_shares=self.fit.loss_shares,
            evaluator_us_per_atom=evaluation.speed.evaluator_us_per_atom
            if evaluation and evaluation.speed
            else None,
            warnings=self.warnings,
            failed_checks=tuple(
                check.message for check in evaluation.physics if check.verdict == "failed"
            )
            if evaluation
            else (),
            best_iteration=self.fit.best.iteration if self.fit.best else None,
            limits_set=evaluation.gate.limits_set if evaluation else None,
            change=_change(evaluation.parent) if evaluation and evaluation.parent else None,
        )

    def _tested(self) -> Errors | None:
        return self.fit.test if self.fit.second_set == "test" else None

    def to_json(self) -> str:
        """Return the text of ``report.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read ``report.json``.

        Raises
        ------
        IntegrityError
            If it is no report that this version reads.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise IntegrityError(
                f"a report can't be read: {error.error_count()} wrong fields"
            ) from None


def make_report(
    config: JobConfig,
    generation: int,
    record: DatasetRecord,
    training: TrainingState,
    summary: RunSummary,
    evaluation: Evaluation | None,
    left_out: Mapping[str, tuple[int, ...]],
) -> TrainingReport:
    """Put together what the stages of a run found."""
    loss = loss_definition(config.training, summary)
    return TrainingReport(
        family=config.family,
        generation=generation,
        elements=record.elements,
        parent=training.parent,
        basis=training.basis,
        linear_start=training.linear_start,
        attempts=training.attempts,
        loss=loss,
        dataset=DatasetSummary(
            id=record.id,
            train=record.counts.train,
            test=record.counts.test,
            rejected=record.counts.rejected,
            split_key=record.split.key,
            reference_energies_ev=record.reference_energies,
            reference_energy_sources=dict(record.reference_energy_sources),
            notes=record.notes,
        ),
        fit=summary,
        evaluation=evaluation,
        left_out_by_weighting=dict(left_out),
        energy_reference="E_DFT = E_potential + Σ n(element)·reference_energies_ev[element]",
        timings_s=added(*(part.timings.stages_s for part in training.attempts)),
        phases_s=added(*(part.timings.phases_s for part in training.attempts)),
        warnings=tuple(_warnings(config.training, loss, training.basis, summary, evaluation)),
    )


def _change(parent: ParentComparison) -> PredecessorChange:
    return PredecessorChange(
        generation=parent.generation,
        structures=parent.structures,
        energy=parent.energy_mev_per_atom.change,
        force=parent.force_mev_per_angstrom.change,
    )


def _measured(errors: SetEvaluation | None) -> ErrorFigures:
    return ErrorFigures(
        rmse_energy_mev_per_atom=errors.energy_mev_per_atom.rmse if errors else None,
        rmse_force_mev_per_angstrom=errors.force_mev_per_angstrom.rmse if errors else None,
    )


def _fitted(errors: Errors | None) -> ErrorFigures:
    return ErrorFigures(
        rmse_energy_mev_per_atom=errors.rmse_energy_mev_per_atom if errors else None,
        rmse_force_mev_per_angstrom=errors.rmse_force_mev_per_angstrom if errors else None,
    )


def loss_definition(training: TrainingConfig, summary: RunSummary) -> LossDefinition:
    """Return what was minimised, by the log: an override may have decided, or pacemaker itself."""
    asked = kappa(training.energy_weight, training.force_weight)
    overridden: dict[str, Any] = training.overrides.get("fit") or {}
    given = (overridden.get("loss") or {}).get("kappa", asked)
    used = summary.kappa
    if used is None:  # a linear fit has no log; it takes numbers only
        used = float(given) if isinstance(given, int | float) else asked
    total = training.energy_weight + training.force_weight
    by_weights = math.isclose(used, asked, rel_tol=1e-9)
    weighted = training.weighting != "uniform" or overridden.get("weighting") is not None
    return LossDefinition(
        energy_weight=training.energy_weight if by_weights else (1 - used) * total,
        force_weight=training.force_weight if by_weights else used * total,
        kappa=used,
        definition="energy_weight·MSE(E/atom, eV) + force_weight·mean over atoms of |ΔF|² (eV/Å), "
        + ("each mean weighted" if weighted else "uniform weights"),
    )


def _warnings(
    training: TrainingConfig,
    loss: LossDefinition,
    basis: BasisSize | None,
    summary: RunSummary,
    evaluation: Evaluation | None,
) -> Iterator[str]:
    yield from evaluation.warnings if evaluation else ()
    if basis is not None and basis.warning is not None:
        yield basis.warning
    if summary.loss_shares is not None:
        measured = _measured(evaluation.train) if evaluation else _fitted(summary.train)
        error = measured.rmse_energy_mev_per_atom
        yield from share_warnings(summary.loss_shares, training, loss.kappa, error)
    yield from summary.warnings
    yield from convergence_warnings(summary)
    yield from _generalisation(evaluation) if evaluation else ()
    yield from evaluation.notes if evaluation else ()


def _generalisation(evaluation: Evaluation) -> Iterator[str]:
    """Yield whether the test errors are far above those on the training set."""
    if evaluation.test is None:
        return
    test = evaluation.test.force_mev_per_angstrom
    train = evaluation.train.force_mev_per_angstrom
    if test.count >= _FORCES_SAY and test.rmse > _FAR_WORSE * train.rmse:
        yield (
            f"the force RMSE on the test set ({test.rmse:.4g} meV/Å) is more than twice that on "
            f"the training set ({train.rmse:.4g}): the basis is too large for the data, or the "
            "test set holds structures unlike them, see the worst ones in the report"
        )
