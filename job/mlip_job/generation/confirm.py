"""Confirm a published generation, or name what differs from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlip_job.config import DatasetConfig, TrainingConfig
from mlip_job.config.removed import without_defaults
from mlip_job.errors import ConflictError
from mlip_job.generation.context import Outcome
from mlip_job.generation.data import find_or_build_dataset, no_files, scratch_directory
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation.context import Run
    from mlip_job.registry import Manifest

_SECTIONS: Mapping[str, type[DatasetConfig | TrainingConfig]] = {
    "dataset": DatasetConfig,
    "training": TrainingConfig,
}
_HINT = "train it as a new generation (--generation next)"


def confirm(run: Run, published: Manifest) -> Outcome:
    """Compare a published generation with the configuration and data of this run."""
    confirm_config(published, run.config)
    inherited = published.dataset.inherited_from
    parent = run.registry.get(inherited) if inherited is not None else None
    with scratch_directory(run.config) as scratch:
        dataset = find_or_build_dataset(run, parent, scratch.dataset.directory, fetch=no_files)
    _confirm_dataset(published, dataset.record)
    if dataset.stored_sha256 is None:
        dataset.remember(run.registry, published.dataset.record_sha256)
    run.registry.roll_forward(published)
    run.observer.message(
        f"{generation_name(published.generation)} is published already, with this configuration "
        "and this dataset: nothing to do"
    )
    return Outcome(published, created=False)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old and new value of each setting that differs between two configurations."""
    defaults = _SECTIONS[prefix]().model_dump(mode="json") if prefix in _SECTIONS else {}
    old = without_defaults(old, prefix)
    for key in sorted({*old, *new}):
        # A setting that an earlier version lacked had its default.
        before, after = old.get(key, defaults.get(key)), new.get(key)
        if before != after and key != "require_gpu":
            yield f"{prefix}.{key}", before, after


def confirm_config(published: Manifest, config: JobConfig) -> None:
    """Raise a ConflictError naming each setting that differs from the published generation's.

    Comparing hashes is not enough, because later versions of the program add settings.
    """
    asked = config.model_dump(mode="json")
    found = [
        f"  {key}: {old!r} published, {new!r} asked"
        for section in ("dataset", "training")
        for key, old, new in differences(published.config.get(section, {}), asked[section], section)
    ]
    if found:
        raise ConflictError(
            f"{generation_name(published.generation)} of {published.family} is published with "
            "another configuration:\n" + "\n".join(found),
            hint=_HINT,
        )


def _confirm_dataset(published: Manifest, record: DatasetRecord) -> None:
    """Raise a ConflictError if the database now gives another dataset."""
    then, now = published.dataset, record.counts
    if then.id != record.id:
        raise ConflictError(
            f"{generation_name(published.generation)} of {published.family} is published with "
            f"another dataset: {then.id} ({then.train} train, {then.test} test); the database now "
            f"yields {record.id} ({now.train} train, {now.test} test)",
            hint=_HINT,
        )
