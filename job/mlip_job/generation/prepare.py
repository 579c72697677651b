"""Prepare the fit: dataset, parent and input, or the newest checkpoint of an earlier attempt."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, IntegrityError, TrainingError
from mlip_job.generation.confirm import differences
from mlip_job.generation.data import (
    Dataset,
    data_size,
    find_or_build_dataset,
    make_fit_data,
    make_frames,
    refer_to,
    without_new_data,
)
from mlip_job.generation.lineage import find_lineage
from mlip_job.paths import generation_name, make_private_directory
from mlip_job.registry import Parent, TrainingState
from mlip_job.runtime.environment import job_of_earlier_starts, job_of_this_start
from mlip_job.training import open_trainer
from mlip_job.training.programs import require_gpu_device
from mlip_job.training.size import choose_size, with_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation.context import Run
    from mlip_job.generation.lineage import Lineage
    from mlip_job.registry import Checkpoint, DatasetReference, Manifest
    from mlip_job.training.size import BasisSize
    from mlip_job.training.trainer import FitData, Trainer


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
    trainer
        The trainer, with its input.
    """

    record: DatasetRecord
    given: FitData
    state: TrainingState
    trainer: Trainer


def check_before_claim(run: Run, *, fresh: bool) -> Lineage:
    """Return the lineage; raise an error if the generation could not be trained and published.

    Runs before anything expensive. A finished fit that only has to be published needs no GPU.
    """
    config, registry = run.config, run.registry
    registry.agreed_dataset(run.generation)
    lineage = find_lineage(registry, config.training, run.generation)
    registry.store.check()
    trainer = open_trainer(config.training, Path(config.work_dir))
    trainer.require_programs(active_set=config.evaluation.active_set_kind is not None)
    if not config.training.require_gpu or config.training.is_linear:
        return lineage
    own = job_of_earlier_starts()
    fitted = any(
        checkpoint.position.finished and (not fresh or checkpoint.training.was_begun_by(own))
        for checkpoint in registry.checkpoints(run.generation).found()
    )
    if not fitted:
        require_gpu_device()
    return lineage


def prepare(run: Run, lineage: Lineage, *, fresh: bool) -> Prepared:
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
            found = fetch_checkpoint(run)
        return _begin(run, lineage) if found is None else _resume(run, *found)
    except BaseException:
        # Nothing has been trained yet, so the work directory can be discarded.
        shutil.rmtree(run.files.directory, ignore_errors=True)
        raise


# -- begin ---------------------------------------------------------------------------------------


def _begin(run: Run, lineage: Lineage) -> Prepared:
    """Export the dataset; start from the parent or from scratch."""
    if run.config.training.is_linear and run.config.training.start_from == "previous":
        _explain_linear_fit(run, lineage)
    agreed = run.registry.agreed_dataset(run.generation)
    with run.clock.stage("fetch" if agreed else "export"):
        dataset = agreed or find_or_build_dataset(
            run, lineage.dataset, run.files.dataset.directory, fetch=make_frames
        )
        record = dataset.record if isinstance(dataset, Dataset) else _fetch_dataset(run, dataset)
    if (warning := without_new_data(record, lineage.dataset)) is not None:
        run.observer.message(warning)
    size = _choose_size(run, record, lineage)
    trainer = open_trainer(with_size(run.config.training, size), run.files.directory)
    with run.clock.stage("fetch"):
        parent = _fetch_parent(run, trainer, record, lineage.potential)
    given = _give(run, record)
    trainer.begin(given, parent.mode if parent is not None else None)
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
    return Prepared(record, given, state, trainer)


def _explain_linear_fit(run: Run, lineage: Lineage) -> None:
    if (before := lineage.dataset) is not None:
        run.observer.message(
            "training.max_iter is 0: the linear fit is repeated on all data, and does not start "
            f"from {generation_name(before.generation)}"
        )


def _agree_on(run: Run, dataset: Dataset | DatasetReference, lineage: Lineage) -> DatasetReference:
    """Publish the dataset; all members of an ensemble use the first one published."""
    if isinstance(dataset, Dataset):
        sha256 = dataset.publish(run.registry, run.files.dataset.directory)
        dataset = refer_to(dataset.record, sha256, lineage.dataset)
    run.registry.agree_on_dataset(run.generation, dataset)
    return dataset


def _give(run: Run, record: DatasetRecord) -> FitData:
    given = make_fit_data(run.config.training, record, run.registry, run.files)
    if given.validation:
        fitted = record.counts.train - len(given.validation)
        run.observer.message(
            f"fitting to {fitted} of {record.counts.train} training structures; the other "
            f"{len(given.validation)} choose the best iteration"
        )
    for note in given.notes:
        run.observer.message(f"note: {note}")
    return given


def _choose_size(run: Run, record: DatasetRecord, lineage: Lineage) -> BasisSize:
    size = choose_size(run.config.training, data_size(record), lineage.functions)
    if size.chosen != "configured":
        run.observer.message(str(size))
    if size.warning is not None:
        run.observer.message(f"warning: {size.warning}")
    return size


