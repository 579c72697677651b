"""The stage between fit and publishing: what there is to evaluate, and with what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from mlip_job.dataset.files import common_test_rows
from mlip_job.dataset.split import SIDES
from mlip_job.errors import IntegrityError, TrainingError
from mlip_job.evaluation.cores import clear_of_cores, cores_of, shorter, shortest_distances
from mlip_job.evaluation.evaluate import Predecessor, Subject, evaluate
from mlip_job.evaluation.measure import Models
from mlip_job.evaluation.potential import make_active_set
from mlip_job.naming import DatasetFiles, WorkFiles, generation_name
from mlip_job.runtime.environment import usable_cores
from mlip_job.training.pacemaker.potential_file import read_potential, write_potential

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.results import Evaluation
    from mlip_job.pipeline.context import AttemptContext
    from mlip_job.pipeline.fit_data import FitData
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Manifest, Registry
    from mlip_job.training.summary import RunSummary

_LINE_INTERVAL_SECONDS = 30.0


def fetch_structures(registry: Registry, record: DatasetRecord, dataset: DatasetFiles) -> None:
    """Bring what an attempt that only publishes has not fetched for its fit."""
    for path in (dataset.xyz("train"), dataset.xyz("test"), dataset.index):
        if not path.exists():
            registry.fetch_dataset_file(record, path.name, path)


def clear_cores(
    files: WorkFiles, left_out: Mapping[str, Collection[int]], validation: Collection[int]
) -> tuple[str, ...]:
    """Keep the ZBL cores of a fitted potential out of the data; return a note for each moved.

    Pacemaker looks at what it is fitted to only, not at the validation part nor at the test set.

    Parameters
    ----------
    files
        Its potential is changed where it has to be.
    left_out
        Rows of each side that don't count.
    validation
        Rows of the validation part.
    """
    potential = read_potential(files.output_potential)
    cores = cores_of(potential)
    if not cores:
        return ()
    reach = max(core.outer for core in cores.values())
    structures, out = files.dataset.xyz, {side: frozenset(left_out.get(side, ())) for side in SIDES}
    shortest = shortest_distances(structures("test"), reach, lambda row: row not in out["test"])
    if validation:
        counts = frozenset(validation) - out["train"]
        aside = shortest_distances(structures("train"), reach, lambda row: row in counts)
        shortest = shorter(shortest, aside)
    cleared, notes = clear_of_cores(potential, shortest)
    if notes:
        write_potential(cleared, files.output_potential)
    return notes


def evaluate_generation(
    context: AttemptContext,
    record: DatasetRecord,
    given: FitData,
    fitted: RunSummary,
    left_out: Mapping[str, tuple[int, ...]],
    notes: tuple[str, ...],
) -> Evaluation:
    """Find out about a converted potential all that its report says.

    Parameters
    ----------
    context, record, given
        Whose potential it is, the dataset, and what of it the fit was given.
    fitted, left_out
        What pacemaker says of it, and the rows that the weighting kept out of the fit.
    notes
        What its users should know already.

    Raises
    ------
    TrainingError
        If the potential is of no use, or not the one that pacemaker fitted.
    """
    config, files = context.config, context.files
    context.observer.message(
        f"evaluating {files.yace.name} on {record.counts.train} train and {record.counts.test} "
        "test structures"
    )
    with context.clock.stage("active_set"):
        active_set, active_set_notes = _make_active_set(
            config.evaluation.active_set_kind, files, record
        )
    with context.clock.stage("fetch"):
        predecessor, comparison_notes = _find_predecessor(
            context.registry, context.generation, files
        )
    subject = Subject(
        models=Models(
            artefact=files.yace,
            reference_energies=record.reference_energies,
            basis=files.output_potential,
            active_set=files.active_set if active_set else None,
        ),
        dataset=files.dataset,
        record=record,
        fitted=fitted,
        left_out=left_out,
        validation=given.validation,
        predecessor=predecessor,
        active_set=active_set,
        notes=(*notes, *active_set_notes, *comparison_notes),
    )
    with context.clock.stage("evaluate"):
        evaluation = evaluate(
            subject,
            config.evaluation,
            seed=config.dataset.seed,
            cores=usable_cores(),
            look=_Look(context.observer, context.raise_if_lost),
        )
    for warning in evaluation.warnings:
        context.observer.message(f"warning: {warning}")
    for check in evaluation.physics:
        if check.verdict == "failed":
            context.observer.message(f"warning: a physics check failed: {check.message}")
    for reason in evaluation.gate.unchecked:
        context.observer.message(f"warning: physics check {reason}")
    for note in evaluation.notes:
        context.observer.message(f"note: {note}")
    return evaluation


class _Look:
    """Counts what was measured, says so now and then, and looks whether to go on."""

    def __init__(self, observer: Observer, raise_if_lost: Callable[[], None]) -> None:
        self._measured = 0
        self._observer = observer
        self._raise_if_lost = raise_if_lost
        self._last_line = time.monotonic()

    def __call__(self, measured: int) -> None:
        self._raise_if_lost()
        self._measured += measured
        now = time.monotonic()
        if now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._last_line = now
            self._observer.message(f"measured {self._measured} structures")


def _make_active_set(
    kind: Literal["linear", "full"] | None, files: WorkFiles, record: DatasetRecord
) -> tuple[Literal["linear", "full"] | None, tuple[str, ...]]:
    """Make the active set that is wanted; a potential is of use without one."""
    if kind is None:
        return None, ()
    try:
        make_active_set(
            files.output_potential,
            [f"{WorkFiles.DATASET}/{name}" for name in record.frames.train],
            files.dataset.xyz("train"),
            kind,
            files.active_set,
        )
    except TrainingError as error:
        return None, (f"no active set, so no extrapolation grades: {error.message}",)
    return kind, ()


def _find_predecessor(
    registry: Registry, generation: int, files: WorkFiles
) -> tuple[Predecessor | None, tuple[str, ...]]:
    """Fetch what is in use now, or else the generation before; say why that can't be had."""
    earlier = [number for number in registry.numbers() if number < generation]
    if not earlier:
        return None, ()
    try:
        latest = registry.latest()
    except IntegrityError:
        latest = None
    number = latest if latest in earlier else earlier[-1]
    try:
        manifest = registry.get(number)
        registry.fetch(manifest, "potential.yace", files.predecessor)
        record = registry.dataset_record(manifest.dataset)
        registry.fetch_dataset_file(record, DatasetFiles.INDEX, files.predecessor_index)
    except IntegrityError as error:
        return None, (f"not compared with {generation_name(number)}: {error.message}",)
    return Predecessor(
        generation=number,
        potential=files.predecessor,
        reference_energies=manifest.reference_energies,
        common_test_rows=common_test_rows(files.dataset.index, files.predecessor_index),
    ), ()


def describe_rejection(manifest: Manifest) -> str:
    """Say that a generation was rejected, why, and what can be done."""
    reasons = "\n".join(f"  {reason}" for reason in manifest.headline.rejected_because)
    return (
        f"warning: {generation_name(manifest.generation)} is published, but rejected: it does not "
        f"become the latest\n{reasons}\n"
        f"  mlip-job promote -g {manifest.generation} --force --reason TEXT takes it all the same"
    )
