"""Tables of errors: overall, by config type, by element, worst structures, held against others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.report.numbers import NARROW_SPACE, UNKNOWN, count, fixed, percent, significant
from mlip_job.report.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlip_job.evaluation.results import (
        Conversion,
        ErrorPair,
        ErrorStatistics,
        Evaluation,
        SetEvaluation,
        WorstStructure,
    )
    from mlip_job.training.summary import Errors, RunSummary

ENERGY, FORCE, STRESS = "meV/atom", "meV/Å", "GPa"

Row = tuple[str, ...]

_STATISTICS = (
    ("rmse", "RMSE"),
    ("mae", "MAE"),
    ("p50", "50 % are below"),
    ("p90", "90 % are below"),
    ("p99", "99 % are below"),
    ("max", "largest"),
    ("count", "values"),
)


def statistics_table(
    title: str, unit: str, digits: int, train: ErrorStatistics | None, test: ErrorStatistics | None
) -> Table | None:
    """Return the errors of one quantity, or None where it is not known."""
    if train is None and test is None:
        return None

    def cell(found: ErrorStatistics | None, name: str) -> str:
        value = None if found is None else getattr(found, name)
        return fixed(value, 0 if name == "count" else digits)

    return Table(
        title,
        (Column("", numeric=False), Column("train", unit), Column("test", unit)),
        tuple((label, cell(train, name), cell(test, name)) for name, label in _STATISTICS),
    )


def pacemaker_table(fit: RunSummary) -> Table:
    """Return the errors that pacemaker itself reported."""
    units = (ENERGY, FORCE)
    sides: Iterable[tuple[str, Errors | None]] = (
        ("train", fit.train),
        (fit.second_set, fit.test),
    )
    return Table(
        "Errors by pacemaker",
        (
            Column("set", numeric=False),
            *(Column(f"{s} {q}", u) for s in ("RMSE", "MAE", "largest") for q, u in _named(units)),
        ),
        tuple(_pacemaker_row(side, errors) for side, errors in sides if errors is not None),
        "E per atom, F per component.",
    )


def _pacemaker_row(side: str, errors: Errors) -> Row:
    return (
        side,
        fixed(errors.rmse_energy_mev_per_atom, 2),
        fixed(errors.rmse_force_mev_per_angstrom),
        fixed(errors.mae_energy_mev_per_atom, 2),
        fixed(errors.mae_force_mev_per_angstrom),
        fixed(errors.max_energy_mev_per_atom, 2),
        fixed(errors.max_force_mev_per_angstrom),
    )


def config_type_table(evaluation: Evaluation) -> Table | None:
    """Return the errors by config type, or None where there is but one."""
    sides = (evaluation.train, evaluation.test)
    names = sorted({name for side in sides if side is not None for name in side.per_config_type})
    if len(names) <= 1:
        return None
    return Table(
        "By config type",
        (
            Column("config type", numeric=False),
            Column("train"),
            Column("test"),
            *(Column(f"{q} {side}", unit) for q, unit, side in _both_sides()),
            Column("largest F test", FORCE),
        ),
        tuple(_config_type_row(name, evaluation) for name in names),
        "RMSE; train and test: numbers of structures.",
    )


def _config_type_row(name: str, evaluation: Evaluation) -> Row:
    train, test = (
        side.per_config_type.get(name) if side is not None else None
        for side in (evaluation.train, evaluation.test)
    )
    both = (train, test)
    return (
        name or "(none)",
        *(fixed(found.structures, 0) if found else UNKNOWN for found in both),
        *(fixed(found.energy_mev_per_atom.rmse, 2) if found else UNKNOWN for found in both),
        *(fixed(found.force_mev_per_angstrom.rmse) if found else UNKNOWN for found in both),
        fixed(test.force_mev_per_angstrom.max) if test else UNKNOWN,
    )


def element_table(evaluation: Evaluation) -> Table | None:
    """Return the force errors by element, or None where there is but one."""
    train, test = (
        side.force_per_element_mev_per_angstrom if side is not None else {}
        for side in (evaluation.train, evaluation.test)
    )
    elements = sorted({*train, *test})
    if len(elements) <= 1:
        return None
    statistics = ("rmse", "mae", "max")
    columns = (
        Column(f"{name} {side}", FORCE)
        for name in ("RMSE", "MAE", "largest")
        for side in ("train", "test")
    )
    return Table(
        "Force errors by element",
        (Column("element", numeric=False), *columns),
        tuple(
            (
                element,
                *(
                    fixed(getattr(found[element], name)) if element in found else UNKNOWN
                    for name in statistics
                    for found in (train, test)
                ),
            )
            for element in elements
        ),
    )


def worst_table(side: str, found: SetEvaluation) -> Table:
    """Return the structures that the potential describes worst."""
    graded = any(worst.extrapolation_grade is not None for worst in found.worst)
    columns = (
        Column("row"),
        Column("formula", numeric=False),
        Column("config type", numeric=False),
        Column("energy error", ENERGY),
        Column("largest force error", FORCE),
        *([Column("grade")] if graded else []),
    )
    rows = (_worst_row(worst, graded=graded) for worst in found.worst)
    return Table(f"Worst {side} structures", columns, tuple(rows), "row: id in the database.")


def _worst_row(worst: WorstStructure, *, graded: bool) -> Row:
    return (
        str(worst.row_id),
        worst.formula,
        worst.config_type or UNKNOWN,
        fixed(worst.energy_error_mev_per_atom, 2),
        fixed(worst.max_force_error_mev_per_angstrom),
        *([fixed(worst.extrapolation_grade, 2)] if graded else []),
    )


def grade_table(evaluation: Evaluation) -> Table | None:
    """Return the extrapolation grades, or None where there is no active set."""
    sides = {"train": evaluation.train, "test": evaluation.test}
    rows = tuple(
        (
            side,
            *(fixed(v, 2) for v in (grade.p50, grade.p90, grade.p99, grade.max)),
            f"{fixed(grade.above_one, 0)} of {fixed(grade.count, 0)}",
        )
        for side, found in sides.items()
        if found is not None and (grade := found.extrapolation_grade) is not None
    )
    if not rows:
        return None
    return Table(
        "Extrapolation grades",
        (
            Column("set", numeric=False),
            *(Column(name) for name in ("median", "90 %", "99 %", "largest", "above 1")),
        ),
        rows,
        "Of a structure the largest over its atoms; above 1 the potential extrapolates.",
    )


def agreement_table(evaluation: Evaluation) -> Table | None:
    """Return the potential's errors beside pacemaker's own."""
    if not evaluation.agreement:
        return None
    columns = (
        Column(f"{quantity} {source}", unit)
        for quantity, unit in _named((ENERGY, FORCE))
        for source in ("here", "by pacemaker")
    )
    return Table(
        "Agreement with pacemaker",
        (Column("set", numeric=False), *columns, Column("tolerance")),
        tuple(
            (
                agreement.side,
                fixed(agreement.energy_mev_per_atom, 3),
                fixed(agreement.energy_by_pacemaker_mev_per_atom, 3),
                fixed(agreement.force_mev_per_angstrom, 3),
                fixed(agreement.force_by_pacemaker_mev_per_angstrom, 3),
                f"{100 * agreement.relative_tolerance:g}{NARROW_SPACE}%",
            )
            for agreement in evaluation.agreement
        ),
        "RMSE of the published potential, and of the model in the trainer."
        + _conversion(evaluation.conversion),
    )


def _conversion(found: Conversion | None) -> str:
    """Return in a sentence how far the published potential is from what it was made from."""
    if found is None:
        return ""
    return (
        f" On {count(found.structures, 'structure')} potential.yace and potential.yaml differ by "
        f"no more than {significant(found.max_energy_difference_mev_per_atom)} {ENERGY} and "
        f"{significant(found.max_force_difference_mev_per_angstrom)} {FORCE}."
    )


def parent_table(evaluation: Evaluation, name: str, parent: str) -> Table | None:
    """Return the comparison with the predecessor on the same structures."""
    comparison = evaluation.parent
    if comparison is None:
        return None

    def row(quantity: str, pair: ErrorPair, digits: int) -> Row:
        return (quantity, fixed(pair.old, digits), fixed(pair.new, digits), percent(pair.change))

    return Table(
        f"{name} and {parent} on the same {count(comparison.structures, 'structure')}",
        (Column("RMSE", numeric=False), Column(parent), Column(name), Column("change")),
        (
            row(f"energy ({ENERGY})", comparison.energy_mev_per_atom, 2),
            row(f"force component ({FORCE})", comparison.force_mev_per_angstrom, 1),
        ),
        "Structures that were in neither's training set, both potentials evaluated now.",
    )


def _named(units: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("E", units[0]), ("F", units[1]))


def _both_sides() -> Iterable[tuple[str, str, str]]:
    return ((q, unit, side) for q, unit in _named((ENERGY, FORCE)) for side in ("train", "test"))
