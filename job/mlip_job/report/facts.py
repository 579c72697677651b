"""All that a page about a generation is made from, and where it is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import IntegrityError
from mlip_job.report.model import TrainingReport

if TYPE_CHECKING:
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.registry import Manifest, Registry


@dataclass(frozen=True)
class Facts:
    """What is known of one generation.

    Attributes
    ----------
    report
        Its ``report.json``.
    manifest
        Its manifest; while it is being published, as it will be, without artefacts.
    dataset
        The record of its dataset.
    """

    report: TrainingReport
    manifest: Manifest
    dataset: DatasetRecord


def read_facts(registry: Registry, generation: int) -> Facts:
    """Read what is known of a published generation.

    Raises
    ------
    ConfigError
        If it is not published.
    IntegrityError
        If a part of it is missing, damaged, or of another version.
    """
    manifest = registry.get(generation)
    return Facts(
        report=read_report(registry, manifest),
        manifest=manifest,
        dataset=registry.dataset_record(manifest.dataset),
    )


def read_report(registry: Registry, manifest: Manifest) -> TrainingReport:
    """Read a generation's report and check its hash."""
    name = "report.json"
    if name not in manifest.artefacts:
        raise IntegrityError(f"generation {manifest.generation} was published without {name}")
    try:
        return TrainingReport.from_json(registry.read(manifest, name))
    except IntegrityError as error:
        raise IntegrityError(
            f"{manifest.artefacts[name].key}: {error.message}",
            hint="it was perhaps written by another version of mlip-job",
        ) from None


def predecessor(report: TrainingReport) -> int | None:
    """Return the generation that a report is to be held against, if any."""
    if report.evaluation is not None and report.evaluation.parent is not None:
        return report.evaluation.parent.generation
    return report.parent.generation if report.parent is not None else None


def read_parent(registry: Registry, report: TrainingReport) -> TrainingReport | None:
    """Read the report of the generation that a report is to be held against, if there is one.

    It is left out where it can't be read: that is no reason to keep a new generation back.
    """
    number = predecessor(report)
    manifest = registry.find(number) if number is not None else None
    if manifest is None:
        return None
    try:
        return read_report(registry, manifest)
    except IntegrityError:
        return None
