"""Reports for tests: real learning curves, and evaluations that are made up but plausible."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from mlip_job.config import JobConfig
from mlip_job.dataset import record as dataset_record
from mlip_job.evaluation import results
from mlip_job.registry import AttemptPart, Parent
from mlip_job.report import DatasetSummary, LossDefinition, TrainingReport
from mlip_job.reporting import Facts
from mlip_job.training.summary import summarise_run
from tests.manifests import make_manifest

_ROOT = Path(__file__).parents[1]
_DATA = _ROOT / "tests" / "data" / "pacemaker"
_TYPES = ("isolated_atom", "rattled", "strained", "surface", "vacancy")
_STARTED = datetime(2026, 11, 23, 22, 40, tzinfo=UTC)
_WELLS = {"CuCu": (1.8, 2.3), "AuCu": (2.1, 2.4), "AuAu": (2.3, 2.55)}  # eV, Å
_CRYSTALS = {"Cu": (11.81, 137.0), "Au": (16.97, 172.0)}  # Å³/atom, GPa
_EV_PER_GPA_A3 = 160.21766


def validate_report(text: str | bytes) -> None:
    """Hold a ``report.json`` against the schema that is published in docs/."""
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
            AttemptPart(attempt="20261123T224000Z-a1b2c3", started=started, iterations=11),
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
        "timings_s": {"export": 4.2, "publish_dataset": 0.9, "fit": 5321.0, "evaluation": 38.0},
        "warnings": ("stress_weight has no effect: pacemaker fits no stress",),
    }
    return TrainingReport(**(values | changes))


def make_facts(report: TrainingReport) -> Facts:
    """Return all that a page about a report needs."""
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
                train=dict.fromkeys(_TYPES, dataset.train // len(_TYPES)),
                test=dict.fromkeys(_TYPES[1:], dataset.test // 4),
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


def make_evaluation(
    generation: int = 2,
    *,
    accepted: bool = True,
    config_types: tuple[str, ...] = _TYPES,
    physics: tuple[results.PhysicsCheck, ...] | None = None,
) -> results.Evaluation:
    """Return the evaluation of a potential that gets better from generation to generation."""
    rng = np.random.default_rng(generation)
    scale = 6.0 / generation
    parent = None
    if generation > 1:
        parent = results.ParentComparison(
            generation=generation - 1,
            structures=90,
            energy_mev_per_atom=_pair(6.8 / (generation - 1), 6.9 / generation),
            force_mev_per_angstrom=_pair(74.0 / (generation - 1), 76.0 / generation),
        )
    return results.Evaluation(
        train=_side(rng, 860, scale, config_types),
        test=_side(rng, 96, 1.15 * scale, config_types),
        agreement=tuple(
            results.Agreement(
                side=side,
                energy_mev_per_atom=scale,
                energy_by_pacemaker_mev_per_atom=scale,
                force_mev_per_angstrom=10 * scale,
                force_by_pacemaker_mev_per_angstrom=10 * scale,
                relative_tolerance=0.01,
            )
            for side in ("train", "test")
        ),
        parent=parent,
        physics=make_physics(generation, hole=not accepted) if physics is None else physics,
        active_set="linear",
        gate=results.GateVerdict(
            accepted=accepted,
            reasons=()
            if accepted
            else (
                "the force RMSE on the test set is 38.2 meV/Å, above the limit of 30",
                "the dimer Au–Au is attractive below 1.1 Å",
            ),
        ),
    )


@cache
def make_physics(generation: int, *, hole: bool) -> tuple[results.PhysicsCheck, ...]:
    """Return checks of every kind; where there is to be a hole, a dimer fails."""
    dimers = tuple(
        _dimer(pair, *well, hole=hole and pair == "AuAu") for pair, well in _WELLS.items()
    )
    crystals = tuple(
        _crystal(element, (1 + 0.02 / generation) * volume, modulus)
        for element, (volume, modulus) in _CRYSTALS.items()
    )
    return (
        *dimers,
        *crystals,
        results.DynamicsCheck(
            verdict="passed",
            message="the total energy drifts by less than 1 meV/atom/ps",
            structure="Cu fcc",
            atoms=108,
            steps=500,
            timestep_fs=2.0,
            temperature_k=600.0,
            drift_mev_per_atom_per_ps=0.0213,
        ),
        results.SmoothnessCheck(
            verdict="passed",
            message="the force goes to zero smoothly",
            elements=("Cu", "Cu"),
            place="cutoff",
            distance_angstrom=5.0,
            jump_mev_per_angstrom=0.0004,
        ),
        results.SmoothnessCheck(
            verdict="skipped",
            message="zbl is off",
            elements=("Cu", "Cu"),
            place="zbl_switch",
            distance_angstrom=None,
            jump_mev_per_angstrom=None,
        ),
    )


def _pair(old: float, new: float) -> results.ErrorPair:
    return results.ErrorPair(old=old, new=new, change=new / old - 1)


def _statistics(errors: np.ndarray) -> results.ErrorStatistics:
    size = np.abs(errors)
    p50, p90, p99 = (float(p) for p in np.percentile(size, (50, 90, 99)))
    return results.ErrorStatistics(
        count=errors.size,
        rmse=float(np.sqrt(np.mean(errors**2))),
        mae=float(size.mean()),
        max=float(size.max()),
        p50=p50,
        p90=p90,
        p99=p99,
    )


def _histogram(errors: np.ndarray, reach: float) -> results.Histogram:
    edges = np.linspace(-reach, reach, 42)
    counts, _ = np.histogram(np.clip(errors, -reach, reach), edges)
    return results.Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _parity(reference: np.ndarray, errors_milli: np.ndarray, limit: int) -> results.Parity:
    shown = slice(None, limit)
    return results.Parity(
        reference=tuple(reference[shown].tolist()),
        predicted=tuple((reference + errors_milli / 1000)[shown].tolist()),
        sampled_from=reference.size,
    )


def _side(
    rng: np.random.Generator, structures: int, scale: float, config_types: tuple[str, ...]
) -> results.SetEvaluation:
    """Return the errors of one side: heavy-tailed, as those of real potentials are."""
    energies = -3.6 + rng.gamma(2.0, 0.12, structures)
    energy_errors = scale * rng.standard_t(5, structures) / 1.3
    forces = rng.laplace(scale=0.9, size=30 * structures)
    force_errors = 10 * scale * rng.standard_t(4, forces.size) / 1.4
    kinds = rng.integers(len(config_types), size=structures)
    grades = rng.lognormal(-0.6, 0.35, structures)
    worst = np.argsort(-np.abs(energy_errors))[:10]
    return results.SetEvaluation(
        structures=structures,
        atoms=10 * structures,
        energy_mev_per_atom=_statistics(energy_errors),
        force_mev_per_angstrom=_statistics(force_errors),
        stress_gpa=_statistics(0.02 * scale * rng.standard_normal(6 * structures)),
        force_per_element_mev_per_angstrom={
            "Au": _statistics(force_errors[::2]),
            "Cu": _statistics(force_errors[1::2]),
        },
        per_config_type={
            name: results.ConfigTypeErrors(
                structures=int((kinds == number).sum()),
                energy_mev_per_atom=_statistics(energy_errors[kinds == number]),
                force_mev_per_angstrom=_statistics(
                    force_errors.reshape(structures, -1)[kinds == number].ravel()
                ),
            )
            for number, name in enumerate(config_types)
        },
        energy_error_histogram_mev_per_atom=_histogram(energy_errors, 4 * scale),
        force_error_histogram_mev_per_angstrom=_histogram(force_errors, 40 * scale),
        energy_parity_ev_per_atom=_parity(energies, energy_errors, 2000),
        force_parity_ev_per_angstrom=_parity(forces, force_errors, 2000),
        worst=tuple(
            results.WorstStructure(
                row_id=int(index) + 1,
                formula="Au12Cu4" if index % 2 else "Cu16",
                config_type=config_types[kinds[index]],
                energy_error_mev_per_atom=float(energy_errors[index]),
                max_force_error_mev_per_angstrom=float(
                    np.abs(force_errors.reshape(structures, -1)[index]).max()
                ),
                extrapolation_grade=float(grades[index]),
            )
            for index in worst
        ),
        extrapolation_grade=results.GradeStatistics(
            count=structures,
            max=float(grades.max()),
            p50=float(np.median(grades)),
            p90=float(np.percentile(grades, 90)),
            p99=float(np.percentile(grades, 99)),
            above_one=int((grades > 1).sum()),
        ),
    )


def _dimer(pair: str, depth: float, place: float, *, hole: bool) -> results.DimerCheck:
    """Return a Morse curve with a steep core, and perhaps a hole in it."""
    distances = np.linspace(0.5, 5.0, 91)
    morse = depth * ((1 - np.exp(-1.6 * (distances - place))) ** 2 - 1)
    energies = morse * np.clip((5.0 - distances) / 0.6, 0, 1) + 900 * np.exp(-4.5 * distances)
    if hole:
        energies -= 900 * np.exp(-(((distances - 0.9) / 0.2) ** 2))
    return results.DimerCheck(
        verdict="failed" if hole else "passed",
        message="attractive below 1.1 Å" if hole else "repulsive at all shorter distances",
        elements=(pair[:2], pair[2:]),
        distances_angstrom=tuple(distances.tolist()),
        energies_ev=tuple(energies.tolist()),
        shortest_in_data_angstrom=place - 0.35,
        repulsive_below_angstrom=None if hole else place,
    )


def _crystal(element: str, volume: float, bulk_modulus_gpa: float) -> results.EnergyVolumeCheck:
    volumes = volume * np.linspace(0.85, 1.15, 13)
    strain = (volume / volumes) ** (2 / 3) - 1
    stiffness = 9 * volume * bulk_modulus_gpa / _EV_PER_GPA_A3 / 16
    energies = -3.6 + stiffness * (strain**3 * 4.6 + strain**2 * (6 - 4 * (strain + 1)))
    return results.EnergyVolumeCheck(
        verdict="passed",
        message="one minimum, within the volumes of the data",
        element=element,
        structure=f"{element} fcc",
        volumes_angstrom3_per_atom=tuple(volumes.tolist()),
        energies_ev_per_atom=tuple(energies.tolist()),
        minimum_angstrom3_per_atom=volume,
        bulk_modulus_gpa=bulk_modulus_gpa,
    )
