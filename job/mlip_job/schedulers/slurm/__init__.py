"""Jobs on a Slurm cluster."""

from mlip_job.schedulers.slurm.scheduler import SlurmScheduler

__all__ = ["SlurmScheduler"]
