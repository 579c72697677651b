"""Start a Job that was made suspended, to follow another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.config.kubernetes import KubernetesConfig
from mlip_job.errors import ConfigError
from mlip_job.retries import retrying
from mlip_job.schedulers.kubernetes.cluster import Cluster
from mlip_job.schedulers.kubernetes.connection import connect
from mlip_job.schedulers.kubernetes.layout import QUEUE_LABEL
from mlip_job.schedulers.kubernetes.submission import is_withheld, queue_of

if TYPE_CHECKING:
    from mlip_job.schedulers.kubernetes.pod import Manifest

_PATIENCE_SECONDS = 120.0
"""A pod may hold a GPU meanwhile, and whoever submits again makes up for it."""


def resume(cluster: Cluster, job: Manifest) -> None:
    """Have a Job start, or hand it to Kueue; one that has been started is left as it is."""
    if not is_withheld(job):
        return
    # Nothing but this very Job: one of its name may have taken its place.
    change: Manifest = {"metadata": {"uid": job["metadata"]["uid"]}}
    queue = queue_of(job)
    if queue is None:
        change["spec"] = {"suspend": False}
    else:
        change["metadata"]["labels"] = {QUEUE_LABEL: queue}
    cluster.patch_job(job["metadata"]["name"], change)


def resume_from_pod(name: str) -> None:
    """Have the next Job start, with the token of the pod that this is.

    Raises
    ------
    MlipJobError
        If it is gone, the token does not suffice or the API server did not answer in two minutes.
    """
    cluster = Cluster(connect(KubernetesConfig()))

    def do() -> None:
        job = cluster.job(name)
        if job is None:
            raise ConfigError(f"namespace {cluster.namespace} has no Job {name} any more")
        resume(cluster, job)

    retrying(do, _PATIENCE_SECONDS)
