"""``report.json``: the models of a training report; make and read reports."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError

from mlip_job.errors import IntegrityError
from mlip_job.evaluation.results import Evaluation
from mlip_job.models import Errors, Frozen, VersionedRecord
from mlip_job.registry.manifest import (
    AttemptPart,
    Headline,
    Parent,
    PredecessorChange,
)
from mlip_job.store.base import unreadable
from mlip_job.training.size import BasisSize
from mlip_job.training.summary import (
    LinearStart,
    RunSummary,
    convergence_warnings,
    kappa,
    share_warnings,
)
from mlip_job.training.trainer import added

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.registry import Manifest, Registry, TrainingState

Side = Literal["train", "test"]

_ENOUGH_FORCES, _FAR_WORSE = 100, 2.0
_NEGLIGIBLE_FORCE = 2.0  # meV/Å, that reference data do not resolve


class LossDefinition(Frozen):
    """The loss of the fit: a·MSE(E/atom) + b·mean|ΔF|² + c·MSE(stress) plus regularisation.

    The weights are a, b and c of the configuration, or a and b of the same sum if an override set
    another κ. ``kappa`` is pacemaker's b / (a + b), as it read or chose it (``kappa: auto``); None
    for another trainer. The stress (eV/Å³) is a mean over its six components, not fitted if c = 0.
    """

    energy_weight: float
    force_weight: float
    stress_weight: float = 0.0
    kappa: float | None = None
    definition: str


class DatasetSummary(Frozen):
    """The dataset in short; its own record has the rest.

    `split_key` is the key_value_pair that decided between train and test, if any.
    """

    id: str
    train: int
    test: int
    rejected: int
    split_key: str | None = None
    reference_energies_ev: dict[str, float]
    reference_energy_sources: dict[str, str]
    notes: tuple[str, ...]


class TrainingReport(VersionedRecord):
    """The report of one training; docs/report.md describes it.

    Attributes
    ----------
    parent
        The generation that the fit started from.
    fit
        Results from the trainer's tables and log; ``second_set`` is the test set or the validation
        part.
    left_out_by_weighting
        Row ids per side that energy-based weighting excluded from the fit.
    energy_reference
        Conversion of the potential's energy to a DFT energy.
    timings_s
        Wall time of the stages before publishing, s; of all attempts together.
    phases_s
        Wall time of the trainer's phases within the stage ``fit``, s.
    """

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
    phases_s: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...]

    def errors(self, side: Side) -> Errors:
        """Return the errors of the published potential, or if not evaluated the trainer's."""
        found: Errors | None
        if (evaluation := self.evaluation) is not None:
            found = evaluation.train if side == "train" else evaluation.test
        elif side == "train":
            found = self.fit.train
        else:
            found = self.fit.test if self.fit.second_set == "test" else None
        return Errors(**found.model_dump(include=set(Errors.model_fields))) if found else Errors()

    def predecessor(self) -> int | None:
        """Return the generation to compare this one with: of the evaluation, or the parent."""
        if self.evaluation is not None and self.evaluation.parent is not None:
            return self.evaluation.parent.generation
        return self.parent.generation if self.parent is not None else None

    def headline(self) -> Headline:
        """Return the figures for a table of generations; none is accepted without evaluation."""
        evaluation, fit, change = self.evaluation, self.fit, None
        gate = evaluation.gate if evaluation else None
        speed = evaluation.speed if evaluation else None
        checks = evaluation.physics if evaluation else ()
        compared = evaluation.parent if evaluation else None
        if compared is not None:
            energy, force, stress = (rmse.relative if rmse else None for rmse in compared.rmse)
            change = PredecessorChange(
                generation=compared.generation,
                structures=compared.structures,
                energy=energy,
                force=force,
                stress=stress,
            )
        return Headline(
            train=self.errors("train"),
            test=self.errors("test"),
            iterations=fit.iterations or 0,
            functions=fit.functions,
            accepted=gate is not None and gate.accepted,
            rejected_because=gate.reasons if gate else (),
            loss_shares=fit.loss_shares,
            evaluator_us_per_atom=speed.evaluator_us_per_atom if speed else None,
            warnings=self.warnings,
            failed_checks=tuple(check.message for check in checks if check.verdict == "failed"),
            best_iteration=fit.best.iteration if fit.best else None,
            limits_set=gate.limits_set if gate else None,
            unchecked=gate.unchecked if gate else (),
            change=change,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read ``report.json``.

        Raises
        ------
        IntegrityError
            If it is not a report that this version can read.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise unreadable("a report can't be read", error) from None

    @classmethod
    def from_version_1(cls, document: dict[str, Any]) -> dict[str, Any]:
        """Return a report of version 1 with the keys of version 2."""
        found = super().from_version_1(document)
        found["loss"].pop("stress_fitted", None)
        evaluation = found.get("evaluation") or {}
        for side in ("train", "test"):
            if evaluation.get(side):
                evaluation[side] = _set_of_version_1(evaluation[side])
        for agreement in evaluation.get("agreement", ()):
            ours = {quantity: {"rmse": agreement.pop(quantity, None)} for quantity in _BY_TRAINER}
            theirs = {key: {"rmse": agreement.pop(old, None)} for key, old in _BY_TRAINER.items()}
            agreement["errors"] = _errors_of_version_1(ours)
            agreement["errors_by_trainer"] = _errors_of_version_1(theirs)
        if parent := evaluation.get("parent"):
            pairs = {quantity: parent.pop(quantity, None) for quantity in _PERCENTILES}
            for which in ("old", "new"):
                rmse = {
                    quantity: pair and {"rmse": pair[which]} for quantity, pair in pairs.items()
                }
                parent[which] = _errors_of_version_1(rmse)
        return found


_PERCENTILES = {
    "energy_mev_per_atom": "energy_percentiles_mev_per_atom",
    "force_mev_per_angstrom": "force_percentiles_mev_per_angstrom",
    "stress_gpa": "stress_percentiles_gpa",
}
"""Keys of errors in version 1, and where version 2 has their percentiles."""
_BY_TRAINER = {
    "energy_mev_per_atom": "energy_by_pacemaker_mev_per_atom",
    "force_mev_per_angstrom": "force_by_pacemaker_mev_per_angstrom",
    "stress_gpa": "stress_by_trainer_gpa",
}


def _errors_of_version_1(figures: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return `Errors` from figures by quantity, where they are known."""
    return {
        f"{kind}_{quantity}": value
        for quantity, by_kind in figures.items()
        for kind, value in (by_kind or {}).items()
        if kind in ("rmse", "mae", "max")
    }


def _set_of_version_1(found: dict[str, Any]) -> dict[str, Any]:
    """Return the errors of a set, or of one of its config types."""
    figures = {quantity: found.pop(quantity, None) for quantity in _PERCENTILES}
    found |= _errors_of_version_1(figures)
    if "per_config_type" in found:
        kinds, elements = found["per_config_type"], found.pop("force_per_element_mev_per_angstrom")
        found["per_config_type"] = {name: _set_of_version_1(kind) for name, kind in kinds.items()}
        found["per_element"] = {
            element: _errors_of_version_1({"force_mev_per_angstrom": errors})
            for element, errors in elements.items()
        }
        for quantity, key in _PERCENTILES.items():
            if errors := figures[quantity]:
                found[key] = {name: errors[name] for name in ("count", "p50", "p90", "p99")}
    return found


# -- making a report -----------------------------------------------------------------------------


def make_report(
    config: JobConfig,
    generation: int,
    record: DatasetRecord,
    training: TrainingState,
    summary: RunSummary,
    evaluation: Evaluation | None,
    left_out: Mapping[str, tuple[int, ...]],
) -> TrainingReport:
    """Combine the results of a run's stages."""
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


def loss_definition(training: TrainingConfig, summary: RunSummary) -> LossDefinition:
    """Return the loss; an override or pacemaker's `auto` may have chosen κ, as its log says."""
    asked = kappa(training.energy_weight, training.force_weight)
    overridden: dict[str, Any] = training.overrides.get("fit") or {}
    used = summary.kappa
    if used is None:  # a linear fit has no log; it takes numbers only
        given = (overridden.get("loss") or {}).get("kappa", asked)
        used = float(given) if isinstance(given, int | float) else asked
    total = training.energy_weight + training.force_weight
    by_weights = training.trainer != "pacemaker" or math.isclose(used, asked, rel_tol=1e-9)
    weighted = training.weighting != "uniform" or overridden.get("weighting") is not None
    stress = " + stress_weight·MSE(stress, eV/Å³)" if training.stress_weight else ""
    return LossDefinition(
        energy_weight=training.energy_weight if by_weights else (1 - used) * total,
        force_weight=training.force_weight if by_weights else used * total,
        stress_weight=training.stress_weight,
        kappa=used if training.trainer == "pacemaker" else None,
        definition="energy_weight·MSE(E/atom, eV) + force_weight·mean over atoms of |ΔF|² (eV/Å)"
        f"{stress}, {'each mean weighted' if weighted else 'uniform weights'}",
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
        train = evaluation.train if evaluation else summary.train
        ratio = kappa(loss.energy_weight, loss.force_weight)
        yield from share_warnings(summary.loss_shares, training, ratio, train)
    yield from summary.warnings
    yield from convergence_warnings(summary)
    yield from _generalisation(evaluation) if evaluation else ()
    yield from evaluation.notes if evaluation else ()


def _generalisation(evaluation: Evaluation) -> Iterator[str]:
    """Warn where the test errors are far above those on the training set."""
    if (test := evaluation.test) is None:
        return
    found = (test.rmse_force_mev_per_angstrom, evaluation.train.rmse_force_mev_per_angstrom)
    of_test, of_train = (error or 0.0 for error in found)
    enough = test.force_percentiles_mev_per_angstrom.count >= _ENOUGH_FORCES
    if enough and of_test > max(_FAR_WORSE * of_train, _NEGLIGIBLE_FORCE):
        yield (
            f"the force RMSE on the test set ({of_test:.4g} meV/Å) is more than twice that on "
            f"the training set ({of_train:.4g}): the basis is too large for the data, or the "
            "test set holds structures unlike them, see the worst ones in the report"
        )


# -- reading reports -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """The data of a generation's page.

    The manifest of a generation that is being published has no artefacts yet.
    """

    report: TrainingReport
    manifest: Manifest
    dataset: DatasetRecord


def read_facts(registry: Registry, generation: int) -> Facts:
    """Read the report, manifest and dataset record of a published generation.

    Raises
    ------
    ConfigError
        If it is not published.
    IntegrityError
        If a part of it is missing, damaged, or of another version.
    """
    manifest = registry.get(generation)
    return Facts(
        report=read_report(registry, manifest),
        manifest=manifest,
        dataset=registry.dataset_record(manifest.dataset),
    )


def read_report(registry: Registry, manifest: Manifest) -> TrainingReport:
    """Read a generation's report and check its hash."""
    name = "report.json"
    if name not in manifest.artefacts:
        raise IntegrityError(f"generation {manifest.generation} was published without {name}")
    try:
        return TrainingReport.from_json(registry.read(manifest, name))
    except IntegrityError as error:
        raise IntegrityError(
            f"{manifest.artefacts[name].key}: {error.message}",
            hint="another version of mlip-job may have written it",
        ) from None


def read_predecessor(registry: Registry, report: TrainingReport) -> TrainingReport | None:
    """Read the report of the generation to compare with; None if there is none.

    An unreadable report is ignored, as it must not prevent publishing a new generation.
    """
    number = report.predecessor()
    manifest = registry.find(number) if number is not None else None
    if manifest is None:
        return None
    try:
        return read_report(registry, manifest)
    except IntegrityError:
        return None


# -- the published schema ------------------------------------------------------------------------


def schema_file_name() -> str:
    """Return the name of the schema's file: its version is the report's."""
    return f"report-{TrainingReport.model_fields['schema_version'].default}.schema.json"


def schema_text() -> str:
    """Return the JSON Schema of ``report.json`` that the documentation publishes."""
    schema = TrainingReport.model_json_schema(mode="serialization")
    # A field with a default is not required, but readers look at the version first.
    schema["required"] = ["schema_version", *schema["required"]]
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) / schema_file_name()).write_text(schema_text(), encoding="utf-8")
