"""From a Job, its pods and their events to a `JobStatus`.

Reasons are the messages of Kubernetes or of the run; hints say what to do where that is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlip_job.schedulers.base import JobState, JobStatus, meaning_of
from mlip_job.schedulers.kubernetes.manifest import CONTAINER, FINAL_EXIT_CODES, QUEUE_LABEL

if TYPE_CHECKING:
    from mlip_job.schedulers.kubernetes.manifest import Manifest

EventsOf = Callable[[str], Sequence["Manifest"]]
"""Returns the events of the object with a uid."""

GONE = JobStatus(
    JobState.GONE,
    "NotFound",
    "the cluster has no such Job: it was cancelled, or ended and its time to live is over",
    "mlip-job list shows whether the generation is published",
)

_NEXT_POD = "nothing: Kubernetes starts another pod, which resumes from the checkpoint"
# Searched in "REASON: MESSAGE" of a pod that is pending or has ended; the first match counts.
_HINTS: Mapping[str, str] = {
    # Messages of the kernel by runc, of containerd and of Docker.
    "(?i)exec format error|no match for platform|no matching manifest for": "the image is not "
    "built for the node's architecture: use one that is, or set kubernetes.io/arch in "
    "submit.kubernetes.node_selector",
    "exceeded quota": "wait for other jobs to end, request less, or ask for a larger quota",
    r"failed quota.* must specify .*\blimits\.cpu\b": "cancel it, set submit.kubernetes.cpu_limit, "
    "and submit it again",
    "failed quota.* must specify": "every container of the pod has to state it, injected ones too",
    "violates PodSecurity": "remove what submit.kubernetes.volumes or a webhook adds to the pod",
    "^Unschedulable": "wait, or request less: submit.kubernetes.gpus, cpu, memory, work_size, "
    "node_selector",
    "^(ErrImagePull|ImagePullBackOff|RegistryUnavailable)": "check submit.kubernetes.image, and "
    "image_pull_secrets for a private registry",
    "^(InvalidImageName|ErrImageNeverPull)": "check submit.kubernetes.image",
    "^CreateContainerConfigError": "create the Secret that it names, or correct "
    "submit.kubernetes.secrets",
    # The reasons of the kubelet, containerd and Docker, and the shell's exit codes.
    "^(RunContainerError|StartError|ContainerCannotRun)|exit code 12[67]:": "check the image: its "
    "entry point has to be mlip-job",
    "^(FailedMount|FailedAttachVolume)": "create what it names; the same submission again restores "
    "a lost ConfigMap",
    "^DeadlineExceeded": "raise submit.kubernetes.active_deadline_seconds",
    "^OOMKilled": "raise submit.kubernetes.memory, or lower training.batch_size",
    "^Evicted": "raise submit.kubernetes.work_size or memory, whichever it names",
    "exit code 70:": "mlip-job logs has the end of the log; the same submission resumes from the "
    "checkpoint",
    "exit code 71:": "check submit.kubernetes.gpu_resource, runtime_class, and the driver on the "
    "node",
    "exit code 75:": _NEXT_POD,
}
# Events that explain more than the state of their pod or Job.
_EXPLAINING = ("FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
_PREPARING = ("ContainerCreating", "PodInitializing")


def status_of(
    job: Manifest,
    pods: Sequence[Manifest],
    events_of: EventsOf,
    workload_of: Callable[[], Manifest | None] = lambda: None,
) -> JobStatus:
    """Return the status of a Job; `pods` are ordered from the oldest.

    `events_of` and `workload_of` are called only where they may explain why nothing runs.
    """
    ensemble = job["spec"].get("completionMode") == "Indexed"
    if _condition(job, "Complete") is not None:
        done = [pod for pod in pods if phase_of(pod) == "Succeeded"]
        reason = ending_of(done[-1]).reason if done else "done"
        if ensemble:
            reason = f"all {job['spec']['completions']} members are done"
        return JobStatus(JobState.SUCCEEDED, "Complete", reason, None, 0)
    if (failed := _condition(job, "Failed")) is not None:
        return _failed(failed, pods)
    if job["metadata"].get("deletionTimestamp"):
        return JobStatus(
            JobState.RUNNING, "Terminating", "it is being cancelled; its pod stores a checkpoint"
        )
    status = (_of_members if ensemble else _of_newest)(job, pods, events_of)
    queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    if not job["spec"].get("suspend") or queue is None or status.native == "Running":
        return status
    return _in_queue(status, queue, workload_of())


def has_ended(job: Manifest) -> bool:
    """Tell whether a Job is complete or has failed."""
    return any(_condition(job, kind) is not None for kind in ("Complete", "Failed"))


def newest_job(jobs: Sequence[Manifest]) -> Manifest | None:
    """Return the newest Job of a generation, or None; `jobs` the oldest first.

    Only one has not ended; it comes first, since two may be of one second.
    """
    newest = [job for job in jobs if not has_ended(job)][-1:] or jobs[-1:]
    return newest[0] if newest else None


def phase_of(pod: Manifest) -> str:
    """Return Pending, Running, Succeeded, Failed or Unknown."""
    return str(pod.get("status", {}).get("phase", "Unknown"))


def run_has_ended(pod: Manifest) -> bool:
    """Tell whether the run in a pod has ended, even if another container keeps the pod."""
    return phase_of(pod) in ("Succeeded", "Failed") or bool(_end_of_run(pod))


def is_kept(pod: Manifest) -> bool:
    """Tell whether a pod's run has ended for good while another container keeps the pod.

    After any other exit code Kubernetes starts another pod, once this one has ended.
    """
    final = _end_of_run(pod).get("exitCode") in (0, *FINAL_EXIT_CODES)
    return final and phase_of(pod) == "Running" and bool(_others_running(pod))


def ending_of(pod: Manifest) -> JobStatus:
    """Return how a pod ended, or the run in a pod that another container keeps."""
    status, terminated = pod.get("status", {}), _end_of_run(pod)
    code, native = terminated.get("exitCode"), terminated.get("reason")
    disruption = _condition(pod, "DisruptionTarget")
    if status.get("reason") == "Evicted":
        return _ended("Evicted", f"it was evicted: {status.get('message')}", code)
    if disruption is not None:
        native = str(disruption.get("reason") or "DisruptionTarget")
        text = f"it was disrupted: {disruption.get('message') or native}"
        return _ended(native, text, code, _NEXT_POD)
    if native == "OOMKilled":
        own = _own(pod.get("spec", {}).get("containers"))
        limit = own.get("resources", {}).get("limits", {}).get("memory")
        return _ended(native, f"it used more memory than its limit of {limit}", code)
    if code is None:
        text = str(status.get("message") or "the pod's node does not report")
        native, text, hint = _init_container(pod) or (status.get("reason") or "Failed", text, None)
        return _ended(str(native), text, hint=hint)
    message, hint = _termination_message(terminated)
    if code == 0:
        return JobStatus(JobState.SUCCEEDED, native or "Completed", message or "done", None, 0)
    reason = f"exit code {code}: {meaning_of(code).reason}{': ' + message if message else ''}"
    return _ended(native or "Error", reason, code, hint)


# -- the Job ---------------------------------------------------------------------------------------


def _failed(condition: Mapping[str, Any], pods: Sequence[Manifest]) -> JobStatus:
    """Return how the last pod failed by itself; else what the Job's condition says."""
    native = str(condition.get("reason", "Failed"))
    message = str(condition.get("message") or "it failed")
    own = [
        pod
        for pod in pods
        if phase_of(pod) == "Failed" and _condition(pod, "DisruptionTarget") is None
    ]
    if native == "DeadlineExceeded" or not own:
        return _ended(native, message)
    last = ending_of(own[-1])
    if native != "PodFailurePolicy":  # whose message repeats the exit code
        last = replace(last, reason=f"{message}; last, {last.reason}")
    return replace(last, native=native) if last.native in ("Error", "Failed") else last


