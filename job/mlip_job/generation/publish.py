"""Publish a finished fit: convert, evaluate, report, publish."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from mlip_job.dataset.files import common_test_rows
from mlip_job.dataset.rows import SIDES
from mlip_job.errors import IntegrityError, InterruptedRunError, TrainingError
from mlip_job.evaluation.evaluate import Predecessor, Subject, evaluate
from mlip_job.evaluation.measure import Models
from mlip_job.evaluation.potential import (
    check_active_set,
    cores_of,
    move_cores,
    shorter,
    shortest_distances,
)
from mlip_job.generation.data import fetch_missing
from mlip_job.generation.fit import contributions, with_checkpoint
from mlip_job.paths import DatasetFiles, WorkFiles, generation_name
from mlip_job.registry import Manifest
from mlip_job.report.model import Facts, make_report, read_predecessor
from mlip_job.report.page import render_report
from mlip_job.runtime.environment import RunEnvironment, usable_cores
from mlip_job.training import published_potential

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.evaluation.results import Evaluation
    from mlip_job.generation.context import Run
    from mlip_job.generation.fit import Fitted
    from mlip_job.generation.prepare import Prepared
    from mlip_job.registry import Artefact, Headline, TrainingState

_LINE_INTERVAL_SECONDS = 30.0


def publish(run: Run, prepared: Prepared, fitted: Fitted) -> Manifest:
    """Publish a finished fit; requires the claim.

    Raises
    ------
    TrainingError
        If the potential is unusable, or not the one that was fitted.
    InterruptedRunError
        If a stop signal was received; the message names the stored checkpoint.
    """
    try:
        return _publish(run, prepared, fitted)
    except Exception as error:
        # Extension modules (matplotlib, pyace) may replace the exception of a stop signal.
        stopped = error if isinstance(error, InterruptedRunError) else run.stop.error()
        if stopped is None:
            raise
        raise with_checkpoint(stopped, fitted.saved, run) from None


def _publish(run: Run, prepared: Prepared, fitted: Fitted) -> Manifest:
    files, record = run.files, prepared.record
    evaluation = _convert_and_evaluate(run, prepared, fitted)

    def state() -> TrainingState:
        """Return the state, including the times until now."""
        attempts = contributions(run, fitted.state, fitted.summary.iterations or 0)
        return fitted.state.model_copy(update={"attempts": attempts})

    report = make_report(
        run.config,
        run.generation,
        record,
        state(),
        fitted.summary,
        evaluation,
        fitted.left_out,
    )

    def described(artefacts: Mapping[str, Artefact]) -> Manifest:
        return _describe(run, prepared, state(), report.headline(), artefacts)

    with run.clock.stage("report"):
        files.report.write_bytes(report.to_json())
        facts = Facts(report, described({}), record)
        page = render_report(facts, read_predecessor(run.registry, report))
        files.report_page.write_text(page, encoding="utf-8")
    run.raise_if_lost()
    with run.clock.stage("publish"):
        reports = {path.name: path for path in (files.report, files.report_page)}
        artefacts = prepared.trainer.artefacts() | reports
        return run.registry.publish(run.generation, run.attempt.attempt, artefacts, described)


def _describe(
    run: Run,
    prepared: Prepared,
    state: TrainingState,
    headline: Headline,
    artefacts: Mapping[str, Artefact],
) -> Manifest:
    config, record = run.config, prepared.record
    return Manifest(
        family=config.family,
        generation=run.generation,
        attempt=run.attempt.attempt,
        attempts=state.attempts,
        started=state.started,
        ended=datetime.now(UTC),
        config=config.model_dump(mode="json"),
        config_sha256=config.fingerprint(),
        trainer=config.training.trainer,
        elements=record.elements,
        basis=prepared.trainer.basis(record.elements),
        parent=state.parent,
        linear_start=state.linear_start,
        dataset=state.dataset,
        reference_energies=record.reference_energies,
        split_seed=config.dataset.seed,
        fit_seed=config.training.seed,
        environment=RunEnvironment.current(),
        headline=headline,
        artefacts=dict(artefacts),
    )


def describe_rejection(manifest: Manifest) -> str:
    """Describe why a generation was rejected and how to proceed."""
    reasons = "\n".join(f"  {reason}" for reason in manifest.headline.rejected_because)
    return (
        f"warning: {generation_name(manifest.generation)} is published, but rejected: it does not "
        f"become the latest\n{reasons}\n"
        f"  mlip-job promote -g {manifest.generation} --force --reason TEXT makes it the latest"
    )


# -- convert and evaluate ------------------------------------------------------------------------


def _convert_and_evaluate(run: Run, prepared: Prepared, fitted: Fitted) -> Evaluation:
    dataset = run.files.dataset
    with run.clock.stage("fetch"):
        fetch_missing(
            run.registry,
            prepared.record,
            dataset.xyz("train"),
            dataset.xyz("test"),
            dataset.index,
        )
    with run.clock.stage("convert"):
        core_notes = _move_cores(run, prepared, fitted)
        prepared.trainer.export()
    evaluation = evaluate_generation(run, prepared, fitted, (*core_notes, *prepared.given.notes))
    for warning in evaluation.warnings:
        run.observer.message(f"warning: {warning}")
    for check in evaluation.physics:
        if check.verdict == "failed":
            run.observer.message(f"warning: a physics check failed: {check.message}")
    for reason in evaluation.gate.unchecked:
        run.observer.message(f"warning: physics check {reason}")
    for note in evaluation.notes:
        run.observer.message(f"note: {note}")
    return evaluation


def _move_cores(run: Run, prepared: Prepared, fitted: Fitted) -> tuple[str, ...]:
    """Move the ZBL cores below the distances in the validation part and the test set.

    The trainer considers the fitted structures only. Rows that the weighting excluded are ignored.
    Returns a note for each moved core.
    """
    potential, structures = prepared.trainer.potential, run.files.dataset.xyz
    cores = cores_of(potential)
    if not cores:
        return ()
    reach = max(core.outer for core in cores.values())
    out = {side: frozenset(fitted.left_out.get(side, ())) for side in SIDES}
    shortest = shortest_distances(structures("test"), reach, lambda row: row not in out["test"])
    if prepared.given.validation:
        counts = prepared.given.validation - out["train"]
        validated = shortest_distances(structures("train"), reach, lambda row: row in counts)
        shortest = shorter(shortest, validated)
    return move_cores(potential, shortest)


def evaluate_generation(
    run: Run, prepared: Prepared, fitted: Fitted, notes: tuple[str, ...]
) -> Evaluation:
    """Evaluate a converted potential for its report.

    Parameters
    ----------
    notes
        Notes of earlier stages for the users of the potential.

    Raises
    ------
    TrainingError
        If the potential is unusable, or not the one that pacemaker fitted.
    """
    files, record, trainer = run.files, prepared.record, prepared.trainer
    run.observer.message(
        f"evaluating {trainer.exported.name} on {record.counts.train} train and "
        f"{record.counts.test} test structures"
    )
    with run.clock.stage("active_set"):
        active_set, active_set_notes = _make_active_set(run, prepared)
    with run.clock.stage("fetch"):
        predecessor, comparison_notes = _find_predecessor(run)
    subject = Subject(
        models=Models(
            artefact=trainer.exported,
            reference_energies=record.reference_energies,
            basis=trainer.potential,
            active_set=trainer.active_set if active_set else None,
        ),
        dataset=files.dataset,
        record=record,
        fitted=fitted.summary,
        left_out=fitted.left_out,
        validation=prepared.given.validation,
        predecessor=predecessor,
        active_set=active_set,
        notes=(*notes, *active_set_notes, *comparison_notes),
    )
    with run.clock.stage("evaluate"):
        return evaluate(
            subject,
            run.config.evaluation,
            seed=run.config.dataset.seed,
            cores=usable_cores(),
            progress=_Counter(run),
        )


class _Counter:
    """Reports the number of measured structures; stops the evaluation if the claim is lost."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._measured = 0
        self._last_line = time.monotonic()

    def __call__(self, measured: int) -> None:
        self._run.raise_if_lost()
        self._measured += measured
        now = time.monotonic()
        if now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = now
            self._run.observer.message(f"measured {self._measured} structures")


