"""From (configuration, database, store, N) to a published generation: the order of the stages."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, InterruptedRunError
from mlip_job.naming import WorkFiles, generation_name
from mlip_job.pipeline.confirm import confirm_config, confirm_dataset
from mlip_job.pipeline.lineage import find_lineage
from mlip_job.pipeline.stages import (
    Trained,
    build_dataset,
    describe,
    fit,
    left_out_by_weighting,
    prepare_fit,
)
from mlip_job.registry import Registry
from mlip_job.report import make_report
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


@dataclass
class _Clock:
    """Wall time of each stage, s."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.stages[name] = round(time.monotonic() - started, 3)


def run_generation(
    config: JobConfig,
    generation: int,
    *,
    store: ObjectStore,
    observer: Observer,
    stop: StopRequest,
) -> Outcome:
    """Export, train and publish a generation, or confirm that it is published already.

    Raises
    ------
    MlipJobError
        Of the kind that says what went wrong; see `mlip_job.errors`. Nothing is published then.
    """
    registry = Registry(store, config.family)
    published = registry.find(generation)
    if published is not None:
        return _confirm(config, registry, published, observer)
    return _train(config, generation, registry, observer, stop)


def export_generation(
    config: JobConfig,
    generation: int,
    *,
    store: ObjectStore,
    observer: Observer,
    output: Path | None = None,
) -> DatasetRecord:
    """Build a generation's dataset and publish it; keep a copy in `output` if that is given."""
    if output is not None and output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty", hint="choose another -o DIR")
    registry = Registry(store, config.family)
    lineage = find_lineage(registry, config.training, generation)
    store.check()
    with _scratch(config) as scratch:
        directory = output or scratch.dataset.directory
        record = build_dataset(config, generation, registry, lineage.dataset, directory, observer)
        registry.publish_dataset(directory, record)
    return record


def _confirm(
    config: JobConfig, registry: Registry, published: Manifest, observer: Observer
) -> Outcome:
    """Compare a published generation with what this run would make of it."""
    confirm_config(published, config)
    inherited = published.dataset.inherited_from
    parent = registry.get(inherited) if inherited is not None else None
    with _scratch(config) as scratch:
        record = build_dataset(
            config, published.generation, registry, parent, scratch.dataset.directory, observer
        )
    confirm_dataset(published, record)
    registry.roll_forward(published)
    observer.message(
        f"{generation_name(published.generation)} is published already, with this configuration "
        "and this dataset: nothing to do"
    )
    return Outcome(published, created=False)


def _train(
    config: JobConfig,
    generation: int,
    registry: Registry,
    observer: Observer,
    stop: StopRequest,
) -> Outcome:
    """Export, fit, publish."""
    started, clock = datetime.now(UTC), _Clock()
    lineage = find_lineage(registry, config.training, generation)
    _preflight(config, registry)
    attempt = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    files = WorkFiles(Path(config.work_dir) / generation_name(generation) / attempt)
    try:
        with clock.stage("export"):
            record = build_dataset(
                config, generation, registry, lineage.dataset, files.dataset.directory, observer
            )
        parent = prepare_fit(config.training, files, record, registry, lineage.potential, observer)
    except BaseException:
        # Nothing was trained yet: an attempt that failed here leaves nothing worth keeping.
        shutil.rmtree(files.directory, ignore_errors=True)
        raise
    with clock.stage("publish_dataset"):
        record_sha256 = registry.publish_dataset(files.dataset.directory, record)
    with clock.stage("fit"):
        summary = fit(config, files, record, observer, stop)
    left_out = left_out_by_weighting(config.training, files, record)
    report = make_report(config, generation, record, parent, summary, left_out, clock.stages)
    files.report.write_text(report.to_json(), encoding="utf-8")
    if stop.received is not None:
        raise InterruptedRunError(
            f"stopped by {stop.received.name} before publishing", hint="run the same command again"
        )
    trained = Trained(
        attempt, started, record, record_sha256, lineage.dataset, parent, report.headline()
    )
    manifest = registry.publish(
        generation,
        attempt,
        files.artefacts(),
        lambda artefacts: describe(config, generation, trained, artefacts),
    )
    observer.message(f"published {generation_name(generation)} in {registry.store.url}")
    return Outcome(manifest, created=True)


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
