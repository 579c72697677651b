"""The tables of one generation's page: errors, physics checks, dataset, attempts and times."""

from __future__ import annotations

from collections import Counter
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
    from mlip_job.evaluation.results import (
        Evaluation,
        PhysicsCheck,
        SetEvaluation,
    )
    from mlip_job.report.model import TrainingReport

_PLACES = {"cutoff": "at the cutoff", "zbl_switch": "at the ZBL switch"}
_BAR = 16  # characters of the longest bar
_SIDES = ("train", "test")


def _text(name: str) -> Column:
    return Column(name, numeric=False)


# -- errors --------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """How a quantity is called in texts and tables, and its decimals."""

    name: str
    symbol: str
    unit: str
    digits: int


QUANTITIES = (
    Quantity("energy", "E", ENERGY, 2),
    Quantity("force", "F", FORCE, 1),
    Quantity("stress", "stress", STRESS, 3),
)
"""In the order of `models.Three`."""

_TITLES = ("Energy errors in numbers", "Force errors per component", "Stress errors per component")


def error_statistics(evaluation: Evaluation) -> tuple[Table | None, ...]:
    """Return the statistics of the errors by quantity; None if none was measured."""
    labels = ("RMSE", "MAE", *(f"{n} % are below" for n in (50, 90, 99)), "largest", "values")
    found: list[Table | None] = []
    for number, (title, quantity) in enumerate(zip(_TITLES, QUANTITIES, strict=True)):
        sides = [_statistics(side, number) for side in (evaluation.train, evaluation.test)]
        digits = [quantity.digits] * 6 + [0]
        columns = [map(fixed, side, digits) for side in sides]
        header = (_text(""), *(Column(side, quantity.unit) for side in _SIDES))
        table = Table(title, header, tuple(zip(labels, *columns, strict=True)))
        found.append(table if any(map(any, sides)) else None)
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
    train = evaluation.train.per_config_type
    test = evaluation.test.per_config_type if evaluation.test else {}
    kinds = {name: (train.get(name), test.get(name)) for name in sorted({*train, *test})}
    if len(kinds) <= 1:
        return None
    errors = {name: [found or Errors() for found in both] for name, both in kinds.items()}
    measured = [
        (number, quantity)
        for number, quantity in enumerate(QUANTITIES)
        if any(found.rmse[number] is not None for both in errors.values() for found in both)
    ]
    rows = [
        (
            name or "(none)",
            *(fixed(found.structures if found else None, 0) for found in both),
            *(fixed(found.rmse[n], q.digits) for n, q in measured for found in errors[name]),
            fixed(errors[name][1].max_force_mev_per_angstrom),
        )
        for name, both in kinds.items()
    ]
    columns = (
        _text("config type"),
        *(Column(side) for side in _SIDES),
        *(Column(f"{q.symbol} {side}", q.unit) for _, q in measured for side in _SIDES),
        Column("largest F test", FORCE),
    )
    note = "RMSE; train and test: numbers of structures."
    return Table("By config type", columns, tuple(rows), note)


def _element_table(evaluation: Evaluation) -> Table | None:
    train = evaluation.train.per_element
    test = evaluation.test.per_element if evaluation.test else {}
    elements = sorted({*train, *test})
    if len(elements) <= 1:
        return None
    rows = []
    for element in elements:
        both = [found.get(element, Errors()) for found in (train, test)]
        rmse = (found.rmse_force_mev_per_angstrom for found in both)
        mae = (found.mae_force_mev_per_angstrom for found in both)
        largest = (found.max_force_mev_per_angstrom for found in both)
        rows.append((element, *map(fixed, (*rmse, *mae, *largest))))
    columns = (
        Column(f"{name} {side}", FORCE) for name in ("RMSE", "MAE", "largest") for side in _SIDES
    )
    return Table("Force errors by element", (_text("element"), *columns), tuple(rows))


def _grade_table(evaluation: Evaluation) -> Table | None:
    """Return the extrapolation grades, or None without an active set."""
    rows = tuple(
        (
            side,
            *(fixed(v, 2) for v in (grade.p50, grade.p90, grade.p99, grade.max)),
            f"{fixed(grade.above_one, 0)} of {fixed(grade.count, 0)}",
        )
        for side, found in zip(_SIDES, (evaluation.train, evaluation.test), strict=True)
        if found is not None and (grade := found.extrapolation_grade) is not None
    )
    if not rows:
        return None
    names = ("median", "90 %", "99 %", "largest", "above 1")
    return Table(
        "Extrapolation grades",
        (_text("set"), *(Column(name) for name in names)),
        rows,
        "Of a structure the largest over its atoms; above 1 the potential extrapolates.",
    )


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
    compared = [
        list(zip(found.errors.rmse, found.errors_by_trainer.rmse, strict=True))
        for found in evaluation.agreement
    ]
    stressed = any(stress != (None, None) for _, _, stress in compared)
    quantities = QUANTITIES if stressed else QUANTITIES[:2]
    columns = (
        Column(f"{quantity.symbol} {source}", quantity.unit)
        for quantity in quantities
        for source in ("here", "by the trainer")
    )
    rows = (
        (
            found.side,
            *(fixed(rmse, 3) for both in pairs[: len(quantities)] for rmse in both),
            f"{100 * found.relative_tolerance:g}{NARROW_SPACE}%",
        )
        for found, pairs in zip(evaluation.agreement, compared, strict=True)
    )
    all_columns = (_text("set"), *columns, Column("tolerance"))
    return Table("Agreement with the trainer", all_columns, tuple(rows), note)


