"""Training configurations with a basis of known size, and summaries of finished fits."""

from __future__ import annotations

from typing import Any

from mlip_job.config import TrainingConfig
from mlip_job.training.summary import CurvePoint, RunSummary


def sized(**training: Any) -> TrainingConfig:
    """Return a configuration of 300 functions per element and 100 iterations, unless given."""
    return TrainingConfig(**{"functions_per_element": 300, "max_iter": 100} | training)


def make_summary(**known: Any) -> RunSummary:
    """Return the summary of a successful fit of which nothing else is known."""
    unknown: dict[str, Any] = dict.fromkeys(
        (
            "cause", "train", "test", "iterations", "functions", "parameters", "early_stopping",
            "optimiser_message",
        )
    ) | {"structures": {}, "versions": {}, "timings_s": {}}  # fmt: skip
    empty: dict[str, Any] = dict.fromkeys(("cycles", "train_curve", "test_curve", "warnings"), ())
    fixed = {"status": "succeeded", "exit_code": 0, "ladder": False}
    return RunSummary(**(unknown | empty | fixed | known))


def make_point(iteration: int, step: int = 0) -> CurvePoint:
    return CurvePoint(
        ladder_step=step,
        cycle=0,
        iteration=iteration,
        loss=0.5,
        rmse_energy_mev_per_atom=12.3,
        rmse_force_mev_per_angstrom=45.6,
    )
