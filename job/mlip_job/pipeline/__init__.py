"""The stages of a generation, in order, and nothing else."""

from mlip_job.pipeline.ensemble import Member
from mlip_job.pipeline.run import Outcome, export_generation, run_generation

__all__ = [
    "Member",
    "Outcome",
    "export_generation",
    "run_generation",
]
