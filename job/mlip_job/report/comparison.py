"""Several generations held against each other: their figures, and those on the same structures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlip_job.naming import generation_name
from mlip_job.report.error_tables import ENERGY, FORCE, STRESS
from mlip_job.report.headline import verdict
from mlip_job.report.numbers import fixed, percent
from mlip_job.report.physics import count_verdicts
from mlip_job.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlip_job.evaluation.results import ErrorPair, Evaluation
    from mlip_job.report.model import TrainingReport

Number = float | int | None


@dataclass(frozen=True)
class Quantity:
    """A figure that every generation has, or None where it is not known.

    Attributes
    ----------
    key
        Its name in JSON, with the unit.
    label, unit, digits
        How people see it.
    of
        Returns it.
    """

    key: str
    label: str
    unit: str
    digits: int
    of: Callable[[TrainingReport], Number]


@dataclass(frozen=True)
class Step:
    """Two of the generations on the same structures, both evaluated when the newer one was made."""

    old: int
    new: int
    structures: int
    energy_mev_per_atom: ErrorPair
    force_mev_per_angstrom: ErrorPair


def figures_of(report: TrainingReport) -> dict[str, Any]:
    """Return all figures of a generation by their keys."""
    evaluation = report.evaluation
    return {
        "generation": report.generation,
        "started_from": report.parent.generation if report.parent is not None else None,
        "accepted": evaluation.gate.accepted if evaluation is not None else None,
        "limits_set": evaluation.gate.limits_set if evaluation is not None else None,
        **{quantity.key: quantity.of(report) for quantity in QUANTITIES},
    }


def steps_between(reports: Sequence[TrainingReport]) -> tuple[Step, ...]:
    """Return the comparisons on the same structures that the reports hold, among themselves."""
    numbers = {report.generation for report in reports}
    return tuple(
        Step(
            old=compared.generation,
            new=report.generation,
            structures=compared.structures,
            energy_mev_per_atom=compared.energy_mev_per_atom,
            force_mev_per_angstrom=compared.force_mev_per_angstrom,
        )
        for report in reports
        if report.evaluation is not None
        and (compared := report.evaluation.parent) is not None
        and compared.generation in numbers
    )


def comparison_document(reports: Sequence[TrainingReport]) -> dict[str, Any]:
    """Return the comparison as JSON."""
    return {
        "family": reports[0].family,
        "generations": [figures_of(report) for report in reports],
        "on_the_same_structures": [
            asdict(step)
            | {
                key: getattr(step, key).model_dump()
                for key in ("energy_mev_per_atom", "force_mev_per_angstrom")
            }
            for step in steps_between(reports)
        ],
    }


def _start(report: TrainingReport) -> str:
    if report.parent is not None:
        return generation_name(report.parent.generation)
    return "a linear fit" if report.linear_start is not None else "nothing"


def figures_table(reports: Sequence[TrainingReport]) -> Table:
    """Return the figures, a column for each generation."""
    names = [generation_name(report.generation) for report in reports]
    verdicts = [verdict(report.evaluation) for report in reports]
    starts = [_start(report) for report in reports]
    rows: list[tuple[str | Cell, ...]] = [
        ("verdict", *(Cell(v.word.lower(), v.css) for v in verdicts)),
        ("started from", *starts),
    ]
    for quantity in QUANTITIES:
        values = [quantity.of(report) for report in reports]
        if any(value is not None for value in values):
            heading = Column(quantity.label, quantity.unit).heading
            rows.append((heading, *(fixed(value, quantity.digits) for value in values)))
    return Table(
        "Figures",
        (Column("", numeric=False), *(Column(name) for name in names)),
        tuple(rows),
        "Errors are each on the generation's own sets; those of forces are per component.",
    )


def steps_table(reports: Sequence[TrainingReport]) -> Table | None:
    """Return the comparisons on the same structures, or None where the reports hold none."""
    steps = steps_between(reports)
    if not steps:
        return None
    return Table(
        "On the same structures",
        (
            Column("generations", numeric=False),
            Column("structures"),
            *(
                Column(name, unit)
                for quantity, unit in (("E", ENERGY), ("F", FORCE))
                for name, unit in (
                    (f"RMSE {quantity} before", unit),
                    ("after", unit),
                    ("change", ""),
                )
            ),
        ),
        tuple(_step_row(step) for step in steps),
        "Structures that were in neither's training set.",
    )


def _step_row(step: Step) -> tuple[str | Cell, ...]:
    cells: list[str | Cell] = []
    for pair, digits in ((step.energy_mev_per_atom, 2), (step.force_mev_per_angstrom, 1)):
        css = "" if not pair.change else "worse" if pair.change > 0 else "better"
        cells += [fixed(pair.old, digits), fixed(pair.new, digits), Cell(percent(pair.change), css)]
    names = f"{generation_name(step.old)} → {generation_name(step.new)}"
    return (names, str(step.structures), *cells)


def _error(side: str, quantity: str, statistic: str) -> Callable[[TrainingReport], Number]:
    """Return a function that finds an error of the published potential, or else pacemaker's."""

    def find(report: TrainingReport) -> Number:
        if report.evaluation is not None:
            found = getattr(getattr(report.evaluation, side), quantity, None)
            value: float | None = getattr(found, statistic) if found is not None else None
            return value
        by_pacemaker: float | None = getattr(
            getattr(report.fit, side), f"{statistic}_{quantity}", None
        )
        return by_pacemaker

    return find


def _evaluated(find: Callable[[Evaluation], Number]) -> Callable[[TrainingReport], Number]:
    return lambda report: find(report.evaluation) if report.evaluation is not None else None


def _verdicts(verdict: str) -> Callable[[TrainingReport], Number]:
    return _evaluated(
        lambda evaluation: (
            count_verdicts(evaluation.physics)[verdict] if evaluation.physics else None
        )
    )


def _largest_grade(evaluation: Evaluation) -> Number:
    grade = evaluation.test.extrapolation_grade if evaluation.test is not None else None
    return grade.max if grade is not None else None


def _evaluator_time(evaluation: Evaluation) -> Number:
    return evaluation.speed.evaluator_us_per_atom if evaluation.speed is not None else None


QUANTITIES = (
    Quantity("train_structures", "train", "structures", 0, lambda r: r.dataset.train),
    Quantity("test_structures", "test", "structures", 0, lambda r: r.dataset.test),
    Quantity("functions", "basis functions", "", 0, lambda r: r.fit.functions),
    Quantity("iterations", "iterations", "", 0, lambda r: r.fit.iterations),
    *(
        Quantity(
            f"{statistic}_{side}_{quantity}",
            f"{word} {symbol} {side}",
            unit,
            digits,
            _error(side, quantity, statistic),
        )
        for quantity, symbol, unit, digits in (
            ("energy_mev_per_atom", "E", ENERGY, 2),
            ("force_mev_per_angstrom", "F", FORCE, 1),
            ("stress_gpa", "stress", STRESS, 3),
        )
        for statistic, word in (("rmse", "RMSE"), ("mae", "MAE"), ("max", "largest"))
        for side in ("train", "test")
    ),
    Quantity("largest_test_grade", "largest grade, test", "", 2, _evaluated(_largest_grade)),
    Quantity("checks_passed", "physics checks passed", "", 0, _verdicts("passed")),
    Quantity("checks_failed", "physics checks failed", "", 0, _verdicts("failed")),
    Quantity("evaluator_us_per_atom", "evaluator", "µs/atom", 1, _evaluated(_evaluator_time)),
    Quantity("fit_seconds", "fit", "s", 0, lambda r: r.timings_s.get("fit")),
)
