"""Run a generation: the order of its stages, from the configuration to publishing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.generation.confirm import confirm, confirm_config
from mlip_job.generation.context import Outcome, Run, StageClock, claimed
from mlip_job.generation.data import (
    all_files,
    find_or_build_dataset,
    no_files,
    scratch_directory,
)
from mlip_job.generation.ensemble import (
    config_of,
    publish_best,
    registry_of,
    require_different_members,
    require_ensemble,
)
from mlip_job.generation.fit import fit
from mlip_job.generation.lineage import find_lineage
from mlip_job.generation.prepare import check_before_claim, prepare
from mlip_job.generation.publish import describe_rejection, publish
from mlip_job.paths import DatasetFiles, generation_name, reported
from mlip_job.registry import Registry
from mlip_job.registry.members import discard_single_fit, require_one_kind
from mlip_job.tracking import track_generation

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation.context import Observer
    from mlip_job.generation.ensemble import Member
    from mlip_job.registry import Manifest
    from mlip_job.runtime.processes import StopRequest
    from mlip_job.store.base import ObjectStore


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
    registry = Registry(store, config.family)
    run = Run(config, generation, registry, observer, stop, clock or StageClock())
    published = registry.find(generation)
    if published is not None:
        if member is not None:
            require_ensemble(published, member.of)
        outcome = confirm(run, published)
    elif member is None:
        outcome = _train(run, fresh=fresh)
    else:
        outcome = _train_member(run, member, fresh=fresh)
    if outcome.missing:
        return outcome
    if not outcome.manifest.headline.accepted:
        observer.message(describe_rejection(outcome.manifest))
    with stop.deferred():
        track_generation(
            config.tracking,
            registry,
            outcome.manifest,
            observer.message,
            lambda: stop.received is not None,
        )
    return outcome


def _train(run: Run, *, fresh: bool) -> Outcome:
    require_one_kind(run.registry, run.generation, None, fresh=fresh)
    manifest, created = _attempt(run, fresh=fresh)
    if not created:
        return confirm(run, manifest)
    name = generation_name(run.generation)
    run.observer.message(f"published {name} in {run.registry.store.url}")
    return Outcome(manifest, created=True)


def _train_member(run: Run, member: Member, *, fresh: bool) -> Outcome:
    """Train a member if needed; publish the generation once all members are trained."""
    require_different_members(run.config, run.generation)
    require_one_kind(run.registry, run.generation, member.of, fresh=fresh)
    if fresh:
        discard_single_fit(run.registry, run.generation)
    own = replace(
        run,
        config=config_of(run.config, member.number),
        registry=registry_of(run.registry, run.config, member),
    )
    manifest, created = own.registry.find_own(run.generation), False
    if manifest is None:
        manifest, created = _attempt(own, fresh=fresh)
    confirm_config(manifest, own.config)
    name = f"member {member.number} of {member.of} of {generation_name(run.generation)}"
    run.observer.message(f"{name} is trained")
    best, missing = publish_best(run, member.of)
    if best is None:
        run.observer.message(f"not trained yet: {', '.join(map(str, missing))}")
        return Outcome(manifest, created, missing)
    return Outcome(best, created=True)


def _attempt(run: Run, *, fresh: bool) -> tuple[Manifest, bool]:
    """Return the published manifest, and whether this attempt published it."""
    with run.clock.stage("checks"):
        lineage = check_before_claim(run, fresh=fresh)
    with claimed(run) as held:
        published = run.registry.find_own(run.generation)
        if published is not None:
            return published, False
        with reported(Path(run.config.work_dir)):
            prepared = prepare(held, lineage, fresh=fresh)
            return publish(held, prepared, fit(held, prepared)), True


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
    run = Run(config, generation, Registry(store, config.family), observer)
    lineage = find_lineage(run.registry, config.training, generation)
    store.check()
    with scratch_directory(config) as scratch:
        directory = output or scratch.dataset.directory
        fetch = no_files if output is None else all_files
        dataset = find_or_build_dataset(
            run, lineage.dataset, directory, fetch=fetch, rebuild=rebuild
        )
        dataset.publish(run.registry, directory)
    if output is not None and dataset.stored_sha256 is not None:
        DatasetFiles(output).record.write_text(dataset.record.to_json(), encoding="utf-8")
    return dataset.record
