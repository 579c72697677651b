"""`KubernetesScheduler`: the contract of `mlip_job.schedulers.base`, on a cluster."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, ConflictError, MlipJobError, UnavailableError
from mlip_job.naming import generation_name
from mlip_job.schedulers.base import JobHandle, JobStatus, Plan
from mlip_job.schedulers.kubernetes.cluster import Cluster
from mlip_job.schedulers.kubernetes.connection import Connection, connect
from mlip_job.schedulers.kubernetes.layout import SPEC_HASH, identifying_labels
from mlip_job.schedulers.kubernetes.logs import job_lines
from mlip_job.schedulers.kubernetes.manifests import from_yaml, plan_job, to_yaml
from mlip_job.schedulers.kubernetes.status import FORGOTTEN, has_ended, status_of
from mlip_job.schedulers.kubernetes.template import job_from_template, template_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlip_job.config.kubernetes import KubernetesConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.kubernetes.pod import Manifest

_CREATE_TRIES = 5
_DELETION_SECONDS = 120.0
"""Beyond their grace period, so long pods may take to go."""


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
        """Create the Job, then its ConfigMap; see `Scheduler.submit`.

        The Job comes first, to own the ConfigMap: whatever is left behind, deleting the Job or its
        time to live takes both. Its pod waits for the ConfigMap.
        """
        manifests = from_yaml(plan.text)
        job, config_map = manifests["Job"], manifests.get("ConfigMap")
        cluster = self._cluster(job["metadata"].get("namespace"))
        found = self._active(cluster, plan, job)
        created = found or self._create(cluster, job)
        if config_map is not None:
            try:
                cluster.create_config_map(_owned(config_map, created))
            except MlipJobError:
                if found is None:
                    cluster.delete_job(created)
                raise
        return _handle(created)

    def find(self, family: str, generation: int) -> JobHandle | None:
        """Return the newest Job of a generation; see `Scheduler.find`."""
        jobs = self._cluster(None).jobs(identifying_labels(family, generation))
        return _handle(jobs[-1]) if jobs else None

    def status(self, handle: JobHandle) -> JobStatus:
        """Return what a Job is doing; see `Scheduler.status`."""
        cluster = self._cluster_of(handle)
        job = cluster.job(handle.name)
        if job is None:
            return FORGOTTEN
        return status_of(job, cluster.pods(handle.name), _events_of(cluster))

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """Yield the lines of all its pods; see `Scheduler.logs`."""
        return job_lines(
            self._cluster_of(handle), handle.name, follow=follow, poll_seconds=self._poll_seconds
        )

    def cancel(self, handle: JobHandle) -> None:
        """Delete a Job that has not ended, and wait until its pods have; see `Scheduler.cancel`."""
        cluster = self._cluster_of(handle)
        job = cluster.job(handle.name)
        if job is None or has_ended(job):
            return
        cluster.delete_job(job)
        self._wait_until_gone(cluster, job)

    # -- submitting --------------------------------------------------------------------------------

    def _active(self, cluster: Cluster, plan: Plan, job: Manifest) -> Manifest | None:
        """Return the Job of the same submission that waits or runs, None where there is none.

        Raises
        ------
        ConflictError
            If there is another one for the generation.
        """
        request = plan.request
        family, generation = request.config.family, request.generation
        for other in cluster.jobs(identifying_labels(family, generation)):
            if has_ended(other):
                continue
            name = other["metadata"]["name"]
            if other["metadata"].get("deletionTimestamp"):
                raise ConflictError(
                    f"Job {name} of {generation_name(generation)} is being cancelled",
                    hint="submit again once it is gone",
                )
            if _spec_hash(other) == _spec_hash(job):
                return other
            raise ConflictError(
                f"{generation_name(generation)} of {family} was submitted before, with other "
                f"settings: Job {name} in namespace {cluster.namespace}",
                hint=f"mlip-job cancel -g {generation}, or wait for it",
            )
        return None

    def _create(self, cluster: Cluster, job: Manifest) -> Manifest:
        """Create a Job; one of the same name that has ended makes room for it."""
        name = job["metadata"]["name"]
        for _ in range(_CREATE_TRIES):
            created = cluster.create_job(job)
            if created is not None:
                return created
            other = cluster.job(name)
            if other is None:
                continue
            if _spec_hash(other) != _spec_hash(job):
                raise ConflictError(
                    f"namespace {cluster.namespace} has a Job {name} that is not mlip-job's",
                    hint=f"kubectl delete job {name}, if nobody needs it",
                )
            if not has_ended(other):
                return other  # somebody made the same submission at the same time
            cluster.delete_job(other)
            self._wait_until_gone(cluster, other)
            cluster.delete_config_map(name)  # the garbage collector may take its time
        raise UnavailableError(f"Job {name} is made and deleted by others at the same time")

    def _wait_until_gone(self, cluster: Cluster, job: Manifest) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        deadline = time.monotonic() + grace + _DELETION_SECONDS
        while time.monotonic() < deadline:
            found = cluster.job(name)
            if found is None or found["metadata"]["uid"] != uid:
                return
            time.sleep(self._poll_seconds)
        raise UnavailableError(
            f"Job {name} is being deleted, but its pods have not gone within their grace period",
            hint=f"kubectl get pods -l batch.kubernetes.io/job-name={name} shows them",
        )

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
    return JobHandle("kubernetes", f"{metadata['namespace']}/{metadata['name']}", metadata["name"])


def _spec_hash(job: Manifest) -> str | None:
    annotations = job["metadata"].get("annotations") or {}
    found: str | None = annotations.get(SPEC_HASH)
    return found


def _owned(config_map: Manifest, job: Manifest) -> Manifest:
    """Return a ConfigMap that goes when its Job does."""
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
    }
    return {**config_map, "metadata": {**config_map["metadata"], "ownerReferences": [owner]}}


def _events_of(cluster: Cluster) -> Callable[[str], Sequence[Manifest]]:
    """Return a function that lists events; who may not list them is told less, and not refused."""

    def events_of(uid: str) -> Sequence[Manifest]:
        try:
            return cluster.events(uid)
        except ConfigError:
            return ()

    return events_of
