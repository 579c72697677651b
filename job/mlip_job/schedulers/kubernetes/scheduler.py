"""`KubernetesScheduler`: the contract of `mlip_job.schedulers.base`, on a cluster."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.naming import parse_generation_name
from mlip_job.schedulers.base import JobHandle, JobStatus, Plan
from mlip_job.schedulers.kubernetes.cluster import Cluster
from mlip_job.schedulers.kubernetes.connection import Connection, connect
from mlip_job.schedulers.kubernetes.layout import (
    FAMILY_LABEL,
    GENERATION_LABEL,
    identifying_labels,
)
from mlip_job.schedulers.kubernetes.logs import job_lines
from mlip_job.schedulers.kubernetes.manifests import from_yaml, plan_job
from mlip_job.schedulers.kubernetes.status import FORGOTTEN, has_ended, newest_job, status_of
from mlip_job.schedulers.kubernetes.submitter import Submitter, release_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlip_job.config.kubernetes import KubernetesConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.kubernetes.pod import Manifest


class KubernetesScheduler:
    """Jobs of one cluster.

    Parameters
    ----------
    settings
        Which cluster and namespace; what a Job looks like is in each request's own configuration.
    poll_seconds
        Time between two looks at a Job that is waited for.
    """

    name = "kubernetes"

    def __init__(self, settings: KubernetesConfig, *, poll_seconds: float = 2.0) -> None:
        self._settings = settings
        self._poll_seconds = poll_seconds

    def plan(self, request: JobRequest) -> Plan:
        """Return the manifests; see `Scheduler.plan`."""
        return plan_job(request)

    def submit(self, plan: Plan) -> JobHandle:
        """Create the Job, unless it is there; see `Scheduler.submit`."""
        cluster = self._cluster(from_yaml(plan.text)["Job"]["metadata"].get("namespace"))
        found = Submitter(cluster, self._poll_seconds).submit(plan)
        return JobHandle(self.name, f"{cluster.namespace}/{plan.name}", plan.name, found=found)

    def find(self, family: str, generation: int) -> JobHandle | None:
        """Return a generation's newest Job; see `Scheduler.find`."""
        job = newest_job(self._cluster(None).jobs(identifying_labels(family, generation)))
        return _handle(job) if job is not None else None

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        """Return the Jobs that have not ended, of submissions and releases; see `Scheduler.active`.

        Those of the namespace whose labels name the family and the generation, and no others.
        """
        jobs = self._cluster(None).jobs(identifying_labels(family, generation))
        return [_handle(job) for job in jobs if not has_ended(job)]

    def generations(self, family: str) -> set[int]:
        """Return the generations that the namespace has Jobs of; see `Scheduler.generations`."""
        jobs = self._cluster(None).jobs({FAMILY_LABEL: family})
        names = (job["metadata"]["labels"].get(GENERATION_LABEL, "") for job in jobs)
        return {number for name in names if (number := parse_generation_name(name)) is not None}

    def status(self, handle: JobHandle) -> JobStatus:
        """Return what a Job is doing; see `Scheduler.status`."""
        cluster = self._cluster_of(handle)
        job = cluster.job(handle.name)
        if job is None:
            return FORGOTTEN
        return status_of(job, cluster.pods(handle.name), _events_of(cluster))

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """Yield the lines of all pods; see `Scheduler.logs`."""
        cluster = self._cluster_of(handle)
        return job_lines(cluster, handle.name, follow=follow, poll_seconds=self._poll_seconds)

    def cancel(self, handle: JobHandle) -> None:
        """Delete a Job that has not ended; see `Scheduler.cancel`."""
        cluster = self._cluster_of(handle)
        job = cluster.job(handle.name)
        if job is not None and not has_ended(job):
            cluster.delete_job(job)

    # -- clusters ----------------------------------------------------------------------------------

    @cached_property
    def _connection(self) -> Connection:
        return connect(self._settings)

    def _cluster(self, namespace: str | None) -> Cluster:
        return Cluster(self._connection, namespace)

    def _cluster_of(self, handle: JobHandle) -> Cluster:
        return self._cluster(handle.id.partition("/")[0])


def _handle(job: Manifest) -> JobHandle:
    metadata = job["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    return JobHandle("kubernetes", name, metadata["name"], release=release_of(job))


def _events_of(cluster: Cluster) -> Callable[[str], Sequence[Manifest]]:
    """Return a function that lists events; who may not list them is told less, and not refused."""

    def events_of(uid: str) -> Sequence[Manifest]:
        try:
            return cluster.events(uid)
        except ConfigError:
            return ()

    return events_of
