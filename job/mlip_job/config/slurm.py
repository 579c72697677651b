"""Settings of a Slurm job."""

from __future__ import annotations

from mlip_job.config.base import Part


class SlurmConfig(Part):
    """What the batch script asks of Slurm."""
