"""The configuration of a job: validated models, and how they are loaded."""

from mlip_job.config.job import (
    DatabaseConfig,
    DatasetConfig,
    EvaluationConfig,
    GateConfig,
    JobConfig,
    RunConfig,
    StorageConfig,
    TrackingConfig,
)
from mlip_job.config.load import load_config
from mlip_job.config.training import EnergyBasedWeighting, GroupWeights, TrainingConfig

__all__ = [
    "DatabaseConfig",
    "DatasetConfig",
    "EnergyBasedWeighting",
    "EvaluationConfig",
    "GateConfig",
    "GroupWeights",
    "JobConfig",
    "RunConfig",
    "StorageConfig",
    "TrackingConfig",
    "TrainingConfig",
    "load_config",
]
