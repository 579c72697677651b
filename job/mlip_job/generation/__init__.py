"""Make a generation: prepare, fit and publish, in this order."""

from mlip_job.generation.context import Outcome
from mlip_job.generation.ensemble import Member
from mlip_job.generation.run import export_generation, run_generation

__all__ = [
    "Member",
    "Outcome",
    "export_generation",
    "run_generation",
]
