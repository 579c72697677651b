"""The configuration of a job: validated models, and how they are loaded."""

from mlip_job.config.evaluation import EvaluationConfig, GateConfig
from mlip_job.config.load import load_config
from mlip_job.config.models import (
    DatabaseConfig,
    DatasetConfig,
    JobConfig,
    RunConfig,
    StorageConfig,
)
from mlip_job.config.tracking import TrackingConfig
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