def _make_active_set(
    run: Run, prepared: Prepared
) -> tuple[Literal["linear", "full"] | None, tuple[str, ...]]:
    """Make the active set, if configured; extrapolation grades need it."""
    kind, trainer = run.config.evaluation.active_set_kind, prepared.trainer
    if kind is None:
        return None, ()
    try:
        written = trainer.write_active_set(WorkFiles.in_dataset(prepared.record.frames.train), kind)
        check_active_set(trainer.potential, written, run.files.dataset.xyz("train"))
        written.replace(trainer.active_set)
    except TrainingError as error:
        return None, (f"no active set, so no extrapolation grades: {error.message}",)
    return kind, ()


def _find_predecessor(run: Run) -> tuple[Predecessor | None, tuple[str, ...]]:
    """Fetch the latest potential, else the previous generation's; or note why there is none."""
    registry, files = run.registry, run.files
    earlier = [number for number in registry.numbers() if number < run.generation]
    if not earlier:
        return None, ()
    try:
        latest = registry.latest()
    except IntegrityError:
        latest = None
    number = latest if latest in earlier else earlier[-1]
    try:
        manifest = registry.get(number)
        artefact = published_potential(manifest.artefacts)
        potential = files.predecessor(artefact)
        registry.fetch(manifest, artefact, potential)
        record = registry.dataset_record(manifest.dataset)
        registry.fetch_dataset_file(record, DatasetFiles.INDEX, files.predecessor_index)
    except IntegrityError as error:
        return None, (f"not compared with {generation_name(number)}: {error.message}",)
    return Predecessor(
        generation=number,
        potential=potential,
        reference_energies=manifest.reference_energies,
        common_test_rows=common_test_rows(files.dataset.index, files.predecessor_index),
    ), ()
