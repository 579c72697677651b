"""Manifests, datasets and checkpoints for tests that do not train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlip_job.config import JobConfig
from mlip_job.dataset import record as dataset_record
from mlip_job.dataset.record import DatasetRecord
from mlip_job.models import Errors
from mlip_job.registry import (
    Artefact,
    AttemptPart,
    Checkpoint,
    DatasetReference,
    Headline,
    Manifest,
    Registry,
    TrainingState,
)
from mlip_job.runtime.environment import HostClass, RunEnvironment
from mlip_job.training.pacemaker.input import potential_section
from mlip_job.training.trainer import FitPosition
from tests.trainings import sized

_STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def make_manifest(
    generation: int,
    *,
    attempt: str = "20260101T000000Z-abcdef",
    family: str = "cu-ni",
    basis: dict[str, Any] | None = None,
    artefacts: dict[str, Artefact] | None = None,
    dataset: DatasetReference | None = None,
    rejected_because: tuple[str, ...] = (),
) -> Manifest:
    """Return a complete manifest; fields that are not given have made-up values."""
    config = JobConfig(family=family)
    errors = Errors(rmse_energy_mev_per_atom=7.5, rmse_force_mev_per_angstrom=31.25)
    return Manifest(
        family=family,
        generation=generation,
        attempt=attempt,
        attempts=(AttemptPart(attempt=attempt, started=_STARTED, iterations=10),),
        started=_STARTED,
        ended=datetime(2026, 1, 1, 2, tzinfo=UTC),
        config=config.model_dump(mode="json"),
        config_sha256=config.fingerprint(),
        elements=("Cu", "Ni"),
        basis=basis or potential_section(sized(), ["Cu", "Ni"]),
        parent=None,
        dataset=dataset
        or DatasetReference(
            id="0123456789abcdef",
            record_sha256="0" * 64,
            train=90,
            test=10,
            database="structures.db",
            selection="status=completed",
            inherited_from=None,
        ),
        reference_energies={"Cu": -3.72, "Ni": -5.57},
        split_seed=42,
        fit_seed=42,
        environment=RunEnvironment(
            versions={"mlip-job": "0.1.0"},
            host=HostClass(cpu="x86", cores=2, memory_gib=24.0, gpus=()),
            image=None,
            scheduler=None,
        ),
        headline=Headline(
            train=errors,
            test=errors,
            iterations=10,
            functions=15,
            accepted=not rejected_because,
            rejected_because=rejected_because,
            limits_set=False,
        ),
        artefacts=artefacts or {},
    )


def put_dataset(registry: Registry, directory: Path, content: str) -> DatasetReference:
    """Publish a dataset whose files contain `content`; return its name and hash."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in ("train.xyz", "test.xyz", "index.csv.gz", "train.pckl.gzip", "test.pckl.gzip"):
        (directory / name).write_text(f"{name} of {content}\n")
        data = (directory / name).read_bytes()
        files[name] = dataset_record.FileRecord(
            sha256=hashlib.sha256(data).hexdigest(), size=len(data)
        )
    record = _make_record(hashlib.sha256(content.encode()).hexdigest()[:16], files)
    (directory / "dataset.json").write_text(record.to_json())
    return DatasetReference(
        id=record.id,
        record_sha256=registry.publish_dataset(directory, record),
        train=record.counts.train,
        test=record.counts.test,
        database=record.database,
        selection=record.selection,
        inherited_from=None,
    )


def publish(
    registry: Registry,
    directory: Path,
    generation: int,
    attempt: str = "a1",
    *,
    names: Iterable[str] = ("potential.yace",),
    rejected_because: tuple[str, ...] = (),
) -> Manifest:
    """Publish a generation whose files contain their name and their attempt."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: directory / f"{attempt}-{name}" for name in names}
    for name, path in files.items():
        path.write_text(f"{name} of {attempt}\n")
    dataset = put_dataset(registry, directory / "dataset", "ninety and ten")
    return registry.publish(
        generation,
        attempt,
        files,
        lambda artefacts: make_manifest(
            generation,
            attempt=attempt,
            artefacts=artefacts,
            dataset=dataset,
            rejected_because=rejected_because,
        ),
    )


def _make_record(identity: str, files: dict[str, dataset_record.FileRecord]) -> DatasetRecord:
    return DatasetRecord(
        id=identity,
        created="2026-01-01T00:00:00+00:00",
        database="structures.db",
        selection="status=completed",
        cutoff=5.0,
        elements=("Cu", "Ni"),
        counts=dataset_record.Counts(
            selected=100, accepted=100, train=90, test=10, rejected=0, reference_atoms=0
        ),
        atoms=dataset_record.SideCounts(train=360, test=40),
        per_element={
            e: dataset_record.ElementCounts(structures=50, atoms=200) for e in ("Cu", "Ni")
        },
        ranges=dataset_record.Ranges(
            min_energy_corrected_ev_per_atom=-0.1,
            max_energy_corrected_ev_per_atom=0.1,
            max_force_ev_per_angstrom=1.0,
            min_distance_angstrom=2.3,
        ),
        config_types=dataset_record.ConfigTypes(train={}, test={}),
        split=dataset_record.SplitRecord(
            seed=42,
            test_fraction=0.1,
            wanted_test=10,
            inherited_train=0,
            inherited_test=0,
            group_by=None,
        ),
        rejections={},
        reference_energies={"Cu": -3.72, "Ni": -5.57},
        reference_energy_sources={"Cu": "least_squares", "Ni": "least_squares"},
        energy_from=dataset_record.EnergyOrigin(free_energy=100, energy=0),
        weights=None,
        notes=(),
        frames=dataset_record.SideNames(train=("train.pckl.gzip",), test=("test.pckl.gzip",)),
        files=files,
        versions=dataset_record.Versions(mlip_job="0.1.0", ase="3", numpy="2", pandas="2"),
    )


def make_checkpoint(
    files: dict[str, str],
    *,
    attempt: str,
    number: int,
    position: FitPosition,
    dataset: DatasetReference,
    config: JobConfig | None = None,
    job: str | None = None,
) -> Checkpoint:
    """Return the state of a checkpoint; `files` are the hashes of its files."""
    return Checkpoint(
        attempt=attempt,
        number=number,
        saved=_STARTED,
        position=position,
        iterations=position.iteration,
        training=TrainingState(
            attempts=(AttemptPart(attempt=attempt, started=_STARTED, iterations=0),),
            started=_STARTED,
            config=(config or JobConfig(family="cu-ni")).model_dump(mode="json"),
            dataset=dataset,
            parent=None,
            elements=("Cu", "Ni"),
            job=job,
        ),
        files=files,
    )
