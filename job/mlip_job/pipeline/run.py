"""From (configuration, database, store, N) to a published generation: the order of the stages."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.naming import DatasetFiles, WorkFiles, generation_name
from mlip_job.pipeline.attempt import Attempt
from mlip_job.pipeline.confirm import confirm_config, confirm_dataset
from mlip_job.pipeline.datasets import all_files, find_or_build_dataset, no_files
from mlip_job.pipeline.lineage import find_lineage
from mlip_job.registry import Registry
from mlip_job.training.programs import find_program, require_gpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Manifest
    from mlip_job.store.base import ObjectStore
    from mlip_job.training.signals import StopRequest


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes
    ----------
    manifest
        Of the generation as it is published.
    created
        False where it was published before and nothing had to be done.
    """

    manifest: Manifest
    created: bool


def run_generation(
    config: JobConfig,
    generation: int,
    *,
    store: ObjectStore,
    observer: Observer,
    stop: StopRequest,
    fresh: bool = False,
) -> Outcome:
    """Export, train and publish a generation, or confirm that it is published already.

    An attempt that was interrupted is gone on with: its dataset, its potential, its learning curve.
    With `fresh` it is forgotten.

    Raises
    ------
    MlipJobError
        Of the kind that says what went wrong; see `mlip_job.errors`. Nothing is published then.
    """
    registry = Registry(store, config.family)
    published = registry.find(generation)
    if published is not None:
        return _confirm(config, registry, published, observer)
    find_lineage(registry, config.training, generation)
    _preflight(config, registry)
    attempt = Attempt(config, generation, registry, observer, stop)
    with attempt.claim():
        published = registry.find(generation)
        if published is None:
            return Outcome(attempt.run(fresh=fresh), created=True)
    return _confirm(config, registry, published, observer)


def export_generation(
    config: JobConfig,
    generation: int,
    *,
    store: ObjectStore,
    observer: Observer,
    output: Path | None = None,
    rebuild: bool = False,
) -> DatasetRecord:
    """Publish a generation's dataset; keep a copy in `output` if that is given.

    It is built only if it is not in the store, or if `rebuild` says so.
    """
    if output is not None and output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty", hint="choose another -o DIR")
    registry = Registry(store, config.family)
    lineage = find_lineage(registry, config.training, generation)
    store.check()
    with _scratch(config) as scratch:
        directory = output or scratch.dataset.directory
        dataset = find_or_build_dataset(
            config,
            generation,
            registry,
            lineage.dataset,
            directory,
            observer,
            wanted=no_files if output is None else all_files,
            rebuild=rebuild,
        )
        dataset.publish(registry, directory)
    if output is not None and dataset.stored_sha256 is not None:
        DatasetFiles(output).record.write_text(dataset.record.to_json(), encoding="utf-8")
    return dataset.record


def _confirm(
    config: JobConfig, registry: Registry, published: Manifest, observer: Observer
) -> Outcome:
    """Compare a published generation with what this run would make of it."""
    confirm_config(published, config)
    inherited = published.dataset.inherited_from
    parent = registry.get(inherited) if inherited is not None else None
    with _scratch(config) as scratch:
        dataset = find_or_build_dataset(
            config,
            published.generation,
            registry,
            parent,
            scratch.dataset.directory,
            observer,
            wanted=no_files,
        )
    confirm_dataset(published, dataset.record)
    if dataset.stored_sha256 is None:
        dataset.remember(registry, published.dataset.record_sha256)
    registry.roll_forward(published)
    observer.message(
        f"{generation_name(published.generation)} is published already, with this configuration "
        "and this dataset: nothing to do"
    )
    return Outcome(published, created=False)


@contextmanager
def _scratch(config: JobConfig) -> Iterator[WorkFiles]:
    """Make a directory for a dataset that is not kept; in the work directory, which has room."""
    work = Path(config.work_dir)
    try:
        work.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=work, prefix="scratch-")
    except OSError as error:
        raise ConfigError(f"can't write to {work}: {error.strerror}", hint="set work_dir") from None
    with scratch as directory:
        yield WorkFiles(Path(directory))


def _preflight(config: JobConfig, registry: Registry) -> None:
    """Fail before the export rather than after it."""
    find_program("pacemaker")
    find_program("pace_yaml2yace")
    registry.store.check()
    if config.training.require_gpu:
        require_gpu()
