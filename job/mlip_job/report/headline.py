"""What stands at the top of a page: the verdict, and the figures that decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.config.evaluation import verdict_word
from mlip_job.naming import generation_name
from mlip_job.report.error_tables import ENERGY, FORCE, STRESS
from mlip_job.report.numbers import count, percent, significant
from mlip_job.report.physics import count_verdicts, subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.evaluation.results import ErrorPair, Evaluation, PhysicsCheck
    from mlip_job.report.model import TrainingReport

_SAME = 0.02  # a change of less than 2 % is called none


@dataclass(frozen=True)
class Detail:
    """A line of a card; ``css`` is ``better`` or ``worse`` where it says so."""

    text: str
    css: str = ""


@dataclass(frozen=True)
class Card:
    """One figure with its unit, and what it is to be held against."""

    title: str
    value: str
    unit: str
    details: tuple[Detail, ...]
    css: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether the generation may be used, and why not."""

    css: str
    word: str
    reasons: tuple[str, ...]


def verdict(evaluation: Evaluation | None) -> Verdict:
    """Return the gate's verdict in words."""
    if evaluation is None:
        return Verdict("skipped", "Not evaluated", ("The published potential was not evaluated.",))
    gate = evaluation.gate
    word = verdict_word(accepted=gate.accepted, limits_set=gate.limits_set).capitalize()
    passed = "passed" if gate.limits_set else "skipped"
    return Verdict(passed if gate.accepted else "failed", word, gate.reasons)


def cards(report: TrainingReport, parent: TrainingReport | None) -> tuple[Card, ...]:
    """Return the figures that decide, beside the parent's."""
    found = report.evaluation
    shown = [
        _error_card("Energy RMSE, test", ENERGY, "energy_mev_per_atom", report, parent),
        _error_card("Force RMSE, test", FORCE, "force_mev_per_angstrom", report, parent),
    ]
    if found is None:
        return tuple(shown)
    if found.test is not None and (stress := found.test.stress_gpa) is not None:
        train = found.train.stress_gpa
        details = [Detail(f"train {significant(train.rmse)}")] if train else []
        shown.append(Card("Stress RMSE, test", significant(stress.rmse), STRESS, tuple(details)))
    if found.physics:
        shown.append(_physics_card(found.physics))
    if found.test is not None and (grade := found.test.extrapolation_grade) is not None:
        outside = f"{grade.above_one} of {count(grade.count, 'test structure')} above 1"
        shown.append(
            Card("Largest extrapolation grade", significant(grade.max), "", (Detail(outside),))
        )
    return tuple(shown)


def _error_card(
    title: str, unit: str, key: str, report: TrainingReport, parent: TrainingReport | None
) -> Card:
    test, train = _rmse(report, "test", key), _rmse(report, "train", key)
    details = [Detail(f"train {significant(train)}")]
    if not report.dataset.test:
        details.append(Detail("nothing was held out", "worse"))
    evaluation = report.evaluation
    if evaluation is not None and evaluation.parent is not None:
        pair: ErrorPair = getattr(evaluation.parent, key)
        details += _beside_parent(pair, evaluation.parent.generation, evaluation.parent.structures)
    elif parent is not None:
        own = significant(_rmse(parent, "test", key))
        details.append(Detail(f"{generation_name(parent.generation)} {own}, on its own test set"))
    return Card(title, significant(test), unit, tuple(details))


def _beside_parent(pair: ErrorPair, generation: int, structures: int) -> Iterator[Detail]:
    old, new = significant(pair.old), significant(pair.new)
    name = generation_name(generation)
    yield Detail(f"{name} {old} → {new} on the same {count(structures, 'structure')}")
    if pair.change is None:
        return
    if abs(pair.change) < _SAME:
        yield Detail(f"as good as {name} ({percent(pair.change)})")
    elif pair.change < 0:
        yield Detail(f"better than {name} ({percent(pair.change)})", "better")
    else:
        yield Detail(f"worse than {name} ({percent(pair.change)})", "worse")


def _physics_card(checks: Sequence[PhysicsCheck]) -> Card:
    verdicts = count_verdicts(checks)
    judged = len(checks) - verdicts["skipped"]
    details = [Detail(f"failed: {subject(c)}", "worse") for c in checks if c.verdict == "failed"]
    if verdicts["skipped"]:
        details.append(Detail(f"{verdicts['skipped']} skipped"))
    return Card(
        "Physics checks passed",
        f"{verdicts['passed']} of {judged}",
        "",
        tuple(details),
        "failed" if verdicts["failed"] else "",
    )


def _rmse(report: TrainingReport, side: str, key: str) -> float | None:
    """Return an RMSE of the published potential, or else of pacemaker's tables."""
    if report.evaluation is not None:
        found = getattr(report.evaluation, side)
        rmse: float | None = getattr(found, key).rmse if found is not None else None
        return rmse
    fit = report.fit
    errors = {"train": fit.train, fit.second_set: fit.test}.get(side)
    value: float | None = getattr(errors, f"rmse_{key}") if errors is not None else None
    return value


def summary(report: TrainingReport) -> str:
    """Return in a sentence what was fitted to what."""
    start = f"from {generation_name(report.parent.generation)}" if report.parent else "from nothing"
    return (
        f"{count(report.fit.functions, 'basis function')} for {', '.join(report.elements)}, fitted "
        f"{start} to {count(report.dataset.train, 'structure')} in "
        f"{count(report.fit.iterations, 'iteration')}; "
        + (
            f"tested on {count(report.dataset.test, 'structure')} that the fit did not see."
            if report.dataset.test
            else "nothing was held out to test it."
        )
    )
