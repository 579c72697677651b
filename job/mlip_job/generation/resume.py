"""Resume an earlier attempt from its newest usable checkpoint."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, IntegrityError, TrainingError
from mlip_job.generation.data import make_frames
from mlip_job.generation.lineage import differences
from mlip_job.paths import WorkFiles, generation_name
from mlip_job.training.checkpoint import POTENTIAL
from mlip_job.training.pacemaker.potential_file import elements_of, read_potential

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation.context import Observer
    from mlip_job.registry import Checkpoint, Registry

TRAIN_LOG = "train.log"

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


def fetch_checkpoint(
    config: JobConfig,
    generation: int,
    registry: Registry,
    files: WorkFiles,
    observer: Observer,
) -> tuple[Checkpoint, DatasetRecord] | None:
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
    checkpoints = registry.checkpoints(generation)
    unusable = checkpoints.unreadable()
    for checkpoint in checkpoints.found():
        _require_same(checkpoint, config, generation)
        staging = files.directory / "checkpoint"
        try:
            checkpoints.fetch(checkpoint, staging)
            _require_complete(checkpoint, files, staging / POTENTIAL)
        except (IntegrityError, TrainingError) as error:
            unusable.append(error.message)
            shutil.rmtree(staging, ignore_errors=True)
            continue
        _arrange(checkpoint, files, staging)
        record = _fetch_dataset(checkpoint, registry, files, config)
        _warn(observer, unusable)
        observer.message(f"resuming from {checkpoint.position} ({checkpoint})")
        return checkpoint, record
    _warn(observer, unusable)
    if unusable:
        observer.message("no checkpoint can be used: starting over")
    return None


def _warn(observer: Observer, unusable: list[str]) -> None:
    for problem in unusable:
        observer.message(f"warning: {problem}; this checkpoint is skipped")


def _require_same(checkpoint: Checkpoint, config: JobConfig, generation: int) -> None:
    found = list(_changes(checkpoint, config, generation))
    if found:
        raise ConfigError(
            f"{generation_name(generation)} is half trained with another configuration "
            f"({checkpoint}):\n" + "\n".join(found),
            hint="undo that to resume, or start over with --fresh",
        )


def _changes(checkpoint: Checkpoint, config: JobConfig, generation: int) -> Iterator[str]:
    """Describe the changed settings that affect the fit."""
    asked, then = config.model_dump(mode="json"), checkpoint.training.config
    for section in ("dataset", "training"):
        for key, old, new in differences(then.get(section, {}), asked[section], section):
            # With max_iter 0 the linear fit is published, which is another potential.
            becomes_linear = key == "training.max_iter" and 0 in (old, new)
            if key.removeprefix("training.") not in _FREE or becomes_linear:
                yield f"  {key}: {old!r} there, {new!r} asked"
    selection = checkpoint.training.dataset.selection
    select = config.database.for_generation(generation).select
    if selection != select:
        yield f"  database.select: {selection!r} there, {select!r} asked"


def _require_complete(checkpoint: Checkpoint, files: WorkFiles, potential: Path) -> None:
    finished = (TRAIN_LOG, files.left_out.name) if checkpoint.position.finished else ()
    if missing := sorted({POTENTIAL, *finished} - checkpoint.files.keys()):
        raise IntegrityError(f"{checkpoint} has no {', '.join(missing)}")
    found = elements_of(read_potential(potential))
    if found != tuple(sorted(checkpoint.training.elements)):
        raise IntegrityError(f"{checkpoint} describes {', '.join(found)}")


def _arrange(checkpoint: Checkpoint, files: WorkFiles, staging: Path) -> None:
    """Rename the files of a checkpoint as in a work directory."""
    finished = checkpoint.position.finished
    if (staging / "metrics").is_dir():
        (staging / "metrics").rename(files.curves if finished else files.history)
    if finished:
        (staging / POTENTIAL).rename(files.output_potential)
        (staging / TRAIN_LOG).rename(files.train_log)
    else:
        (staging / POTENTIAL).rename(files.checkpoint_potential)
    # Skip all other files: a program of the fit might read them.
    for path in WorkFiles(staging).of_fit():
        path.rename(files.directory / path.name)
    shutil.rmtree(staging)


def _fetch_dataset(
    checkpoint: Checkpoint, registry: Registry, files: WorkFiles, config: JobConfig
) -> DatasetRecord:
    files.dataset.directory.mkdir()
    try:
        record = registry.dataset_record(checkpoint.training.dataset)
        fetch = make_frames(config.dataset.frame_shard_size)
        return fetch(registry, record, files.dataset.directory)
    except IntegrityError as error:
        raise IntegrityError(
            f"can't resume from {checkpoint}: {error.message}", hint="start over with --fresh"
        ) from None
