"""What of its dataset a fit is given: the training set, less the part that validates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.dataset.files import FramePart, frames_from_texts
from mlip_job.dataset.validation_part import part_training_set

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.naming import WorkFiles
    from mlip_job.registry import Registry


@dataclass(frozen=True)
class FitData:
    """What a fit is given.

    Attributes
    ----------
    train
        Names of the data frames that it is fitted to.
    second
        Names of those that pacemaker measures during the fit, if it does: of the validation part,
        or of the test set.
    validation
        Rows of the validation part.
    held_out
        Rows that choose the ridge of a linear fit: the validation part, which a linear fit that
        pacemaker does not continue is fitted to in the end.
    notes
        What the users of the potential should know of it.
    """

    train: tuple[str, ...]
    second: tuple[str, ...]
    validation: frozenset[int] = frozenset()
    held_out: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def make_fit_data(
    config: JobConfig, record: DatasetRecord, registry: Registry, files: WorkFiles
) -> FitData:
    """Write the data frames of the parts of the training set, if it is to be in parts.

    The frames of the whole dataset are in the work directory already.
    """
    training = config.training
    if training.validation_fraction == 0 and training.is_linear:
        return FitData(record.frames.train, record.frames.test)
    if training.validation_fraction == 0:
        measured = record.frames.test if training.test_evaluation == "pacemaker" else ()
        return FitData(record.frames.train, measured)
    if training.evaluator == "pyace" and not training.is_linear:
        return _whole(record, "evaluator pyace measures no second set")
    for path in (files.dataset.index, files.dataset.xyz("train")):
        if not path.exists():
            registry.fetch_dataset_file(record, path.name, path)
    parts = part_training_set(files.dataset, record, training.validation_fraction)
    if training.is_linear:
        return FitData(record.frames.train, record.frames.test, held_out=parts.validation)
    if parts.why_whole is not None:
        return _whole(record, parts.why_whole)
    frames = frames_from_texts(
        record,
        files.dataset.directory,
        config.dataset.frame_shard_size,
        [FramePart("fit", "train", parts.fit), FramePart("validation", "train", parts.validation)],
    )
    return FitData(frames["fit"], frames["validation"], parts.validation, parts.validation)


def _whole(record: DatasetRecord, why: str) -> FitData:
    note = (
        f"the fit had no validation part: {why}; its last iteration is the result, and it may have "
        "overfitted"
    )
    return FitData(record.frames.train, (), notes=(note,))