def _fetch_parent(
    run: Run, trainer: Trainer, record: DatasetRecord, parent: Manifest | None
) -> Parent | None:
    """Fetch the potential that the fit starts from."""
    if parent is None:
        return None
    name = generation_name(parent.generation)
    mode = trainer.start_mode(record.elements, parent.basis, name)
    for artefact, path in trainer.parent_files.items():
        run.registry.fetch(parent, artefact, path)
    trainer.prepare_parent()
    how = "with the same basis" if mode == "continue" else "growing its basis"
    run.observer.message(f"starting from {name}, {how}")
    potential, *_ = trainer.parent_files
    return Parent(
        generation=parent.generation,
        mode=mode,
        potential_sha256=parent.artefacts[potential].sha256,
    )


# -- resume --------------------------------------------------------------------------------------

# Settings that may change between attempts: they limit the duration of the same fit.
_FREE = {
    "batch_size",
    "display_step",
    "early_stopping_patience",
    "max_iter",
    "min_relative_test_loss_per_iter",
    "require_gpu",
    "test_evaluation",
}


def _resume(run: Run, checkpoint: Checkpoint, record: DatasetRecord) -> Prepared:
    """Resume an earlier attempt with its dataset, parent and potential."""
    before = checkpoint.training
    trainer = open_trainer(_settings_of(checkpoint, run.config), run.files.directory)
    given = _give(run, record)
    mode = before.parent.mode if before.parent is not None else None
    trainer.resume(given, mode, checkpoint.position)
    state = before.model_copy(
        update={
            "attempts": (*before.attempts, run.attempt),
            "config": run.config.model_dump(mode="json"),
        }
    )
    return Prepared(record, given, state, trainer)


def fetch_checkpoint(run: Run) -> tuple[Checkpoint, DatasetRecord] | None:
    """Put the newest intact checkpoint and its dataset into the work directory.

    Returns
    -------
    tuple or None
        The checkpoint, and the record of the dataset in the work directory; None if no checkpoint
        can be used.

    Raises
    ------
    ConfigError
        If its configuration differs; the message names each difference.
    """
    files, message = run.files, run.observer.message
    checkpoints = run.registry.checkpoints(run.generation)
    unusable = checkpoints.unreadable()
    found = None
    for checkpoint in checkpoints.found():
        _require_same(checkpoint, run)
        staging = files.directory / "checkpoint"
        trainer = open_trainer(_settings_of(checkpoint, run.config), files.directory)
        try:
            checkpoints.fetch(checkpoint, staging)
            elements = checkpoint.training.elements
            trainer.restore(staging, str(checkpoint), checkpoint.position, elements)
            found = checkpoint
            break
        except (IntegrityError, TrainingError) as error:
            unusable.append(error.message)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    for problem in unusable:
        message(f"warning: {problem}; this checkpoint is skipped")
    if found is None:
        if unusable:
            message("no checkpoint can be used: starting over")
        return None
    try:
        record = _fetch_dataset(run, found.training.dataset)
    except IntegrityError as error:
        raise IntegrityError(
            f"can't resume from {found}: {error.message}", hint="start over with --fresh"
        ) from None
    message(f"resuming from {found.position} ({found})")
    return found, record


def _settings_of(checkpoint: Checkpoint, config: JobConfig) -> TrainingConfig:
    return with_size(config.training, checkpoint.training.basis)


def _fetch_dataset(run: Run, dataset: DatasetReference) -> DatasetRecord:
    """Put the frames of a stored dataset into the work directory; return its record."""
    directory = run.files.dataset.directory
    directory.mkdir()
    return make_frames(run.registry, run.registry.dataset_record(dataset), directory)


def _require_same(checkpoint: Checkpoint, run: Run) -> None:
    if found := list(_changes(checkpoint, run)):
        raise ConfigError(
            f"{generation_name(run.generation)} is half trained with another configuration "
            f"({checkpoint}):\n" + "\n".join(found),
            hint="undo that to resume, or start over with --fresh",
        )


def _changes(checkpoint: Checkpoint, run: Run) -> Iterator[str]:
    """Describe the changed settings that affect the fit."""
    asked, then = run.config.model_dump(mode="json"), checkpoint.training.config
    for section in ("dataset", "training"):
        for key, old, new in differences(then.get(section, {}), asked[section], section):
            # With max_iter 0 the linear fit is published, which is another potential.
            becomes_linear = key == "training.max_iter" and 0 in (old, new)
            # A batch is a step of Adam, whose learning rate depends on the number of steps.
            is_step = key == "training.batch_size" and run.config.training.trainer == "grace-fs"
            if key.removeprefix("training.") not in _FREE or becomes_linear or is_step:
                yield f"  {key}: {old!r} there, {new!r} asked"
    selection = checkpoint.training.dataset.selection
    select = run.config.database.for_generation(run.generation).select
    if selection != select:
        yield f"  database.select: {selection!r} there, {select!r} asked"
