"""Fits of potentials: the interface of a trainer and its implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from mlip_job.config import TrainingConfig
    from mlip_job.training.trainer import Trainer


def open_trainer(training: TrainingConfig, directory: Path) -> Trainer:
    """Return the configured trainer of an attempt in a work directory, which may not exist yet."""
    if training.trainer == "grace-fs":
        from mlip_job.training.grace.process import GraceWrapper  # noqa: PLC0415 - pandas

        return GraceWrapper(training, directory)
    from mlip_job.training.pacemaker.process import PacemakerWrapper  # noqa: PLC0415 - pandas

    return PacemakerWrapper(training, directory)


def published_potential(artefacts: Collection[str]) -> str:
    """Return the name of the potential that simulations use, of the artefacts of a generation."""
    return "potential.yace" if "potential.yace" in artefacts else "potential.yaml"
