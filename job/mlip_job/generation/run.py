"""Run a generation: the order of its stages, from the configuration to publishing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.generation.context import StageClock, claimed
from mlip_job.generation.data import all_files, find_or_build_dataset, no_files
from mlip_job.generation.ensemble import (
    Member,
    config_of,
    publish_best,
    registry_of,
    require_different_members,
    require_ensemble,
)
from mlip_job.generation.fit import fit
from mlip_job.generation.lineage import confirm_config, confirm_dataset, find_lineage
from mlip_job.generation.prepare import check_before_claim, prepare
from mlip_job.generation.publish import describe_rejection, publish
from mlip_job.paths import (
    DatasetFiles,
    WorkFiles,
    cant_write,
    generation_name,
    make_private_directory,
    reported,
)
from mlip_job.registry import Registry
from mlip_job.registry.members import discard_single_fit, require_one_kind
from mlip_job.tracking import track_generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation.context import Observer
    from mlip_job.registry import Manifest
    from mlip_job.runtime.processes import StopRequest
    from mlip_job.store.base import ObjectStore


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes
    ----------
    manifest
        Manifest of the generation; of the member if other members are missing.
    created
        False if it was already published.
    missing
        Members of the ensemble that are not trained yet; the generation is unpublished.
    """

    manifest: Manifest
    created: bool
    missing: tuple[int, ...] = ()


Attempt = Callable[["JobConfig", Registry], "tuple[Manifest, bool]"]
"""Trains and publishes with a configuration, into a registry."""


def run_generation(
    config: JobConfig,
    generation: int,
    *,
    store: ObjectStore,
    observer: Observer,
    stop: StopRequest,
    fresh: bool = False,
    member: Member | None = None,
    clock: StageClock | None = None,
) -> Outcome:
    """Export, train, publish and track a generation, or confirm that it is published.

    An interrupted attempt is resumed with its dataset, potential and learning curve. With `fresh`
    it is discarded, unless the same job of the scheduler started it. With `member`, one member of
    an ensemble is trained; the run that completes the ensemble publishes the generation. `clock`
    gives the start of the job.

    Raises
    ------
    MlipJobError
        If a stage fails, see `mlip_job.errors`; nothing is published.
    """
    clock = clock or StageClock()
    registry = Registry(store, config.family)
    published = registry.find(generation)
    size = member.of if member is not None else None
    if member is not None and published is None:
        require_different_members(config, generation)
    if published is not None and size is not None:
        require_ensemble(published, size)
    if published is None:
        require_one_kind(registry, generation, size, fresh=fresh)

    def attempt(config: JobConfig, registry: Registry) -> tuple[Manifest, bool]:
        return _attempt(config, generation, registry, observer, stop, clock, fresh=fresh)

    if published is not None:
        outcome = _confirm(config, registry, published, observer)
    elif member is not None:
        if fresh:
            discard_single_fit(registry, generation)
        outcome = _train_member(config, generation, registry, member, observer, attempt)
    else:
        outcome = _train(config, registry, observer, attempt)
    if outcome.missing:
        return outcome
    with stop.deferred():
        track_generation(
            config.tracking,
            registry,
            outcome.manifest,
            observer.message,
            lambda: stop.received is not None,
        )
    return outcome


def _train(config: JobConfig, registry: Registry, observer: Observer, attempt: Attempt) -> Outcome:
    manifest, created = attempt(config, registry)
    if not created:
        return _confirm(config, registry, manifest, observer)
    observer.message(f"published {generation_name(manifest.generation)} in {registry.store.url}")
    if not manifest.headline.accepted:
        observer.message(describe_rejection(manifest))
    return Outcome(manifest, created=True)


def _train_member(
    config: JobConfig,
    generation: int,
    registry: Registry,
    member: Member,
    observer: Observer,
    attempt: Attempt,
) -> Outcome:
    """Train a member if needed; publish the generation once all members are trained."""
    own_config, own = config_of(config, member.number), registry_of(registry, config, member)
    manifest, created = own.find_own(generation), False
    if manifest is None:
        manifest, created = attempt(own_config, own)
    confirm_config(manifest, own_config)
    name = f"member {member.number} of {member.of} of {generation_name(generation)}"
    observer.message(f"{name} is trained")
    best, missing = publish_best(config, generation, registry, member.of, observer)
    if best is None:
        observer.message(f"not trained yet: {', '.join(map(str, missing))}")
        return Outcome(manifest, created, missing)
    if not best.headline.accepted:
        observer.message(describe_rejection(best))
    return Outcome(best, created=True)


def _attempt(
    config: JobConfig,
    generation: int,
    registry: Registry,
    observer: Observer,
    stop: StopRequest,
    clock: StageClock,
    *,
    fresh: bool,
) -> tuple[Manifest, bool]:
    """Return the published manifest, and whether this attempt published it."""
    with clock.stage("checks"):
        check_before_claim(config, generation, registry, fresh=fresh)
    with claimed(config, generation, registry, observer, stop, clock) as run:
        published = registry.find_own(generation)
        if published is not None:
            return published, False
        with reported(Path(config.work_dir)):
            prepared = prepare(run, fresh=fresh)
            return publish(run, prepared, fit(run, prepared)), True


def export_generation(
    config: JobConfig,
    generation: int,
    *,
    store: ObjectStore,
    observer: Observer,
    output: Path | None = None,
    rebuild: bool = False,
) -> DatasetRecord:
    """Publish a generation's dataset; keep a copy in `output`, if given.

    It is built only if the store lacks it, or with `rebuild`.
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
            fetch=no_files if output is None else all_files,
            rebuild=rebuild,
        )
        dataset.publish(registry, directory)
    if output is not None and dataset.stored_sha256 is not None:
        DatasetFiles(output).record.write_text(dataset.record.to_json(), encoding="utf-8")
    return dataset.record


def _confirm(
    config: JobConfig, registry: Registry, published: Manifest, observer: Observer
) -> Outcome:
    """Compare a published generation with the configuration and data of this run."""
    confirm_config(published, config)
    _confirm_dataset(config, registry, published, observer)
    registry.roll_forward(published)
    observer.message(
        f"{generation_name(published.generation)} is published already, with this configuration "
        "and this dataset: nothing to do"
    )
    if not published.headline.accepted:
        observer.message(describe_rejection(published))
    return Outcome(published, created=False)


def _confirm_dataset(
    config: JobConfig, registry: Registry, published: Manifest, observer: Observer
) -> None:
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
            fetch=no_files,
        )
    confirm_dataset(published, dataset.record)
    if dataset.stored_sha256 is None:
        dataset.remember(registry, published.dataset.record_sha256)


@contextmanager
def _scratch(config: JobConfig) -> Iterator[WorkFiles]:
    """Make a temporary directory for a dataset; in the work directory, which has enough space."""
    work = Path(config.work_dir)
    try:
        make_private_directory(work)
        scratch = tempfile.TemporaryDirectory(dir=work, prefix="scratch-")
    except OSError as error:
        raise cant_write(work, error, hint="set work_dir") from None
    with reported(work), scratch as directory:
        yield WorkFiles(Path(directory))
