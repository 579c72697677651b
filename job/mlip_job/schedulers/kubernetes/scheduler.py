"""`KubernetesScheduler`: the contract of `mlip_job.schedulers.base`, on a cluster."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, ConflictError, MlipJobError, UnavailableError
from mlip_job.paths import generation_name, parse_generation_name
from mlip_job.schedulers.base import JobHandle, JobStatus, Plan
from mlip_job.schedulers.kubernetes.client import Cluster, connect
from mlip_job.schedulers.kubernetes.manifest import (
    FAMILY_LABEL,
    GENERATION_LABEL,
    SPEC_HASH,
    from_yaml,
    identifying_labels,
    plan_job,
)
from mlip_job.schedulers.kubernetes.status import (
    GONE,
    has_ended,
    is_kept,
    newest_job,
    phase_of,
    run_has_ended,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.config.schedulers import KubernetesConfig
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.kubernetes.manifest import Manifest

_CREATE_TRIES = 5
_DELETION_SECONDS = 120.0  # that pods may take to disappear, beyond their grace period
_PATIENCE_SECONDS = 300.0  # that the cluster may be unavailable while a log is followed


class KubernetesScheduler:
    """Jobs of one cluster.

    `settings` name cluster and namespace; each request's own configuration describes its Job.
    `poll_seconds` is the time between two looks at a Job, `silent_seconds` how long a followed log
    may be silent before it is requested again.
    """

    name = "kubernetes"

    def __init__(
        self,
        settings: KubernetesConfig,
        *,
        poll_seconds: float = 2.0,
        silent_seconds: float = 120.0,
    ) -> None:
        self._settings = settings
        self._poll_seconds = poll_seconds
        self._silent_seconds = silent_seconds

    def plan(self, request: JobRequest) -> Plan:
        return plan_job(request)

    def submit(self, plan: Plan) -> JobHandle:
        # The Job comes first, to own the ConfigMap: deleting the Job, or its time to live, removes
        # both. Its pod waits for the ConfigMap.
        manifests = from_yaml(plan.text)
        namespace = manifests["Job"]["metadata"].get("namespace") or self._cluster.namespace
        cluster = replace(self._cluster, namespace=namespace)
        found = _find_active(cluster, plan, manifests["Job"])
        job = found or _create(cluster, manifests["Job"], self._poll_seconds)
        owner = {key: job["metadata"][key] for key in ("name", "uid")}
        config_map = manifests["ConfigMap"]
        config_map["metadata"]["ownerReferences"] = [
            {"apiVersion": "batch/v1", "kind": "Job", **owner}
        ]
        try:
            cluster.create(config_map)
        except MlipJobError:
            if found is None:
                cluster.delete_job(job)
            raise
        return JobHandle(self.name, f"{namespace}/{plan.name}", plan.name, found=found is not None)

    def find(self, family: str, generation: int) -> JobHandle | None:
        job = newest_job(self._cluster.jobs(identifying_labels(family, generation)))
        return _handle(job) if job is not None else None

    def active(self, family: str, generation: int) -> Sequence[JobHandle]:
        # Jobs of submissions and releases, by their labels.
        jobs = self._cluster.jobs(identifying_labels(family, generation))
        return [_handle(job) for job in jobs if not has_ended(job)]

    def generations(self, family: str) -> set[int]:
        jobs = self._cluster.jobs({FAMILY_LABEL: family})
        names = (job["metadata"]["labels"].get(GENERATION_LABEL, "") for job in jobs)
        return {number for name in names if (number := parse_generation_name(name)) is not None}

    def status(self, handle: JobHandle) -> JobStatus:
        cluster = self._cluster_of(handle)
        job = cluster.job(handle.name)
        if job is None:
            return GONE

        def events_of(uid: str) -> Sequence[Manifest]:
            with suppress(ConfigError):  # without this permission the status explains less
                return cluster.events(uid)
            return ()

        def workload() -> Manifest | None:
            with suppress(ConfigError):  # likewise
                return cluster.workload(job)
            return None

        return status_of(job, cluster.pods(handle.name), events_of, workload)

    def logs(self, handle: JobHandle, *, follow: bool) -> Iterator[str]:
        """Yield the lines of all pods, one pod after the other.

        With `follow`, until the Job has ended or is gone, or only containers are left that keep the
        pod of a run that has ended. An unavailable cluster is retried.
        """
        cluster, readers = self._cluster_of(handle), dict[str, _PodLog]()
        reached = time.monotonic()
        while True:
            try:
                # Before the pods: a pod that is created after this is read in the next round.
                job = cluster.job(handle.name) if follow else None
                pods = cluster.pods(handle.name)
                for pod in pods:
                    if phase_of(pod) not in ("Running", "Succeeded", "Failed"):
                        continue
                    reader = readers.setdefault(pod["metadata"]["uid"], _PodLog(cluster, pod))
                    for line in reader.lines(follow=follow and not run_has_ended(pod)):
                        reached = time.monotonic()
                        yield line
                    if not reader.complete:
                        break
                else:
                    kept = pods and is_kept(pods[-1]) and all(map(run_has_ended, pods))
                    if job is None or has_ended(job) or kept:
                        return
            except UnavailableError as error:
                away = time.monotonic() - reached
                if not (follow and error.transient) or away > _PATIENCE_SECONDS:
                    raise
            if follow:
                time.sleep(self._poll_seconds)

    def cancel(self, handle: JobHandle) -> None:
        cluster = self._cluster_of(handle)
        job = cluster.job(handle.name)
        if job is not None and not has_ended(job):
            cluster.delete_job(job)

    @cached_property
    def _cluster(self) -> Cluster:
        return replace(connect(self._settings), silent_seconds=self._silent_seconds)

    def _cluster_of(self, handle: JobHandle) -> Cluster:
        return replace(self._cluster, namespace=handle.id.partition("/")[0])


def release_of(job: Manifest) -> str | None:
    """Return the Helm release that a Job belongs to; None for a Job of another maker.

    Tools that render the chart without helm, such as Argo CD, keep the labels.
    """
    labels = job["metadata"].get("labels") or {}
    if labels.get("app.kubernetes.io/managed-by") != "Helm":
        return None
    name = _annotation(job, "meta.helm.sh/release-name")
    return name or labels.get("app.kubernetes.io/instance")


def _handle(job: Manifest) -> JobHandle:
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    return JobHandle("kubernetes", f"{namespace}/{name}", name, release=release_of(job))


def _annotation(job: Manifest, name: str) -> str | None:
    found: str | None = (job["metadata"].get("annotations") or {}).get(name)
    return found


def _same_submission(one: Manifest, other: Manifest) -> bool:
    return _annotation(one, SPEC_HASH) == _annotation(other, SPEC_HASH)


def _find_active(cluster: Cluster, plan: Plan, job: Manifest) -> Manifest | None:
    """Return the Job of this submission, unless it has ended."""
    family, generation = plan.request.config.family, plan.request.generation
    name, namespace = generation_name(generation), cluster.namespace
    jobs = cluster.jobs(identifying_labels(family, generation))
    active = [other for other in jobs if not has_ended(other)]
    for other in active:
        where = f"Job {other['metadata']['name']} in namespace {namespace}"
        if other["metadata"].get("deletionTimestamp"):
            raise ConflictError(
                f"{name} of {family} is being cancelled: {where}",
                hint="submit again once it is gone",
            )
        if _same_submission(other, job):
            continue
        if (release := release_of(other)) is not None:
            raise ConflictError(
                f"{name} of {family} was installed with Helm, as release {release}: {where} is "
                "pending or running",
                hint=f"helm uninstall {release} --namespace {namespace}, or wait for it",
            )
        raise ConflictError(
            f"{name} of {family} was submitted before, with other settings: {where}",
            hint=f"mlip-job cancel -g {generation}, or wait for it",
        )
    return active[0] if active else None


def _create(cluster: Cluster, job: Manifest, poll_seconds: float) -> Manifest:
    """Create a Job; an ended one of the same submission is replaced."""
    name = job["metadata"]["name"]
    for _ in range(_CREATE_TRIES):
        if (created := cluster.create(job)) is not None:
            return created
        other = cluster.job(name)
        if other is None:
            continue
        if not _same_submission(other, job):
            raise ConflictError(
                f"namespace {cluster.namespace} has a Job {name} that is not mlip-job's",
                hint=f"kubectl delete job {name}, if nobody needs it",
            )
        if not has_ended(other):
            return other  # a concurrent submission created it
        cluster.delete_job(other)
        _wait_until_gone(cluster, other, poll_seconds)
        cluster.delete_config_map(name)  # garbage collection may be delayed
    raise UnavailableError(f"Job {name} is created and deleted by others at the same time")


def _wait_until_gone(cluster: Cluster, job: Manifest, poll_seconds: float) -> None:
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    deadline = time.monotonic() + grace + _DELETION_SECONDS
    while time.monotonic() < deadline:
        found = cluster.job(name)
        if found is None or found["metadata"]["uid"] != uid:
            return
        time.sleep(poll_seconds)
    raise UnavailableError(
        f"Job {name} is being deleted, but its pods have not ended within their grace period",
        hint=f"kubectl get pods -l batch.kubernetes.io/job-name={name} shows them",
    )


# Go's RFC3339Nano, in UTC or in the node's time zone.
_LINE = re.compile(
    r"(?P<seconds>[\d-]{10}T[\d:]{8})(\.(?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:\d\d)"
    r" (?P<text>.*)",
    re.DOTALL,
)
_SECONDS, _NANOSECONDS = len("2026-01-02T03:04:05"), len("2026-01-02T03:04:05.123456789")


class _PodLog:
    """One pod's log, from the last line that was read."""

    def __init__(self, cluster: Cluster, pod: Manifest) -> None:
        self.complete = False
        self._cluster = cluster
        self._pod = pod["metadata"]["name"]
        index = _annotation(pod, "batch.kubernetes.io/job-completion-index")
        self._prefix = "" if index is None else f"[{index}] "
        self._time = ""
        self._lines_of_time = 0
        self._unfinished = b""

    def lines(self, *, follow: bool) -> Iterator[str]:
        """Yield every line once.

        If the connection to a node is lost, the API server ends its answer as if the log had ended.
        So a log is complete when it does not grow any more (`follow` is false), and another request
        brought nothing.
        """
        if self.complete:
            return
        grown = False
        for line in self._unread(follow=follow):
            grown = True
            yield self._prefix + line
        self.complete = not (follow or grown)
        if self.complete and (rest := _parse(self._unfinished)) is not None:
            yield self._prefix + rest[1]

    def _unread(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines that are new; the server goes back to the beginning of a second."""
        since = self._time[:_SECONDS] + self._time[_NANOSECONDS:] if self._time else None
        known = self._lines_of_time
        self._unfinished = b""  # the last line of a lost connection is sent again
        for piece in self._cluster.log(self._pod, follow=follow, since=since):
            *lines, self._unfinished = (self._unfinished + piece).split(b"\n")
            for line in lines:
                moment, text = _parse(line) or (self._time, line.decode(errors="replace"))
                if moment < self._time:
                    continue
                if moment == self._time and known > 0:
                    known -= 1
                    continue
                self._lines_of_time = self._lines_of_time + 1 if moment == self._time else 1
                self._time = moment
                yield text


def _parse(line: bytes) -> tuple[str, str] | None:
    """Return time and text of a line; None if it does not start with a time."""
    match = _LINE.fullmatch(line.decode(errors="replace"))
    if match is None:
        return None
    # Go drops zeros at the end of the fraction; without them the times would not compare.
    moment = f"{match['seconds']}.{match['fraction'] or '':0<9}{match['zone']}"
    return moment, match["text"]
