"""Make the Jobs of a submission, once each, and take them back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, ConflictError, MlipJobError, UnavailableError
from mlip_job.naming import generation_name
from mlip_job.schedulers.kubernetes.layout import QUEUE_LABEL, identifying_labels
from mlip_job.schedulers.kubernetes.manifests import from_yaml
from mlip_job.schedulers.kubernetes.resuming import resume
from mlip_job.schedulers.kubernetes.status import has_ended
from mlip_job.schedulers.kubernetes.submission import (
    due,
    is_done,
    is_part,
    is_stranded,
    newest_submission,
    release_of,
    spec_hash,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        """Make the Job of a plan and its ConfigMap, unless they are there; start what is due.

        The Job comes first, to own the ConfigMap: whatever is left behind, deleting the Job or its
        time to live takes both. Its pod waits for the ConfigMap.

        Returns
        -------
        bool
            Whether the Job was there, or is done.
        """
        manifests = from_yaml(plan.text)
        job, config_map = manifests["Job"], manifests.get("ConfigMap")
        request = plan.request
        self._make_room(plan, job)
        together = self._together(plan, job)
        done = is_done(request.stage, together, fresh=bool(request.run_options))
        found = None
        if not done:
            found = next((one for one in together if _is_active(one, plan.name)), None)
            created = found or self._create(job)
            if config_map is not None:
                self._add_config_map(config_map, created, taken_back=found is None)
        for one in due(self._together(plan, job)):
            resume(self._cluster, one)
        return done or found is not None

    def remove(self, jobs: Sequence[Manifest]) -> None:
        """Delete Jobs, the last first, so that none starts another; wait until their pods ended."""
        for job in reversed(jobs):
            self._cluster.delete_job(job)
        for job in jobs:
            self._wait_until_gone(job)

    def _together(self, plan: Plan, job: Manifest) -> list[Manifest]:
        """Return the Jobs of the same submission that there are."""
        jobs = self._jobs(plan)
        return newest_submission([one for one in jobs if spec_hash(one) == spec_hash(job)])

    def _jobs(self, plan: Plan) -> list[Manifest]:
        request = plan.request
        return self._cluster.jobs(identifying_labels(request.config.family, request.generation))

    def _make_room(self, plan: Plan, job: Manifest) -> None:
        """Delete what waits in vain of other submissions for the generation.

        Raises
        ------
        ConflictError
            If something else of them has not ended, or something of this one is being deleted.
        """
        request, jobs = plan.request, self._jobs(plan)
        for other in jobs:
            if has_ended(other):
                continue
            name = other["metadata"]["name"]
            if other["metadata"].get("deletionTimestamp"):
                raise ConflictError(
                    f"Job {name} of {generation_name(request.generation)} is being cancelled",
                    hint="submit again once it is gone",
                )
            if spec_hash(other) == spec_hash(job):
                continue
            if is_stranded(other, jobs):
                self.remove([other])
                continue
            raise self._occupied(plan, other)

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
                self._require_withheld(job, created)
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
            self.remove([other])
            cluster.delete_config_map(name)  # the garbage collector may take its time
        raise UnavailableError(f"Job {name} is made and deleted by others at the same time")

    def _require_withheld(self, job: Manifest, created: Manifest) -> None:
        """Refuse a cluster that gives Kueue's label to Jobs that were made without one."""
        queue = created["metadata"].get("labels", {}).get(QUEUE_LABEL)
        if queue is None or not is_part(job) or QUEUE_LABEL in job["metadata"]["labels"]:
            return
        self._cluster.delete_job(created)
        raise ConfigError(
            f"namespace {self._cluster.namespace} puts every Job into the queue {queue}, so that "
            "Kueue would start what has to wait for the Job before it",
            hint="leave out --split-export and --split-evaluation, or rename the LocalQueue "
            "default: Kueue takes that for what names none",
        )

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


def _is_active(job: Manifest, name: str) -> bool:
    return job["metadata"]["name"] == name and not has_ended(job)


def _owned(config_map: Manifest, job: Manifest) -> Manifest:
    """Return a ConfigMap that goes when its Job does."""
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
    }
    return {**config_map, "metadata": {**config_map["metadata"], "ownerReferences": [owner]}}
