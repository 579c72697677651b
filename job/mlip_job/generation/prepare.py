"""Prepare the fit: dataset, parent and input file, or the checkpoint of an earlier attempt."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlip_job.generation.data import (
    Dataset,
    find_or_build_dataset,
    make_fit_data,
    make_frames,
    refer_to,
    without_new_data,
)
from mlip_job.generation.lineage import data_size, find_lineage, start_mode
from mlip_job.generation.resume import fetch_checkpoint
from mlip_job.paths import WorkFiles, generation_name, make_private_directory
from mlip_job.registry import Parent, TrainingState
from mlip_job.runtime.environment import job_of_earlier_starts, job_of_this_start
from mlip_job.training.pacemaker.basis import potential_section
from mlip_job.training.pacemaker.input import (
    Segment,
    StartPotential,
    TrainingData,
    build_input,
    dump_input,
    remaining_segments,
)
from mlip_job.training.pacemaker.potential_file import (
    as_start,
    perturbed,
    read_potential,
    write_potential,
)
from mlip_job.training.pacemaker.programs import find_program, require_gpu_device
from mlip_job.training.size import choose_size, with_size

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation.context import Run
    from mlip_job.generation.data import FitData
    from mlip_job.generation.lineage import Lineage
    from mlip_job.registry import Checkpoint, DatasetReference, Manifest, Registry
    from mlip_job.training.size import BasisSize


@dataclass(frozen=True)
class Prepared:
    """The starting point of a fit.

    Attributes
    ----------
    record
        Record of the dataset, whose frames are in the work directory.
    given
        The parts of the dataset that the fit uses.
    state
        State of the fit for checkpoints; this attempt is the last of its ``attempts``.
    segments
        The remaining segments by input file; empty if the fit only has to be published.
    """

    record: DatasetRecord
    given: FitData
    state: TrainingState
    segments: dict[Path, Segment]


def check_before_claim(
    config: JobConfig, generation: int, registry: Registry, *, fresh: bool
) -> None:
    """Raise an error if the generation could not be trained and published.

    Runs before anything expensive. A finished fit that only has to be published needs no GPU.
    """
    registry.agreed_dataset(generation)
    find_lineage(registry, config.training, generation)
    registry.store.check()
    find_program("pacemaker")
    find_program("pace_yaml2yace")
    if config.evaluation.active_set_kind is not None:
        find_program("pace_activeset")
    if not config.training.require_gpu or config.training.is_linear:
        return
    own = job_of_earlier_starts()
    fitted = any(
        checkpoint.position.finished and (not fresh or checkpoint.training.was_begun_by(own))
        for checkpoint in registry.checkpoints(generation).found()
    )
    if not fitted:
        require_gpu_device()


def prepare(run: Run, *, fresh: bool) -> Prepared:
    """Put all input of the fit into the work directory.

    Parameters
    ----------
    fresh
        Discard the checkpoints of other jobs and start over. Checkpoints of an earlier start of
        the same job are kept, because that start has already discarded the others.
    """
    if fresh:
        checkpoints = run.registry.checkpoints(run.generation)
        checkpoints.discard(but_of=job_of_earlier_starts())
    make_private_directory(run.files.directory.parent)
    run.files.directory.mkdir(mode=0o700)
    try:
        with run.clock.stage("fetch"):
            found = fetch_checkpoint(
                run.config, run.generation, run.registry, run.files, run.observer
            )
        return _begin(run) if found is None else _resume(run, *found)
    except BaseException:
        # Nothing has been trained yet, so the work directory can be discarded.
        shutil.rmtree(run.files.directory, ignore_errors=True)
        raise


def _begin(run: Run) -> Prepared:
    """Export the dataset; start from the parent or from scratch."""
    lineage = find_lineage(run.registry, run.config.training, run.generation)
    _explain_linear_start(run, lineage)
    agreed = run.registry.agreed_dataset(run.generation)
    with run.clock.stage("fetch" if agreed else "export"):
        dataset = agreed or find_or_build_dataset(
            run.config,
            run.generation,
            run.registry,
            lineage.dataset,
            run.files.dataset.directory,
            run.observer,
            fetch=make_frames(run.config.dataset.frame_shard_size),
        )
        record = _record_of(run, dataset)
    if (warning := without_new_data(record, lineage.dataset)) is not None:
        run.observer.message(warning)
    size = _choose_size(run, record, lineage)
    training = with_size(run.config.training, size)
    with run.clock.stage("fetch"):
        parent = _fetch_parent(run, training, record, lineage.potential)
    given = _give(run, record)
    content = make_input(training, run.files, record, given, parent)
    run.raise_if_lost()
    with run.clock.stage("publish_dataset"):
        reference = _agree_on(run, dataset, lineage)
    state = TrainingState(
        attempts=(run.attempt,),
        started=run.attempt.started,
        config=run.config.model_dump(mode="json"),
        dataset=reference,
        parent=parent,
        elements=record.elements,
        basis=size,
        job=job_of_this_start(),
    )
    return Prepared(record, given, state, {run.files.input_yaml: Segment(content)})


def _resume(run: Run, checkpoint: Checkpoint, record: DatasetRecord) -> Prepared:
    """Resume an earlier attempt with its dataset, parent and potential."""
    before = checkpoint.training
    training = with_size(run.config.training, before.basis)
    given = _give(run, record)
    content = make_input(training, run.files, record, given, before.parent)
    segments: tuple[Segment, ...] = ()
    if not checkpoint.position.finished:
        segments = remaining_segments(
            checkpoint.position,
            content,
            potential_section(training, record.elements),
            run.files.checkpoint_potential.name,
        )
    state = before.model_copy(
        update={
            "attempts": (*before.attempts, run.attempt),
            "config": run.config.model_dump(mode="json"),
        }
    )
    inputs = {run.files.segment_input(n): segment for n, segment in enumerate(segments, start=1)}
    return Prepared(record, given, state, inputs)


def _explain_linear_start(run: Run, lineage: Lineage) -> None:
    training, before = run.config.training, lineage.dataset
    if training.is_linear and training.start_from == "previous" and before is not None:
        run.observer.message(
            "training.max_iter is 0: the linear fit is repeated on all data, and does not start "
            f"from {generation_name(before.generation)}"
        )


# -- the dataset ---------------------------------------------------------------------------------


def _record_of(run: Run, dataset: Dataset | DatasetReference) -> DatasetRecord:
    """Put the frames of a dataset into the work directory; return its record."""
    if isinstance(dataset, Dataset):
        return dataset.record
    directory = run.files.dataset.directory
    directory.mkdir()
    record = run.registry.dataset_record(dataset)
    return make_frames(run.config.dataset.frame_shard_size)(run.registry, record, directory)


def _agree_on(run: Run, dataset: Dataset | DatasetReference, lineage: Lineage) -> DatasetReference:
    """Publish the dataset; all members of an ensemble use the first one published."""
    if isinstance(dataset, Dataset):
        sha256 = dataset.publish(run.registry, run.files.dataset.directory)
        dataset = refer_to(dataset.record, sha256, lineage.dataset)
    run.registry.agree_on_dataset(run.generation, dataset)
    return dataset


def _give(run: Run, record: DatasetRecord) -> FitData:
    given = make_fit_data(run.config, record, run.registry, run.files)
    if given.validation:
        fitted = record.counts.train - len(given.validation)
        run.observer.message(
            f"fitting to {fitted} of {record.counts.train} training structures; the other "
            f"{len(given.validation)} choose the best iteration"
        )
    for note in given.notes:
        run.observer.message(f"note: {note}")
    return given


# -- parent and input ----------------------------------------------------------------------------


def _choose_size(run: Run, record: DatasetRecord, lineage: Lineage) -> BasisSize:
    size = choose_size(run.config.training, data_size(record), lineage.functions)
    if size.chosen != "configured":
        run.observer.message(str(size))
    if size.warning is not None:
        run.observer.message(f"warning: {size.warning}")
    return size


def _fetch_parent(
    run: Run, training: TrainingConfig, record: DatasetRecord, start_from: Manifest | None
) -> Parent | None:
    """Fetch the parent's potential, without its ZBL cores."""
    if start_from is None:
        return None
    mode = start_mode(training, record.elements, start_from)
    run.registry.fetch(start_from, "potential.yaml", run.files.parent_potential)
    start = as_start(read_potential(run.files.parent_potential))
    if training.start_noise:
        start = perturbed(start, training.start_noise, training.seed)
    write_potential(start, run.files.parent_potential)
    how = "with the same basis" if mode == "continue" else "growing its basis"
    run.observer.message(f"starting from {generation_name(start_from.generation)}, {how}")
    return Parent(
        generation=start_from.generation,
        mode=mode,
        potential_sha256=start_from.artefacts["potential.yaml"].sha256,
    )


def make_input(
    training: TrainingConfig,
    files: WorkFiles,
    record: DatasetRecord,
    given: FitData,
    parent: Parent | None,
) -> dict[str, Any]:
    """Write input.yaml of an uninterrupted fit, and return its content."""
    start = None
    if parent is not None:
        start = StartPotential(files.parent_potential.name, same_basis=parent.mode == "continue")
    elif training.linear_start:
        start = StartPotential(files.linear_start.name, same_basis=True)
    data = TrainingData(
        elements=record.elements,
        train=WorkFiles.in_dataset(given.train),
        test=WorkFiles.in_dataset(given.second),
        reference_energies={e: record.reference_energies[e] for e in record.elements},
        keep_best=bool(given.validation),
    )
    content = build_input(training, data, start)
    files.input_yaml.write_text(dump_input(content), encoding="utf-8")
    return content
