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
from mlip_job.schedulers.kubernetes.logs import submission_lines
from mlip_job.schedulers.kubernetes.manifests import from_yaml, plan_job, to_yaml
from mlip_job.schedulers.kubernetes.status import FORGOTTEN, has_ended, status_of
from mlip_job.schedulers.kubernetes.submission import (
    current,
    follows,
    is_part,
    is_withheld,
    labels_of_generation,
    newest_submission,
    release_of,
    spec_hash,
    stage_of,
)
from mlip_job.schedulers.kubernetes.submitter import Submitter
from mlip_job.schedulers.kubernetes.template import job_from_template, template_name
from mlip_job.schedulers.kubernetes.withheld import of_withheld
from mlip_job.schedulers.stage_words import of_part

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
    template
        ``cronjob/NAME`` to make Jobs of, instead.
    poll_seconds
        Time between two looks at a Job that is waited for.
    """

    name = "kubernetes"

    def __init__(
        self, settings: KubernetesConfig, *, template: str | None = None, poll_seconds: float = 2.0
    ) -> None:
        self._settings = settings
        self._template = template
        self._poll_seconds = poll_seconds

    def plan(self, request: JobRequest) -> Plan:
        """Return the manifests; see `Scheduler.plan`. Only a template is read from the cluster."""
        if self._template is None:
            return plan_job(request)
        name, cluster = template_name(self._template), self._cluster(None)
        cron_job = cluster.cron_job(name)
        if cron_job is None:
            raise ConfigError(
                f"namespace {cluster.namespace} has no CronJob {name}",
                hint="kubectl get cronjobs shows which there are; the chart mlip-job installs one",
            )
        job = job_from_template(cron_job, request)
        return Plan(request, job["metadata"]["name"], to_yaml(job))

    def submit(self, plan: Plan) -> JobHandle:
        """Create the Job, unless it is there; see `Scheduler.submit`.

        Whatever of its submission waits for a Job that has succeeded is started.
        """
        cluster = self._cluster(from_yaml(plan.text)["Job"]["metadata"].get("namespace"))
        found = self._submitter(cluster).submit(plan)
        name, stage = f"{cluster.namespace}/{plan.name}", plan.request.stage
        return JobHandle(self.name, name, plan.name, stage, found=found)

    def find(self, family: str, generation: int) -> JobHandle | None:
        """Return a generation's Job, of several the one that matters; see `Scheduler.find`."""
        jobs = self._cluster(None).jobs(identifying_labels(family, generation))
        job = current(newest_submission(jobs))
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
        if is_withheld(job):
            return self._status_of_withheld(handle, job)
        status = status_of(job, cluster.pods(handle.name), _events_of(cluster))
        return of_part(status, stage_of(job)) if is_part(job) else status

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """Yield the lines of all pods, of all Jobs of the submission; see `Scheduler.logs`."""
        cluster = self._cluster_of(handle)
        names = [job["metadata"]["name"] for job in self._together(cluster, handle)]
        names = names or [handle.name]
        return submission_lines(cluster, names, follow=follow, poll_seconds=self._poll_seconds)

    def cancel(self, handle: JobHandle) -> None:
        """Delete what has not ended of a submission; see `Scheduler.cancel`."""
        cluster = self._cluster_of(handle)
        jobs = [job for job in self._together(cluster, handle) if not has_ended(job)]
        for job in reversed(jobs):  # or one might start another
            cluster.delete_job(job)

    # -- the Jobs of a submission ------------------------------------------------------------------

    def _together(self, cluster: Cluster, handle: JobHandle) -> list[Manifest]:
        """Return the Jobs of the submission that a Job is of, in order."""
        job = cluster.job(handle.name)
        if job is None or not is_part(job):
            return [job] if job is not None else []
        jobs = cluster.jobs(labels_of_generation(job))
        return newest_submission([one for one in jobs if spec_hash(one) == spec_hash(job)])

    def _status_of_withheld(self, handle: JobHandle, job: Manifest) -> JobStatus:
        name = str(follows(job))
        before = JobHandle(self.name, f"{handle.id.partition('/')[0]}/{name}", name)
        return of_withheld(job, self.status(before))

    def _submitter(self, cluster: Cluster) -> Submitter:
        return Submitter(cluster, self._poll_seconds)

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
    return JobHandle("kubernetes", name, metadata["name"], stage_of(job), release=release_of(job))


def _events_of(cluster: Cluster) -> Callable[[str], Sequence[Manifest]]:
    """Return a function that lists events; who may not list them is told less, and not refused."""

    def events_of(uid: str) -> Sequence[Manifest]:
        try:
            return cluster.events(uid)
        except ConfigError:
            return ()

    return events_of
