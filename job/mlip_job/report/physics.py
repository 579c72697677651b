"""The physics checks of a page: their verdicts with their numbers, and their curves."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, assert_never

from mlip_job.evaluation.results import (
    DimerCheck,
    DynamicsCheck,
    EnergyVolumeCheck,
    SmoothnessCheck,
)
from mlip_job.report.figures import Figure, dimer_figure, energy_volume_figure, has_curve
from mlip_job.report.numbers import UNKNOWN, fixed, significant
from mlip_job.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlip_job.evaluation.results import PhysicsCheck

_PLACES = {"cutoff": "at the cutoff", "zbl_switch": "at the ZBL switch"}


def physics_table(checks: Sequence[PhysicsCheck]) -> Table:
    """Return every check with its verdict and its number, and the reason where it did not pass."""
    columns = ["check", "verdict", "number"]
    explained = any(check.verdict != "passed" for check in checks)
    return Table(
        "Physics checks",
        tuple(Column(name, numeric=False) for name in (*columns, *(["reason"] * explained))),
        tuple((*_row(check), *([_reason(check)] * explained)) for check in checks),
    )


def _row(check: PhysicsCheck) -> tuple[str | Cell, ...]:
    return (subject(check), Cell(check.verdict, check.verdict), _number(check))


def _reason(check: PhysicsCheck) -> str:
    return "" if check.verdict == "passed" else check.message


def count_verdicts(checks: Iterable[PhysicsCheck]) -> Counter[str]:
    """Count the checks of each verdict."""
    return Counter(check.verdict for check in checks)


def subject(check: PhysicsCheck) -> str:
    """Return what a check looked at."""
    match check:
        case DimerCheck():
            return f"dimer {'–'.join(check.elements)}"
        case EnergyVolumeCheck():
            structure = f": {check.structure}" if check.structure else ""
            return f"energy over volume, {check.element}{structure}"
        case DynamicsCheck():
            length = check.steps * check.timestep_fs / 1000
            return (
                f"{significant(length)} ps of dynamics at {fixed(check.temperature_k, 0)} K, "
                f"{check.structure}, {fixed(check.atoms, 0)} atoms"
            )
        case SmoothnessCheck():
            return f"smoothness {_PLACES[check.place]}, {'–'.join(check.elements)}"
        case _:
            assert_never(check)


def _number(check: PhysicsCheck) -> str:
    match check:
        case DimerCheck():
            return _quantity("repulsive below ", check.repulsive_below_angstrom, "Å")
        case EnergyVolumeCheck():
            parts = (
                _quantity("V₀ = ", check.minimum_angstrom3_per_atom, "Å³/atom"),
                _quantity("B = ", check.bulk_modulus_gpa, "GPa"),
            )
            return ", ".join(part for part in parts if part != UNKNOWN) or UNKNOWN
        case DynamicsCheck():
            return _quantity("drift ", check.drift_mev_per_atom_per_ps, "meV/atom/ps")
        case SmoothnessCheck():
            where = _quantity(" at ", check.distance_angstrom, "Å")
            jump = _quantity("jump ", check.jump_mev_per_angstrom, "meV/Å")
            return jump if UNKNOWN in (where, jump) else jump + where
        case _:
            assert_never(check)


def _quantity(prefix: str, value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{prefix}{significant(value)} {unit}"


def physics_figures(checks: Sequence[PhysicsCheck]) -> tuple[Figure, ...]:
    """Return the curves, as far as there are some: of all pairs, then of all elements."""
    drawn = [check for check in checks if has_curve(check)]
    return (
        *(dimer_figure(check) for check in drawn if isinstance(check, DimerCheck)),
        *(energy_volume_figure(check) for check in drawn if isinstance(check, EnergyVolumeCheck)),
    )
