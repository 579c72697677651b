"""Make the Job of a submission, once, and take it back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlip_job.errors import ConflictError, MlipJobError, UnavailableError
from mlip_job.naming import generation_name
from mlip_job.schedulers.kubernetes.layout import HELM_RELEASE, SPEC_HASH, identifying_labels
from mlip_job.schedulers.kubernetes.manifests import from_yaml
from mlip_job.schedulers.kubernetes.status import has_ended

if TYPE_CHECKING:
    from mlip_job.schedulers.base import Plan
    from mlip_job.schedulers.kubernetes.cluster import Cluster
    from mlip_job.schedulers.kubernetes.pod import Manifest

_CREATE_TRIES = 5
_DELETION_SECONDS = 120.0
"""Beyond their grace period, so long pods may take to go."""


class Submitter:
    """Makes Jobs in a namespace.

    Parameters
    ----------
    cluster
        Of the namespace.
    poll_seconds
        Time between two looks at a Job that is waited for.
    """

    def __init__(self, cluster: Cluster, poll_seconds: float) -> None:
        self._cluster = cluster
        self._poll_seconds = poll_seconds

    def submit(self, plan: Plan) -> bool:
        """Make the Job of a plan and its ConfigMap, unless they are there.

        The Job comes first, to own the ConfigMap: whatever is left behind, deleting the Job or its
        time to live takes both. Its pod waits for the ConfigMap.

        Returns
        -------
        bool
            Whether the Job was there.

        Raises
        ------
        ConflictError
            If a Job of another submission has not ended, or this one is being deleted.
        """
        manifests = from_yaml(plan.text)
        found = self._active(plan, manifests["Job"])
        job = found or self._create(manifests["Job"])
        self._add_config_map(manifests["ConfigMap"], job, taken_back=found is None)
        return found is not None

    def _active(self, plan: Plan, job: Manifest) -> Manifest | None:
        """Return the Job that a plan became, unless it has ended; see `submit`."""
        request = plan.request
        labels = identifying_labels(request.config.family, request.generation)
        active = [other for other in self._cluster.jobs(labels) if not has_ended(other)]
        for other in active:
            if other["metadata"].get("deletionTimestamp"):
                raise ConflictError(
                    f"Job {other['metadata']['name']} of {generation_name(request.generation)} is "
                    "being cancelled",
                    hint="submit again once it is gone",
                )
            if spec_hash(other) != spec_hash(job):
                raise self._occupied(plan, other)
        return active[0] if active else None

    def _occupied(self, plan: Plan, other: Manifest) -> ConflictError:
        """Return the error for a generation that has a Job of another submission or release."""
        request, release = plan.request, release_of(other)
        who = f"{generation_name(request.generation)} of {request.config.family}"
        where = f"Job {other['metadata']['name']} in namespace {self._cluster.namespace}"
        if release is None:
            return ConflictError(
                f"{who} was submitted before, with other settings: {where}",
                hint=f"mlip-job cancel -g {request.generation}, or wait for it",
            )
        return ConflictError(
            f"{who} was installed with Helm, as release {release}: {where} waits or runs",
            hint=f"helm uninstall {release} --namespace {self._cluster.namespace}, or wait for it",
        )

    def _create(self, job: Manifest) -> Manifest:
        """Create a Job; one of the same name that has ended makes room for it."""
        cluster, name = self._cluster, job["metadata"]["name"]
        for _ in range(_CREATE_TRIES):
            created = cluster.create_job(job)
            if created is not None:
                return created
            other = cluster.job(name)
            if other is None:
                continue
            if spec_hash(other) != spec_hash(job):
                raise ConflictError(
                    f"namespace {cluster.namespace} has a Job {name} that is not mlip-job's",
                    hint=f"kubectl delete job {name}, if nobody needs it",
                )
            if not has_ended(other):
                return other  # somebody made the same submission at the same time
            cluster.delete_job(other)
            self._wait_until_gone(other)
            cluster.delete_config_map(name)  # the garbage collector may take its time
        raise UnavailableError(f"Job {name} is made and deleted by others at the same time")

    def _add_config_map(self, config_map: Manifest, job: Manifest, *, taken_back: bool) -> None:
        try:
            self._cluster.create_config_map(_owned(config_map, job))
        except MlipJobError:
            if taken_back:
                self._cluster.delete_job(job)
            raise

    def _wait_until_gone(self, job: Manifest) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        deadline = time.monotonic() + grace + _DELETION_SECONDS
        while time.monotonic() < deadline:
            found = self._cluster.job(name)
            if found is None or found["metadata"]["uid"] != uid:
                return
            time.sleep(self._poll_seconds)
        raise UnavailableError(
            f"Job {name} is being deleted, but its pods have not gone within their grace period",
            hint=f"kubectl get pods -l batch.kubernetes.io/job-name={name} shows them",
        )


def spec_hash(job: Manifest) -> str | None:
    """Return what a Job's submission is known by; None for a Job that was not submitted."""
    return _annotation(job, SPEC_HASH)


def release_of(job: Manifest) -> str | None:
    """Return the Helm release that a Job belongs to; None for a Job of another maker.

    What renders the chart without helm, as Argo CD does, leaves the labels alone.
    """
    labels = job["metadata"].get("labels") or {}
    if labels.get("app.kubernetes.io/managed-by") != "Helm":
        return None
    return _annotation(job, HELM_RELEASE) or labels.get("app.kubernetes.io/instance")


def _annotation(job: Manifest, name: str) -> str | None:
    found: str | None = (job["metadata"].get("annotations") or {}).get(name)
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
