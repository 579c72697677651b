"""Running a published generation again: nothing to do, or a conflict that is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlip_job.errors import ConflictError
from mlip_job.naming import generation_name
from mlip_job.removed import without_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.registry import Manifest

_HINT = "train it as a new generation (--generation next)"


def confirm_config(published: Manifest, config: JobConfig) -> None:
    """Raise a ConflictError naming each setting that differs from the published generation's.

    Its hash alone would not do: an earlier version lacks the settings that were added since.
    """
    asked = config.model_dump(mode="json")
    found = [
        f"  {key}: {old!r} published, {new!r} asked"
        for section in ("dataset", "training")
        for key, old, new in differences(published.config.get(section, {}), asked[section], section)
    ]
    if not found:
        return
    raise ConflictError(
        f"{generation_name(published.generation)} of {published.family} is published with another "
        "configuration:\n" + "\n".join(found),
        hint=_HINT,
    )


def confirm_dataset(published: Manifest, record: DatasetRecord) -> None:
    """Raise a ConflictError where the database now yields another dataset."""
    then, now = published.dataset, record.counts
    if then.id == record.id:
        return
    raise ConflictError(
        f"{generation_name(published.generation)} of {published.family} is published with another "
        f"dataset: {then.id} ({then.train} train, {then.test} test); the database now yields "
        f"{record.id} ({now.train} train, {now.test} test)",
        hint=_HINT,
    )


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old and new value of each setting that differs between two configurations."""
    old = without_defaults(old, prefix)
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before != after and key != "require_gpu":
            yield f"{prefix}.{key}", before, after