def _of_newest(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return the status of a Job with one pod at a time."""
    if not pods or phase_of(pods[-1]) in ("Succeeded", "Failed"):
        return _without_pod(job, pods, events_of)
    newest, phase = pods[-1], phase_of(pods[-1])
    if newest["metadata"].get("deletionTimestamp"):
        status = JobStatus(JobState.RUNNING, "Terminating", "its pod is stopping")
    elif phase == "Running" and _end_of_run(newest):
        return _completing(newest)
    elif phase == "Running":
        status = JobStatus(JobState.RUNNING, "Running")
    elif phase == "Pending":
        status = _pending_pod(newest, events_of(newest["metadata"]["uid"]))
    else:
        return JobStatus(JobState.UNKNOWN, phase, "the pod's node does not report", "wait")
    return _after_attempts(status, pods[:-1])


def _without_pod(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return why a Job that has not ended has no pod."""
    name, suspended = job["metadata"]["name"], job["spec"].get("suspend")
    if pods and not suspended:
        ending = ending_of(pods[-1])
        if ending.exit_code == 0:
            return JobStatus(JobState.RUNNING, "Completing", ending.reason)
        reason = f"attempt {len(pods)} ended, {ending.reason}; another one follows"
        return JobStatus(JobState.PENDING, ending.native, reason, ending.hint)
    if suspended:
        hint = f'kubectl patch job {name} -p \'{{"spec":{{"suspend":false}}}}\' starts it'
        status = _pending("Suspended", "the Job is suspended", hint)
    elif (event := _explaining(events_of(job["metadata"]["uid"]))) is not None:
        status = event
    else:
        status = _pending("NoPod", "it has no pod yet", f"kubectl describe job {name}")
    return _after_attempts(status, pods)


def _in_queue(status: JobStatus, queue: str, workload: Manifest | None) -> JobStatus:
    """Return why Kueue holds a Job back, in its words; `status` is that of the Job itself."""
    reason, hint = f"it is pending in Kueue's queue {queue}", None
    if workload is None:
        hint = "check that Kueue runs, and submit.kubernetes.queue; kubectl get localqueues"
    elif _condition(workload, "Admitted") is not None:
        reason = "Kueue has admitted it, and starts it"
    elif _condition(workload, "QuotaReserved") is not None:
        reason = f"it has its quota of Kueue's queue {queue}, and waits for admission checks"
        hint = "kubectl describe workload says which checks"
    else:
        evicted = _condition(workload, "Evicted")
        refused = _condition(workload, "QuotaReserved", "False")
        said = {"evicted": evicted, "no quota": refused}
        texts = (f"{word}: {one.get('message')}" for word, one in said.items() if one is not None)
        reason = "; ".join((reason, *texts))
        hint = "wait for other jobs to end, or set submit.kubernetes.priority_class"
        if "unavailable in ClusterQueue" in reason:  # Kueue's words for a resource without quota
            hint = "no waiting helps: the ClusterQueue needs a quota for each resource of the pod"
    return replace(status, reason=_joined(status.reason, reason), hint=hint)


def _of_members(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return the status of an ensemble: the members by state, and why one is pending."""
    pending = [pod for pod in pods if phase_of(pod) == "Pending"]
    started = [pod for pod in pods if phase_of(pod) == "Running"]
    running = [pod for pod in started if not _end_of_run(pod)]
    counts = {
        "done": int(job.get("status", {}).get("succeeded", 0)),
        "running": len(running),
        "pending": len(pending),
        "ended in a pod that still runs": len(started) - len(running),
        "failed": _count_indexes(job.get("status", {}).get("failedIndexes", "")),
    }
    members = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    reason = f"of {job['spec']['completions']} members {members}" if members else None
    if running:
        return JobStatus(JobState.RUNNING, "Running", reason)
    status = _of_newest(job, [*started, *pending][-1:], events_of)
    return replace(status, reason=_joined(reason, status.reason), exit_code=None)


def _completing(pod: Manifest) -> JobStatus:
    """Return the status of a Job whose run has ended in a pod that has not."""
    ending, others = ending_of(pod), ", ".join(_others_running(pod))
    code = ending.exit_code
    if not others:  # native sidecars, which the kubelet stops
        return JobStatus(JobState.RUNNING, "Completing", ending.reason, None, code)
    end = ending.reason if code else f"exit code 0: {ending.reason}"
    return JobStatus(
        ending.state if is_kept(pod) else JobState.RUNNING,
        "NotReady",  # as kubectl shows it
        f"the run has ended, {end}; the container {others} still runs and keeps the pod",
        "mlip-job cancel deletes the Job; docs/kubernetes.md, Side containers, says how to have "
        "such a container end with the run",
        code,
    )


def _after_attempts(status: JobStatus, pods: Sequence[Manifest]) -> JobStatus:
    """Add how the last of the earlier pods ended."""
    ended = [pod for pod in pods if phase_of(pod) == "Failed"]
    before = f"attempt {len(ended)} ended, {ending_of(ended[-1]).reason}" if ended else None
    return replace(status, reason=_joined(before, status.reason))


def _joined(*reasons: str | None) -> str | None:
    return "; ".join(filter(None, reasons)) or None


def _count_indexes(text: str) -> int:
    """Return how many numbers there are in ``1,3-5``."""
    ends = [part.partition("-") for part in text.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


# -- pods ------------------------------------------------------------------------------------------


def _pending_pod(pod: Manifest, events: Sequence[Manifest]) -> JobStatus:
    """Return why a pod is pending, in the words of the scheduler or the kubelet."""
    name, spec, status = pod["metadata"]["name"], pod.get("spec", {}), pod.get("status", {})
    if (condition := _condition(pod, "PodScheduled", "False")) is not None:
        return _pending(str(condition.get("reason")), str(condition.get("message", "")))
    if (init := _init_container(pod)) is not None:
        return _pending(*init)
    containers = status.get("containerStatuses") or ()
    for container in sorted(containers, key=lambda one: bool(one["name"] != CONTAINER)):
        if not (waiting := (container.get("state") or {}).get("waiting")):
            continue
        native = str(waiting.get("reason"))
        if native in _PREPARING and (event := _explaining(events)) is not None:
            return event
        reason = ": ".join(filter(None, (native, waiting.get("message"))))
        if container["name"] == CONTAINER:
            return _pending(native, reason)
        hint = f"kubectl describe pod {name}"
        return _pending(native, f"container {container['name']}: {reason}", hint)
    node = spec.get("nodeName")
    return _pending("Pending", f"on node {node}" if node else "no node is chosen yet")


def _init_container(pod: Manifest) -> tuple[str, str, str] | None:
    """Return native state, reason and hint of the init container that keeps the run from starting.

    A native sidecar has to start, any other one to end with 0. None if there is no such container,
    or the kubelet still prepares it.
    """
    declared = pod.get("spec", {}).get("initContainers") or ()
    sidecars = [one["name"] for one in declared if one.get("restartPolicy") == "Always"]
    for container in pod.get("status", {}).get("initContainerStatuses") or ():
        name, states = container["name"], _present(container.get("state"))
        kind = next(iter(states), "waiting")
        about: Mapping[str, Any] = states.get(kind, {})
        if container.get("started") if name in sidecars else about.get("exitCode") == 0:
            continue
        native, state = {
            "running": ("PodInitializing", "running"),
            "terminated": ("Init:Error", f"exit code {about.get('exitCode')}"),
        }.get(kind, (str(about.get("reason")), about.get("reason")))
        if state is None or state in _PREPARING:
            return None
        message = " ".join(str(about.get("message") or "").split())
        reason = ": ".join(filter(None, (f"init container {name}", state, message)))
        hint = f"kubectl logs {pod['metadata']['name']} -c {name} has what it printed"
        return native, reason, hint
    return None


def _explaining(events: Sequence[Manifest]) -> JobStatus | None:
    """Return the status by the newest event that says more than a state."""

    def seen(event: Manifest) -> str:
        """Return when it was last seen; the field depends on who wrote it."""
        created = event["metadata"].get("creationTimestamp")
        return str(event.get("lastTimestamp") or event.get("eventTime") or created)

    known = [event for event in events if event.get("reason") in _EXPLAINING]
    if not known:
        return None
    newest = max(known, key=seen)
    return _pending(str(newest["reason"]), str(newest.get("message", "")))


def _pending(native: str, reason: str, hint: str | None = None) -> JobStatus:
    return JobStatus(JobState.PENDING, native, reason, hint or _hint(native, reason))


def _ended(
    native: str, reason: str, exit_code: int | None = None, hint: str | None = None
) -> JobStatus:
    return JobStatus(JobState.FAILED, native, reason, hint or _hint(native, reason), exit_code)


def _hint(native: str, reason: str) -> str | None:
    text = f"{native}: {reason}"
    return next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), None)


def _termination_message(terminated: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return message and hint of the run itself; else the end of its log, and None."""
    text = str(terminated.get("message") or "").strip()
    try:
        end = json.loads(text)
        return str(end["message"]), end.get("hint")
    except (ValueError, TypeError, KeyError, RecursionError):
        return text[-500:], None


def _end_of_run(pod: Manifest) -> Mapping[str, Any]:
    """Return the state ``terminated`` of the run's container; empty if it has not ended."""
    own = _own(pod.get("status", {}).get("containerStatuses"))
    return (own.get("state") or {}).get("terminated") or {}


def _others_running(pod: Manifest) -> list[str]:
    """Return the names of other containers that run, and so keep the pod.

    Native sidecars are init containers, which the kubelet stops.
    """
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    others = (one for one in statuses if one["name"] != CONTAINER)
    return [str(one["name"]) for one in others if "running" in _present(one.get("state"))]


def _own(containers: Sequence[Mapping[str, Any]] | None) -> Mapping[str, Any]:
    """Return the run's container of several."""
    return next((one for one in containers or () if one["name"] == CONTAINER), {})


def _present(state: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a container's state has; a state of None is absent."""
    return {key: value for key, value in (state or {}).items() if value is not None}


def _condition(object_: Manifest, kind: str, status: str = "True") -> Mapping[str, Any] | None:
    conditions: Sequence[Mapping[str, Any]] = object_.get("status", {}).get("conditions") or ()
    matching = (c for c in conditions if (c.get("type"), c.get("status")) == (kind, status))
    return next(matching, None)
