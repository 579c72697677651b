"""The tables of one generation's page: errors, physics checks, dataset, attempts and times."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from mlip_job.evaluation.results import (
    DimerCheck,
    DynamicsCheck,
    EnergyVolumeCheck,
    SmoothnessCheck,
)
from mlip_job.models import Errors
from mlip_job.paths import generation_name
from mlip_job.report.texts import (
    ENERGY,
    FORCE,
    NARROW_SPACE,
    STRESS,
    UNKNOWN,
    Cell,
    Column,
    Table,
    count,
    duration,
    fixed,
    percent,
    row_ids,
    significant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.results import Evaluation, PhysicsCheck, SetEvaluation
    from mlip_job.report.model import TrainingReport

_PLACES = {"cutoff": "at the cutoff", "zbl_switch": "at the ZBL switch"}
_BAR = 16  # characters of the longest bar
_SIDES = ("train", "test")


def _table(
    title: str,
    columns: Iterable[str | Column],
    rows: Iterable[Iterable[str | Cell]],
    note: str = "",
) -> Table:
    """Return a table; columns without a `Column` are texts."""
    made = (Column(each, numeric=False) if isinstance(each, str) else each for each in columns)
    return Table(title, tuple(made), tuple(map(tuple, rows)), note)


# -- errors --------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """How a quantity is called in texts and tables, and its decimals."""

    name: str
    symbol: str
    unit: str
    digits: int
    errors: str


QUANTITIES = (
    Quantity("energy", "E", ENERGY, 2, "Energy errors in numbers"),
    Quantity("force component", "F", FORCE, 1, "Force errors per component"),
    Quantity("stress component", "stress", STRESS, 3, "Stress errors per component"),
)
"""In the order of `models.Three`."""


def error_statistics(evaluation: Evaluation) -> tuple[Table | None, ...]:
    """Return the statistics of the errors by quantity; None if none was measured."""
    labels = ("RMSE", "MAE", *(f"{n} % are below" for n in (50, 90, 99)), "largest", "values")
    found: list[Table | None] = []
    for number, quantity in enumerate(QUANTITIES):
        sides = [_statistics(side, number) for side in (evaluation.train, evaluation.test)]
        digits = [quantity.digits] * 6 + [0]
        rows = zip(labels, *(map(fixed, side, digits) for side in sides), strict=True)
        header: tuple[str | Column, ...] = ("", *(Column(side, quantity.unit) for side in _SIDES))
        found.append(_table(quantity.errors, header, rows) if any(map(any, sides)) else None)
    return tuple(found)


def _statistics(found: SetEvaluation | None, number: int) -> tuple[float | None, ...]:
    percentiles = found.percentiles[number] if found else None
    if found is None or percentiles is None:
        return (None,) * 7
    middle = (percentiles.p50, percentiles.p90, percentiles.p99)
    return found.rmse[number], found.mae[number], *middle, found.max[number], percentiles.count


def error_tables(evaluation: Evaluation, name: str) -> tuple[Table, ...]:
    """Return all other tables of the errors of a generation of this name."""
    tables = (
        _parent_table(evaluation, name),
        config_type_table(evaluation),
        _element_table(evaluation),
        _grade_table(evaluation),
        agreement_table(evaluation),
    )
    return tuple(table for table in tables if table is not None)


def config_type_table(evaluation: Evaluation) -> Table | None:
    """Return the errors by config type, or None for a single one."""
    sides = [side.per_config_type if side else {} for side in (evaluation.train, evaluation.test)]
    names = sorted({name for side in sides for name in side})
    if len(names) <= 1:
        return None
    errors = {name: [side.get(name) or Errors() for side in sides] for name in names}
    measured = [
        (number, quantity)
        for number, quantity in enumerate(QUANTITIES)
        if any(found.rmse[number] is not None for found in chain(*errors.values()))
    ]
    rows = (
        (
            name or "(none)",
            *(fixed(side[name].structures if name in side else None, 0) for side in sides),
            *(fixed(found.rmse[n], q.digits) for n, q in measured for found in errors[name]),
            fixed(errors[name][1].max_force_mev_per_angstrom),
        )
        for name in names
    )
    columns: tuple[str | Column, ...] = (
        "config type",
        *map(Column, _SIDES),
        *(Column(f"{q.symbol} {side}", q.unit) for _, q in measured for side in _SIDES),
        Column("largest F test", FORCE),
    )
    return _table("By config type", columns, rows, "RMSE; train and test: numbers of structures.")


def _element_table(evaluation: Evaluation) -> Table | None:
    sides = [side.per_element if side else {} for side in (evaluation.train, evaluation.test)]
    elements = sorted({element for side in sides for element in side})
    if len(elements) <= 1:
        return None
    rows = []
    for element in elements:
        both = [side.get(element) or Errors() for side in sides]
        force = [(found.rmse[1], found.mae[1], found.max[1]) for found in both]
        rows.append((element, *map(fixed, chain(*zip(*force, strict=True)))))
    names = ("RMSE", "MAE", "largest")
    columns = (Column(f"{name} {side}", FORCE) for name in names for side in _SIDES)
    return _table("Force errors by element", ("element", *columns), rows)


def _grade_table(evaluation: Evaluation) -> Table | None:
    """Return the extrapolation grades, or None without an active set."""
    rows = [
        (
            side,
            *(fixed(v, 2) for v in (grade.p50, grade.p90, grade.p99, grade.max)),
            f"{fixed(grade.above_one, 0)} of {fixed(grade.count, 0)}",
        )
        for side, found in zip(_SIDES, (evaluation.train, evaluation.test), strict=True)
        if found is not None and (grade := found.extrapolation_grade) is not None
    ]
    if not rows:
        return None
    names = ("median", "90 %", "99 %", "largest", "above 1")
    note = "Of a structure the largest over its atoms; above 1 the potential extrapolates."
    return _table("Extrapolation grades", ("set", *map(Column, names)), rows, note)


def agreement_table(evaluation: Evaluation) -> Table | None:
    """Return the errors measured here and those that the trainer reported."""
    if not evaluation.agreement:
        return None
    note = "RMSE of the published potential, and of the model in the trainer."
    if (found := evaluation.conversion) is not None:
        note += (
            f" On {count(found.structures, 'structure')} potential.yace and potential.yaml differ "
            f"by no more than {significant(found.max_energy_difference_mev_per_atom)} {ENERGY} and "
            f"{significant(found.max_force_difference_mev_per_angstrom)} {FORCE}."
        )
    pairs = [
        list(zip(agreed.errors.rmse, agreed.errors_by_trainer.rmse, strict=True))
        for agreed in evaluation.agreement
    ]
    stressed = any(stress != (None, None) for _, _, stress in pairs)
    shown = QUANTITIES if stressed else QUANTITIES[:2]
    columns = (
        Column(f"{quantity.symbol} {source}", quantity.unit)
        for quantity in shown
        for source in ("here", "by the trainer")
    )
    rows = (
        (
            agreed.side,
            *(fixed(rmse, 3) for rmse in chain(*both[: len(shown)])),
            f"{100 * agreed.relative_tolerance:g}{NARROW_SPACE}%",
        )
        for agreed, both in zip(evaluation.agreement, pairs, strict=True)
    )
    header: tuple[str | Column, ...] = ("set", *columns, Column("tolerance"))
    return _table("Agreement with the trainer", header, rows, note)


def _parent_table(evaluation: Evaluation, name: str) -> Table | None:
    if (comparison := evaluation.parent) is None:
        return None
    parent = generation_name(comparison.generation)
    rows = (
        (
            f"{quantity.name} ({quantity.unit})",
            fixed(rmse.old, quantity.digits),
            fixed(rmse.new, quantity.digits),
            percent(rmse.relative),
        )
        for quantity, rmse in zip(QUANTITIES, comparison.rmse, strict=True)
        if rmse is not None
    )
    return _table(
        f"{name} and {parent} on the same {count(comparison.structures, 'structure')}",
        ("RMSE", Column(parent), Column(name), Column("change")),
        rows,
        "Structures that are in neither training set, evaluated with both potentials.",
    )


def worst_tables(evaluation: Evaluation | None) -> Iterator[Table]:
    """Yield the structures with the largest errors, of the test set first."""
    if evaluation is None:
        return
    for side, found in (("test", evaluation.test), ("train", evaluation.train)):
        if found is None or not found.worst:
            continue
        columns: list[str | Column] = [
            Column("row"),
            "formula",
            "config type",
            Column("energy error", ENERGY),
            Column("largest force error", FORCE),
            Column("grade"),
        ]
        rows = [
            [
                str(worst.row_id),
                worst.formula,
                worst.config_type or UNKNOWN,
                fixed(worst.energy_error_mev_per_atom, 2),
                fixed(worst.max_force_error_mev_per_angstrom),
                fixed(worst.extrapolation_grade, 2),
            ]
            for worst in found.worst
        ]
        if all(worst.extrapolation_grade is None for worst in found.worst):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        yield _table(f"Worst {side} structures", columns, rows, "row: id in the database.")


# -- physics -------------------------------------------------------------------------------------


def physics_table(checks: Sequence[PhysicsCheck]) -> Table:
    """Return every check with its verdict and number, and the reason if it did not pass."""
    columns = ("check", "verdict", "number", "reason")
    rows = [
        (
            subject(check),
            Cell(check.verdict, check.verdict),
            _number(check),
            "" if check.verdict == "passed" else check.message,
        )
        for check in checks
    ]
    shown = 4 if any(check.verdict != "passed" for check in checks) else 3
    return _table("Physics checks", columns[:shown], (row[:shown] for row in rows))


def count_verdicts(checks: Iterable[PhysicsCheck]) -> Counter[str]:
    """Count the checks of each verdict."""
    return Counter(check.verdict for check in checks)


def subject(check: PhysicsCheck) -> str:
    """Return the subject of a check."""
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


def _number(check: PhysicsCheck) -> str:
    match check:
        case DimerCheck():
            found = [("repulsive below ", check.repulsive_below_angstrom, " Å")]
        case EnergyVolumeCheck():
            found = [
                ("V₀ = ", check.minimum_angstrom3_per_atom, " Å³/atom"),
                (", B = ", check.bulk_modulus_gpa, " GPa"),
            ]
        case DynamicsCheck():
            found = [("drift ", check.drift_mev_per_atom_per_ps, " meV/atom/ps")]
        case SmoothnessCheck():
            found = [
                ("jump ", check.jump_mev_per_angstrom, " meV/Å"),
                (" at ", check.distance_angstrom, " Å"),
            ]
    known = (f"{what}{significant(x)}{unit}" for what, x, unit in found if x is not None)
    return "".join(known) or UNKNOWN


# -- dataset and times ---------------------------------------------------------------------------


def dataset_tables(record: DatasetRecord, report: TrainingReport) -> tuple[Table, ...]:
    """Return the tables of elements, config types and rejected rows that are not empty."""
    energies = report.dataset.reference_energies_ev
    sources = report.dataset.reference_energy_sources
    reference = Column("reference energy", "eV/atom")
    elements = _table(
        "Elements",
        ("element", Column("structures"), Column("atoms"), reference, "from"),
        (
            (
                element,
                fixed(counts.structures, 0),
                fixed(counts.atoms, 0),
                fixed(energies.get(element), 6),
                sources.get(element, UNKNOWN).replace("_", " "),
            )
            for element, counts in record.per_element.items()
        ),
        report.energy_reference,
    )
    train, test = record.config_types.train, record.config_types.test
    names = sorted({*train, *test})
    config_types = _table(
        "Config types",
        ("config type", *map(Column, _SIDES)),
        (
            (name or "(none)", *(fixed(side.get(name, 0), 0) for side in (train, test)))
            for name in (names if any(names) else ())
        ),
    )
    rejected = _table(
        "Rejected rows",
        ("reason", Column("number"), "rows"),
        (
            (reason.replace("_", " "), fixed(rows.count, 0), row_ids(rows.rows))
            for reason, rows in record.rejections.items()
        ),
    )
    return tuple(table for table in (elements, config_types, rejected) if table.rows)


def attempts_table(report: TrainingReport) -> Table:
    """Return the attempts of the fit."""
    times = (Column("iterations"), Column("trainer after"), Column("wall time"))
    return _table(
        "Attempts",
        (Column(""), "attempt", "started (UTC)", *times),
        (
            (
                str(number),
                part.attempt,
                f"{part.started:%Y-%m-%d %H:%M}",
                fixed(part.iterations, 0),
                duration(part.timings.to_trainer_s),
                duration(sum(part.timings.stages_s.values()) or None),
            )
            for number, part in enumerate(report.attempts, start=1)
        ),
        "trainer after: from the start of the job's process to the trainer's; wall time up to this "
        "report, or to an attempt's last checkpoint.",
    )


def time_table(report: TrainingReport) -> Table:
    """Return the time of each stage, that of the fit by the trainer's phases."""
    seconds: dict[str, float] = {}
    for stage, time in report.timings_s.items():
        if stage == "fit" and report.phases_s:
            seconds |= {f"fit: {name}": phase for name, phase in report.phases_s.items()}
            rest = max(0.0, time - sum(report.phases_s.values()))
            seconds["fit: checkpoints and the rest"] = rest
        else:
            seconds[stage] = time
    total = sum(seconds.values()) or 1.0
    longest = max(seconds.values(), default=0.0) or 1.0
    return _table(
        "Time by stage",
        ("stage", Column("time"), Column("share"), ""),
        (
            (
                stage.replace("_", " "),
                duration(time),
                f"{fixed(100 * time / total, 0)}{NARROW_SPACE}%",
                "█" * round(_BAR * time / longest),
            )
            for stage, time in seconds.items()
        ),
    )
