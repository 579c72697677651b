"""Go on from what an earlier attempt left in the store."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from mlip_job.errors import ConfigError, IntegrityError, TrainingError
from mlip_job.naming import WorkFiles, generation_name
from mlip_job.pipeline.confirm import differences
from mlip_job.pipeline.datasets import make_frames
from mlip_job.pipeline.shipping import TRAIN_LOG
from mlip_job.runtime.environment import job_of_earlier_starts
from mlip_job.training.checkpoint import POTENTIAL
from mlip_job.training.pacemaker.potential_file import elements_of, read_potential

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Checkpoint, Registry

# What may change between the attempts at a generation: it decides how long, not what, is fitted.
_FREE = {
    "batch_size",
    "display_step",
    "early_stopping_patience",
    "max_iter",
    "min_relative_test_loss_per_iter",
    "require_gpu",
    "test_evaluation",
}


def start_over(registry: Registry, generation: int) -> None:
    """Remove what other jobs left of a generation; its claim has to be held.

    What this very job began when it was started before stays: it has removed the rest then.
    """
    registry.checkpoints(generation).discard(but_of=job_of_earlier_starts())


def fetch_checkpoint(
    config: JobConfig,
    generation: int,
    registry: Registry,
    files: WorkFiles,
    observer: Observer,
) -> tuple[Checkpoint, DatasetRecord] | None:
    """Put the furthest checkpoint that is intact, and its dataset, into the work directory.

    Returns
    -------
    tuple or None
        The checkpoint, and the record of the dataset as it lies in the work directory; None where
        no checkpoint can be used.

    Raises
    ------
    ConfigError
        If it is of another configuration; each difference is named.
    """
    checkpoints = registry.checkpoints(generation)
    unusable = checkpoints.unreadable()
    usable = None
    for checkpoint in checkpoints.found():
        _require_same(checkpoint, config, generation)
        staging = files.directory / "checkpoint"
        try:
            checkpoints.fetch(checkpoint, staging)
            _require_files(checkpoint, files)
            _require_elements(checkpoint, staging / POTENTIAL)
        except (IntegrityError, TrainingError) as error:
            unusable.append(error.message)
            shutil.rmtree(staging, ignore_errors=True)
            continue
        _arrange(checkpoint, files)
        usable = checkpoint, _fetch_its_dataset(checkpoint, registry, files, config)
        break
    for problem in unusable:
        observer.message(f"warning: {problem}; this checkpoint is passed over")
    if usable is not None:
        observer.message(f"going on from {usable[0].position} ({usable[0]})")
    elif unusable:
        observer.message("no checkpoint can be used: starting over")
    return usable


def _require_same(checkpoint: Checkpoint, config: JobConfig, generation: int) -> None:
    asked = config.model_dump(mode="json")
    then = checkpoint.training.config
    found = [
        f"  {key}: {old!r} there, {new!r} asked"
        for section in ("dataset", "training")
        for key, old, new in differences(then.get(section, {}), asked[section], section)
        if key.removeprefix("training.") not in _FREE or _is_linear_fit(key, old, new)
    ]
    select = config.database.for_generation(generation).select
    if checkpoint.training.dataset.selection != select:
        found.append(
            f"  database.select: {checkpoint.training.dataset.selection!r} there, {select!r} asked"
        )
    if found:
        raise ConfigError(
            f"{generation_name(generation)} is half trained with another configuration "
            f"({checkpoint}):\n" + "\n".join(found),
            hint="undo that to go on from there, or start over with --fresh",
        )


def _require_files(checkpoint: Checkpoint, files: WorkFiles) -> None:
    finished = (TRAIN_LOG, files.left_out.name) if checkpoint.position.finished else ()
    missing = sorted({POTENTIAL, *finished} - checkpoint.files.keys())
    if missing:
        raise IntegrityError(f"{checkpoint} has no {', '.join(missing)}")


def _is_linear_fit(key: str, *values: Any) -> bool:
    """Tell whether a setting has a linear fit for the generation, then or now."""
    return key == "training.max_iter" and 0 in values


def _require_elements(checkpoint: Checkpoint, potential: Any) -> None:
    found = elements_of(read_potential(potential))
    if found != tuple(sorted(checkpoint.training.elements)):
        raise IntegrityError(f"{checkpoint} describes {', '.join(found)}")


def _arrange(checkpoint: Checkpoint, files: WorkFiles) -> None:
    """Give a checkpoint's files the names that they have in a work directory."""
    staging = files.directory / "checkpoint"
    tables = files.curves if checkpoint.position.finished else files.history
    if (staging / "metrics").is_dir():
        (staging / "metrics").rename(tables)
    if checkpoint.position.finished:
        (staging / POTENTIAL).rename(files.output_potential)
        (staging / TRAIN_LOG).rename(files.train_log)
    else:
        (staging / POTENTIAL).rename(files.checkpoint_potential)
    # Nothing else: it would lie where a program of the fit might take it for its own.
    for path in WorkFiles(staging).of_fit():
        path.rename(files.directory / path.name)
    shutil.rmtree(staging)


def _fetch_its_dataset(
    checkpoint: Checkpoint, registry: Registry, files: WorkFiles, config: JobConfig
) -> DatasetRecord:
    directory = files.dataset.directory
    directory.mkdir()
    try:
        record = registry.dataset_record(checkpoint.training.dataset)
        return make_frames(config.dataset.frame_shard_size)(registry, record, directory)
    except IntegrityError as error:
        raise IntegrityError(
            f"can't go on from {checkpoint}: {error.message}", hint="start over with --fresh"
        ) from None
