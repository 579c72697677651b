"""Manifests for tests that need one but train nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mlip_job.config import JobConfig
from mlip_job.environment import HostClass, RunEnvironment
from mlip_job.registry import (
    Artefact,
    AttemptPart,
    DatasetReference,
    ErrorFigures,
    Headline,
    Manifest,
)
from mlip_job.training.basis import potential_section


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
    """Return a complete manifest; what a test cares about is given, the rest is made up."""
    config = JobConfig(family=family)
    errors = ErrorFigures(rmse_energy_mev_per_atom=7.5, rmse_force_mev_per_angstrom=31.25)
    return Manifest(
        family=family,
        generation=generation,
        attempt=attempt,
        attempts=(
            AttemptPart(attempt=attempt, started=datetime(2026, 1, 1, tzinfo=UTC), iterations=10),
        ),
        started=datetime(2026, 1, 1, tzinfo=UTC),
        ended=datetime(2026, 1, 1, 2, tzinfo=UTC),
        config=config.model_dump(mode="json"),
        config_sha256=config.fingerprint(),
        elements=("Cu", "Ni"),
        basis=basis or potential_section(config.training, ["Cu", "Ni"]),
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
        ),
        artefacts=artefacts or {},
    )
