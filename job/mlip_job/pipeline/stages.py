"""The stages of a run, each a function of what the ones before it made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from mlip_job.naming import WorkFiles, generation_name
from mlip_job.pipeline.lineage import start_mode
from mlip_job.registry import DatasetReference, Manifest, Parent
from mlip_job.runtime.environment import RunEnvironment
from mlip_job.training.pacemaker.basis import potential_section
from mlip_job.training.pacemaker.input import (
    StartPotential,
    TrainingData,
    build_input,
    dump_input,
    weighting_policy,
)
from mlip_job.training.pacemaker.potential_file import (
    as_start,
    perturbed,
    read_potential,
    write_potential,
)
from mlip_job.training.pacemaker.weighting import FITTED, rows_beyond_policy, rows_left_out
from mlip_job.training.size import with_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.pipeline.fit_data import FitData
    from mlip_job.registry import Artefact, Headline, Registry, TrainingState
    from mlip_job.training.trainer import Progress


class Observer(Protocol):
    """Whoever is told how a run goes."""

    def message(self, text: str) -> None:
        """Hear one thing."""

    def progress(self, progress: Progress) -> None:
        """Hear how far pacemaker is."""

    def trainer_line(self, line: str) -> None:
        """Hear what pacemaker prints."""


def fetch_parent(
    training: TrainingConfig,
    files: WorkFiles,
    elements: Sequence[str],
    registry: Registry,
    start_from: Manifest | None,
    observer: Observer,
) -> Parent | None:
    """Fetch the potential that the fit starts from, in the form that it can start from."""
    if start_from is None:
        return None
    mode = start_mode(training, elements, start_from)
    registry.fetch(start_from, "potential.yaml", files.parent_potential)
    start = as_start(read_potential(files.parent_potential))
    if training.start_noise:
        start = perturbed(start, training.start_noise, training.seed)
    write_potential(start, files.parent_potential)
    how = "with the same basis" if mode == "continue" else "growing its basis"
    observer.message(f"starting from {generation_name(start_from.generation)}, {how}")
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
    """Write input.yaml, of the fit that nothing disturbs, and return its content."""
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


def left_out_by_weighting(
    training: TrainingConfig, files: WorkFiles, record: DatasetRecord, given: FitData
) -> dict[str, tuple[int, ...]]:
    """Return the rows that the weighting kept out of the fit; only an energy-based one does.

    Of the test set those that it would leave out: nobody wants them to be described.
    """
    policy = weighting_policy(training)
    if policy is None:
        return {}
    fitted, second = _paths(files, given.train), _paths(files, given.second)
    train = rows_left_out(files.directory / FITTED["train"], fitted)
    aside = rows_left_out(files.directory / FITTED["test"], second)
    tested = _paths(files, record.frames.test)
    if second == tested:
        return {"train": train, "test": aside}
    test = rows_beyond_policy(policy, (*fitted, *second), tested)
    return {"train": tuple(sorted((*train, *aside))), "test": test}


def describe(
    config: JobConfig,
    generation: int,
    record: DatasetRecord,
    training: TrainingState,
    headline: Headline,
    artefacts: Mapping[str, Artefact],
) -> Manifest:
    """Return the manifest of a trained generation."""
    return Manifest(
        family=config.family,
        generation=generation,
        attempt=training.attempts[-1].attempt,
        attempts=training.attempts,
        started=training.started,
        ended=datetime.now(UTC),
        config=config.model_dump(mode="json"),
        config_sha256=config.fingerprint(),
        elements=record.elements,
        basis=potential_section(with_size(config.training, training.basis), record.elements),
        parent=training.parent,
        linear_start=training.linear_start,
        dataset=training.dataset,
        reference_energies=record.reference_energies,
        split_seed=config.dataset.seed,
        fit_seed=config.training.seed,
        environment=RunEnvironment.current(),
        headline=headline,
        artefacts=dict(artefacts),
    )


def refer_to(
    record: DatasetRecord, record_sha256: str, parent: Manifest | None
) -> DatasetReference:
    """Return how manifests and checkpoints name a dataset."""
    return DatasetReference(
        id=record.id,
        record_sha256=record_sha256,
        train=record.counts.train,
        test=record.counts.test,
        database=record.database,
        selection=record.selection,
        inherited_from=parent.generation if parent is not None else None,
    )


def _paths(files: WorkFiles, names: Iterable[str]) -> list[Path]:
    return [files.dataset.directory / name for name in names]
