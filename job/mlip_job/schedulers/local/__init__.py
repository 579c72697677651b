"""Jobs as processes of this machine."""

from mlip_job.schedulers.local.scheduler import LocalScheduler

__all__ = ["LocalScheduler"]
