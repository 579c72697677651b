"""Reports for tests, with real learning curves, and related data."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
from pydantic import BaseModel

from mlip_job.config import JobConfig
from mlip_job.dataset import record as dataset_record
from mlip_job.registry import AttemptPart, Parent, Timings
from mlip_job.report.model import DatasetSummary, Facts, LossDefinition, TrainingReport
from mlip_job.training.pacemaker.outcome import summarise_run
from tests.evaluations import CONFIG_TYPES, make_evaluation
from tests.manifests import make_manifest

Model = TypeVar("Model", bound=BaseModel)
_ROOT = Path(__file__).parents[1]
_DATA = _ROOT / "tests" / "data" / "pacemaker"
_STARTED = datetime(2026, 11, 23, 22, 40, tzinfo=UTC)


def validate_report(text: str | bytes) -> None:
    """Validate a ``report.json`` against the published schema in docs/."""
    document = json.loads(text)
    path = _ROOT / "docs" / "schemas" / f"report-{document['schema_version']}.schema.json"
    schema = json.loads(path.read_text())
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(document)


def make_report(generation: int = 2, **changes: Any) -> TrainingReport:
    """Return the report of a fit by a ladder of three steps, in two attempts."""
    started = _STARTED + timedelta(days=generation)
    fit = summarise_run(_DATA / ("c_ladder" if generation > 1 else "b_single_test"))
    values: dict[str, Any] = {
        "family": "cu-au",
        "generation": generation,
        "elements": ("Au", "Cu"),
        "parent": Parent(generation=generation - 1, mode="extend", potential_sha256="ab" * 32)
        if generation > 1
        else None,
        "attempts": (
            AttemptPart(
                attempt="20261123T224000Z-a1b2c3",
                started=started,
                iterations=11,
                timings=Timings(
                    to_trainer_s=6.5, stages_s={"start_up": 2.3, "export": 4.2, "fit": 1204.0}
                ),
            ),
            AttemptPart(
                attempt="20261123T235500Z-d4e5f6",
                started=started + timedelta(hours=1),
                iterations=(fit.iterations or 0) - 11,
            ),
        ),
        "loss": LossDefinition(
            energy_weight=1.0,
            force_weight=100.0,
            kappa=100 / 101,
            definition="energy_weight·MSE(E/atom, eV) + force_weight·mean over atoms of |ΔF|² "
            "(eV/Å), uniform weights",
        ),
        "dataset": DatasetSummary(
            id=f"{generation:016x}",
            train=860 + 100 * generation,
            test=96,
            rejected=2,
            reference_energies_ev={"Au": -2.61, "Cu": -3.72},
            reference_energy_sources={"Au": "isolated_atom", "Cu": "inherited"},
            notes=("3 rows have no free_energy: their energy was taken",),
        ),
        "fit": fit,
        "evaluation": make_evaluation(generation),
        "left_out_by_weighting": {},
        "energy_reference": "E_DFT = E_potential + Σ n(element)·reference_energies_ev[element]",
        "timings_s": {"export": 4.2, "publish_dataset": 0.9, "fit": 5321.0, "evaluate": 38.0},
        "phases_s": {"starting": 21.0, "building_graph": 1200.0, "fitting": 4080.0},
        "warnings": ("the fit did not converge",),
    }
    return TrainingReport(**(values | changes))


def changed(model: Model, **changes: Any) -> Model:
    """Return a copy with other values; ``a__b`` is the field b of the field a."""
    for name, value in changes.items():
        field, _, inner = name.partition("__")
        new = changed(getattr(model, field), **{inner: value}) if inner else value
        model = model.model_copy(update={field: new})
    return model


def make_facts(report: TrainingReport) -> Facts:
    """Return the arguments of a report page."""
    dataset = report.dataset
    manifest = make_manifest(report.generation, family=report.family)
    changes = {
        "parent": report.parent,
        "started": report.attempts[0].started,
        "ended": report.attempts[-1].started + timedelta(hours=2),
        "elements": report.elements,
        "dataset": manifest.dataset.model_copy(
            update={"id": dataset.id, "train": dataset.train, "test": dataset.test}
        ),
    }
    return Facts(
        report=report,
        manifest=manifest.model_copy(update=changes),
        dataset=dataset_record.DatasetRecord(
            id=dataset.id,
            created="2026-11-23T22:40:00Z",
            database="postgresql://db.example/structures",
            selection="status=completed",
            cutoff=JobConfig(family="cu").training.cutoff,
            elements=report.elements,
            counts=dataset_record.Counts(
                selected=dataset.train + dataset.test + dataset.rejected,
                accepted=dataset.train + dataset.test,
                train=dataset.train,
                test=dataset.test,
                rejected=dataset.rejected,
                reference_atoms=0,
            ),
            atoms=dataset_record.SideCounts(train=9000, test=1000),
            per_element={
                element: dataset_record.ElementCounts(structures=600, atoms=5000)
                for element in report.elements
            },
            ranges=dataset_record.Ranges(
                min_energy_corrected_ev_per_atom=-3.9,
                max_energy_corrected_ev_per_atom=-2.1,
                max_force_ev_per_angstrom=8.4,
                min_distance_angstrom=1.93,
            ),
            config_types=dataset_record.ConfigTypes(
                train=dict.fromkeys(CONFIG_TYPES, dataset.train // len(CONFIG_TYPES)),
                test=dict.fromkeys(CONFIG_TYPES[1:], dataset.test // 4),
            ),
            split=dataset_record.SplitRecord(
                seed=42,
                test_fraction=0.1,
                wanted_test=dataset.test,
                inherited_train=0,
                inherited_test=0,
                group_by=None,
            ),
            rejections={
                "no_forces": dataset_record.RejectedRows(count=2, rows=(17, 803)),
            },
            reference_energies=dataset.reference_energies_ev,
            reference_energy_sources={"Au": "isolated_atom", "Cu": "inherited"},
            energy_from=dataset_record.EnergyOrigin(free_energy=dataset.train, energy=3),
            weights=None,
            notes=dataset.notes,
            frames=dataset_record.SideNames(train=("train.pckl.gzip",), test=("test.pckl.gzip",)),
            files={},
            versions=dataset_record.Versions(
                mlip_job="0.1.0", ase="3.29.0", numpy="2.3.5", pandas="2.3.3"
            ),
        ),
    )
