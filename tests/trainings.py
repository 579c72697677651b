"""Training configurations with a basis of known size, as after the data are known."""

from __future__ import annotations

from typing import Any

from mlip_job.config import TrainingConfig


def sized(**training: Any) -> TrainingConfig:
    """Return a configuration of 300 functions per element and 100 iterations, unless given."""
    return TrainingConfig(**{"functions_per_element": 300, "max_iter": 100} | training)