def _parent_table(evaluation: Evaluation, name: str) -> Table | None:
    comparison = evaluation.parent
    if comparison is None:
        return None
    parent = generation_name(comparison.generation)
    names = ("energy", "force component", "stress component")
    return Table(
        f"{name} and {parent} on the same {count(comparison.structures, 'structure')}",
        (_text("RMSE"), Column(parent), Column(name), Column("change")),
        tuple(
            (
                f"{quantity} ({unit})",
                fixed(rmse.old, digits),
                fixed(rmse.new, digits),
                percent(rmse.relative),
            )
            for quantity, (*_, unit, digits), rmse in zip(
                names, QUANTITIES, comparison.rmse, strict=True
            )
            if rmse is not None
        ),
        "Structures that are in neither training set, evaluated with both potentials.",
    )


def worst_tables(evaluation: Evaluation | None) -> Iterator[Table]:
    """Yield the structures with the largest errors, of the test set first."""
    if evaluation is None:
        return
    for side, found in (("test", evaluation.test), ("train", evaluation.train)):
        if found is None or not found.worst:
            continue
        graded = any(worst.extrapolation_grade is not None for worst in found.worst)
        columns = (
            Column("row"),
            _text("formula"),
            _text("config type"),
            Column("energy error", ENERGY),
            Column("largest force error", FORCE),
            *([Column("grade")] if graded else []),
        )
        rows = (
            (
                str(worst.row_id),
                worst.formula,
                worst.config_type or UNKNOWN,
                fixed(worst.energy_error_mev_per_atom, 2),
                fixed(worst.max_force_error_mev_per_angstrom),
                *([fixed(worst.extrapolation_grade, 2)] if graded else []),
            )
            for worst in found.worst
        )
        yield Table(f"Worst {side} structures", columns, tuple(rows), "row: id in the database.")


# -- physics -------------------------------------------------------------------------------------


def physics_table(checks: Sequence[PhysicsCheck]) -> Table:
    """Return every check with its verdict and number, and the reason if it did not pass."""
    explained = any(check.verdict != "passed" for check in checks)
    names = ("check", "verdict", "number", *(["reason"] if explained else []))
    rows = []
    for check in checks:
        reason = "" if check.verdict == "passed" else check.message
        row = (subject(check), Cell(check.verdict, check.verdict), _number(check))
        rows.append((*row, reason) if explained else row)
    return Table("Physics checks", tuple(map(_text, names)), tuple(rows))


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


def _quantity(prefix: str, value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{prefix}{significant(value)} {unit}"


# -- dataset and times ---------------------------------------------------------------------------


def dataset_tables(record: DatasetRecord, report: TrainingReport) -> tuple[Table, ...]:
    """Return the tables of elements, config types and rejected rows that are not empty."""
    energies = report.dataset.reference_energies_ev
    sources = report.dataset.reference_energy_sources
    elements = Table(
        "Elements",
        (
            _text("element"),
            Column("structures"),
            Column("atoms"),
            Column("reference energy", "eV/atom"),
            _text("from"),
        ),
        tuple(
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
    config_types = Table(
        "Config types",
        (_text("config type"), Column("train"), Column("test")),
        tuple(
            (name or "(none)", fixed(train.get(name, 0), 0), fixed(test.get(name, 0), 0))
            for name in sorted({*train, *test})
        ),
    )
    rejected = Table(
        "Rejected rows",
        (_text("reason"), Column("number"), _text("rows")),
        tuple(
            (reason.replace("_", " "), fixed(rows.count, 0), row_ids(rows.rows))
            for reason, rows in record.rejections.items()
        ),
    )
    shown = (elements, *([config_types] if any({*train, *test}) else []), rejected)
    return tuple(table for table in shown if table.rows)


def attempts_table(report: TrainingReport) -> Table:
    """Return the attempts of the fit."""
    return Table(
        "Attempts",
        (
            Column(""),
            _text("attempt"),
            _text("started (UTC)"),
            Column("iterations"),
            Column("trainer after"),
            Column("wall time"),
        ),
        tuple(
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
    return Table(
        "Time by stage",
        (_text("stage"), Column("time"), Column("share"), _text("")),
        tuple(
            (
                stage.replace("_", " "),
                duration(time),
                f"{fixed(100 * time / total, 0)}{NARROW_SPACE}%",
                "█" * round(_BAR * time / longest),
            )
            for stage, time in seconds.items()
        ),
    )
