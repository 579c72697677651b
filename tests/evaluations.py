"""Artificial, but plausible evaluations for tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from mlip_job.evaluation import results
from mlip_job.models import Errors

CONFIG_TYPES = ("isolated_atom", "rattled", "strained", "surface", "vacancy")
_WELLS = {"CuCu": (1.8, 2.3), "AuCu": (2.1, 2.4), "AuAu": (2.3, 2.55)}  # eV, Å
_CRYSTALS = {"Cu": (11.81, 137.0), "Au": (16.97, 172.0)}  # Å³/atom, GPa
_EV_PER_GPA_A3 = 160.21766


def make_evaluation(
    generation: int = 2,
    *,
    accepted: bool = True,
    config_types: tuple[str, ...] = CONFIG_TYPES,
    physics: tuple[results.PhysicsCheck, ...] | None = None,
) -> results.Evaluation:
    """Return the evaluation of a potential that improves from generation to generation."""
    rng = np.random.default_rng(generation)
    scale = 6.0 / generation
    parent = None
    if generation > 1:
        parent = results.ParentComparison(
            generation=generation - 1,
            structures=90,
            old=_rmse(*(error / (generation - 1) for error in (6.8, 74.0, 0.2))),
            new=_rmse(*(error / generation for error in (6.9, 76.0, 0.21))),
        )
    return results.Evaluation(
        train=_side(rng, 860, scale, config_types),
        test=_side(rng, 96, 1.15 * scale, config_types),
        agreement=tuple(
            results.Agreement(
                side=side,
                errors=_rmse(scale, 10 * scale, 0.02 * scale),
                errors_by_trainer=_rmse(scale, 10 * scale, 0.02 * scale),
                relative_tolerance=0.01,
            )
            for side in ("train", "test")
        ),
        parent=parent,
        physics=make_physics(generation, hole=not accepted) if physics is None else physics,
        active_set="linear",
        conversion=results.Conversion(
            structures=956,
            max_energy_difference_mev_per_atom=3.1e-9,
            max_force_difference_mev_per_angstrom=0.0,
        ),
        speed=results.Speed(
            evaluator_us_per_atom=84.25,
            structures=15,
            atoms=487,
            repeats=5,
            cpu="Example CPU @ 2.00GHz",
        ),
        gate=results.GateVerdict(
            accepted=accepted,
            limits_set=True,
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
    """Return checks of every kind; with `hole`, a dimer fails."""
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
        make_dynamics(),
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


def _rmse(energy: float, force: float, stress: float) -> Errors:
    return Errors(
        rmse_energy_mev_per_atom=energy, rmse_force_mev_per_angstrom=force, rmse_stress_gpa=stress
    )


def _errors(
    energy: np.ndarray | None, force: np.ndarray, stress: np.ndarray | None
) -> dict[str, float]:
    """Return the fields of `Errors` for errors of each quantity."""
    quantities = {
        "energy_mev_per_atom": energy,
        "force_mev_per_angstrom": force,
        "stress_gpa": stress,
    }
    return {
        f"{kind}_{name}": float(figure)
        for name, errors in quantities.items()
        if errors is not None
        for kind, figure in (
            ("rmse", np.sqrt(np.mean(errors**2))),
            ("mae", np.abs(errors).mean()),
            ("max", np.abs(errors).max()),
        )
    }


def _percentiles(errors: np.ndarray) -> results.Percentiles:
    p50, p90, p99 = (float(p) for p in np.percentile(np.abs(errors), (50, 90, 99)))
    return results.Percentiles(count=errors.size, p50=p50, p90=p90, p99=p99)


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
    """Return the errors of one side: heavy-tailed, like those of real potentials."""
    energies = -3.6 + rng.gamma(2.0, 0.12, structures)
    energy_errors = scale * rng.standard_t(5, structures) / 1.3
    forces = rng.laplace(scale=0.9, size=30 * structures)
    force_errors = 10 * scale * rng.standard_t(4, forces.size) / 1.4
    stresses = rng.normal(size=6 * structures)
    stress_errors = 0.02 * scale * rng.standard_normal(6 * structures)
    kinds = rng.integers(len(config_types), size=structures)
    grades = rng.lognormal(-0.6, 0.35, structures)
    worst = np.argsort(-np.abs(energy_errors))[:10]
    return results.SetEvaluation(
        structures=structures,
        atoms=10 * structures,
        **_errors(energy_errors, force_errors, stress_errors),
        energy_percentiles_mev_per_atom=_percentiles(energy_errors),
        force_percentiles_mev_per_angstrom=_percentiles(force_errors),
        stress_percentiles_gpa=_percentiles(stress_errors),
        per_element={
            element: Errors(**_errors(None, force_errors[begin::2], None))
            for begin, element in enumerate(("Au", "Cu"))
        },
        per_config_type={
            name: results.ConfigTypeErrors(
                structures=int((kinds == number).sum()),
                **_errors(
                    energy_errors[kinds == number],
                    force_errors.reshape(structures, -1)[kinds == number],
                    stress_errors.reshape(structures, -1)[kinds == number],
                ),
            )
            for number, name in enumerate(config_types)
        },
        energy_error_histogram_mev_per_atom=_histogram(energy_errors, 4 * scale),
        force_error_histogram_mev_per_angstrom=_histogram(force_errors, 40 * scale),
        energy_parity_ev_per_atom=_parity(energies, energy_errors, 2000),
        force_parity_ev_per_angstrom=_parity(forces, force_errors, 2000),
        stress_error_histogram_gpa=_histogram(stress_errors, 0.08 * scale),
        stress_parity_gpa=_parity(stresses, 1000 * stress_errors, 2000),
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
    """Return a Morse curve with a steep core, optionally with a hole in it."""
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


def make_uniform_evaluation(*reasons: str, rmse: float = 5.0) -> results.Evaluation:
    """Return the evaluation of an accepted potential, or of one rejected for `reasons`."""
    return results.Evaluation(
        train=make_uniform_side(rmse),
        test=make_uniform_side(rmse),
        agreement=(),
        parent=None,
        physics=(),
        active_set=None,
        gate=results.GateVerdict(accepted=not reasons, reasons=reasons),
    )


def make_uniform_side(rmse: float) -> results.SetEvaluation:
    """Return constant errors: of energies as given, of forces ten times that."""
    parity = results.Parity(reference=(), predicted=(), sampled_from=0)
    histogram = results.Histogram(edges=(-rmse, rmse), counts=(1,))
    energy, force = (
        results.Percentiles(count=1, p50=error, p90=error, p99=error) for error in (rmse, 10 * rmse)
    )
    return results.SetEvaluation(
        structures=1,
        atoms=1,
        **_errors(np.array([rmse]), np.array([10 * rmse]), None),
        energy_percentiles_mev_per_atom=energy,
        force_percentiles_mev_per_angstrom=force,
        per_element={},
        per_config_type={},
        energy_error_histogram_mev_per_atom=histogram,
        force_error_histogram_mev_per_angstrom=histogram,
        energy_parity_ev_per_atom=parity,
        force_parity_ev_per_angstrom=parity,
        worst=(),
    )


def make_dynamics(**changes: Any) -> results.DynamicsCheck:
    """Return a check of dynamics that passed."""
    check = results.DynamicsCheck(
        verdict="passed",
        message="the total energy drifts by less than 1 meV/atom/ps",
        structure="Cu fcc",
        atoms=108,
        steps=500,
        timestep_fs=2.0,
        temperature_k=600.0,
        drift_mev_per_atom_per_ps=0.0213,
    )
    return check.model_copy(update=changes)
