"""From a Job, its pods and their events to a `JobStatus`.

Reasons are Kubernetes' own messages, or the run's; hints say what to do where that is known.
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

# By the reason that Kubernetes gives for a pod that is pending or has ended.
_HINTS: Mapping[str, str] = {
    "Unschedulable": "wait, or request less: submit.kubernetes.gpus, cpu, memory, work_size, "
    "node_selector",
    "ErrImagePull": "check submit.kubernetes.image, and image_pull_secrets for a private registry",
    "InvalidImageName": "check submit.kubernetes.image",
    "ErrImageNeverPull": "check submit.kubernetes.image and the admission webhooks",
    "CreateContainerConfigError": "create the Secret that it names, or correct "
    "submit.kubernetes.secrets",
    "RunContainerError": "check the image: its entry point has to be mlip-job",
    "FailedMount": "create what it names; the same submission again restores a lost ConfigMap",
    "DeadlineExceeded": "raise submit.kubernetes.active_deadline_seconds",
    "OOMKilled": "raise submit.kubernetes.memory, or lower training.batch_size",
    "Evicted": "raise submit.kubernetes.work_size or memory, whichever it names",
    "DisruptionTarget": "nothing: Kubernetes starts another pod, which resumes from the checkpoint",
}
_SAME = {
    "ImagePullBackOff": "ErrImagePull",
    "RegistryUnavailable": "ErrImagePull",
    "FailedAttachVolume": "FailedMount",
    "StartError": "RunContainerError",  # containerd's reason for an ended container
    "ContainerCannotRun": "RunContainerError",  # Docker's
}
# By the text of a message; the first match counts.
_HINTS_BY_MESSAGE: Sequence[tuple[re.Pattern[str], str]] = (
    (
        # Messages of the kernel by runc, of containerd and of Docker.
        re.compile("(?i)exec format error|no match for platform|no matching manifest for"),
        "the image is not built for the node's architecture: use one that is, or set "
        "submit.kubernetes.architecture to the image's",
    ),
    (
        re.compile("exceeded quota"),
        "wait for other jobs to end, request less, or ask for a larger quota",
    ),
    (
        re.compile(r"failed quota.* must specify .*\blimits\.cpu\b"),
        "cancel it, set submit.kubernetes.cpu_limit, and submit it again",
    ),
    (
        re.compile("failed quota.* must specify"),
        "every container of the pod has to state it, injected ones too",
    ),
    (
        re.compile("violates PodSecurity"),
        "remove what submit.kubernetes.volumes or a webhook adds to the pod",
    ),
)
_HINTS_BY_CODE: Mapping[int, str] = {
    70: "mlip-job logs has the end of the log; the same submission resumes from the checkpoint",
    71: "check submit.kubernetes.gpu_resource, runtime_class, and the driver on the node",
    75: _HINTS["DisruptionTarget"],
    126: _HINTS["RunContainerError"],
    127: _HINTS["RunContainerError"],
}
# Events that explain more than the state of their pod or Job.
_TELLING = ("FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
_PREPARING = ("ContainerCreating", "PodInitializing")


def status_of(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return the status of a Job; `pods` are ordered from the oldest.

    `events_of` is called only where events may explain why nothing runs.
    """
    if _condition(job, "Complete") is not None:
        return _succeeded(job, pods)
    if (failed := _condition(job, "Failed")) is not None:
        return _failed(failed, pods)
    if job["metadata"].get("deletionTimestamp"):
        return JobStatus(
            JobState.RUNNING, "Terminating", "it is being cancelled; its pod stores a checkpoint"
        )
    if job["spec"].get("completionMode") == "Indexed":
        return _of_members(job, pods, events_of)
    return _of_newest(job, pods, events_of)


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
        return _ended(native, text, code, _HINTS["DisruptionTarget"])
    if native == "OOMKilled":
        limit = _own(pod.get("spec", {}).get("containers")).get("resources", {}).get("limits", {})
        text = f"it used more memory than its limit of {limit.get('memory')}"
        return _ended("OOMKilled", text, code)
    if code is None:
        return _not_started(pod)
    said, hint = _termination_message(terminated)
    if code == 0:
        return JobStatus(JobState.SUCCEEDED, native or "Completed", said or "done", None, 0)
    # A program that can't be executed is an error of the node; its message is not the run's.
    reason = f"exit code {code}: {meaning_of(code).reason}{': ' + said if said else ''}"
    return _ended(native or "Error", reason, code, hint)


# -- the Job ---------------------------------------------------------------------------------------


def _succeeded(job: Manifest, pods: Sequence[Manifest]) -> JobStatus:
    done = [pod for pod in pods if phase_of(pod) == "Succeeded"]
    reason = ending_of(done[-1]).reason if done else "done"
    if job["spec"].get("completionMode") == "Indexed":
        reason = f"all {job['spec']['completions']} members are done"
    return JobStatus(JobState.SUCCEEDED, "Complete", reason, None, 0)


def _failed(condition: Mapping[str, Any], pods: Sequence[Manifest]) -> JobStatus:
    """Return how the last pod failed by itself; else what the Job's condition says."""
    native = str(condition.get("reason", "Failed"))
    message = str(condition.get("message") or "it failed")
    own = [pod for pod in pods if phase_of(pod) == "Failed" and not _is_disrupted(pod)]
    if native == "DeadlineExceeded" or not own:
        return _ended(native, message)
    last = ending_of(own[-1])
    if native != "PodFailurePolicy":  # whose message repeats the exit code
        last = replace(last, reason=f"{message}; last, {last.reason}")
    return replace(last, native=native) if last.native in ("Error", "Failed") else last


def _of_newest(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return the status of a Job with one pod at a time."""
    if not pods or phase_of(pods[-1]) in ("Succeeded", "Failed"):
        return _between(job, pods, events_of)
    newest, before = pods[-1], _before(pods[:-1])
    phase = phase_of(newest)
    if newest["metadata"].get("deletionTimestamp"):
        status = JobStatus(JobState.RUNNING, "Terminating", "its pod is stopping")
    elif phase == "Running" and _end_of_run(newest):
        return _completing(newest)
    elif phase == "Running":
        status = JobStatus(JobState.RUNNING, "Running")
    elif phase == "Pending":
        status = _wait_of_pod(newest, events_of(newest["metadata"]["uid"]))
    else:
        return JobStatus(JobState.UNKNOWN, phase, "the pod's node does not report", "wait")
    return replace(status, reason="; ".join(filter(None, (before, status.reason))) or None)


def _between(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return why a Job that has not ended has no pod."""
    if pods and not job["spec"].get("suspend"):
        ending = ending_of(pods[-1])
        if ending.exit_code == 0:
            return JobStatus(JobState.RUNNING, "Completing", ending.reason)
        reason = f"attempt {len(pods)} ended, {ending.reason}; another one follows"
        return JobStatus(JobState.PENDING, ending.native, reason, ending.hint)
    status = _wait_of_job(job, events_of(job["metadata"]["uid"]))
    return replace(status, reason="; ".join(filter(None, (_before(pods), status.reason))))


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
    told = "; ".join(filter(None, (reason, status.reason)))
    return JobStatus(status.state, status.native, told, status.hint)


def _completing(pod: Manifest) -> JobStatus:
    """Return the status of a Job whose run has ended in a pod that has not."""
    ending, others = ending_of(pod), ", ".join(_others_running(pod))
    code = ending.exit_code
    if not others:  # native sidecars, which the kubelet stops
        return JobStatus(JobState.RUNNING, "Completing", ending.reason, None, code)
    told = ending.reason if code else f"exit code 0: {ending.reason}"
    return JobStatus(
        ending.state if is_kept(pod) else JobState.RUNNING,
        "NotReady",  # as kubectl shows it
        f"the run has ended, {told}; the container {others} still runs and keeps the pod",
        "mlip-job cancel deletes the Job; docs/kubernetes.md, Side containers, says how to have "
        "such a container end with the run",
        code,
    )


def _before(pods: Sequence[Manifest]) -> str | None:
    """Say how the previous attempt ended."""
    ended = [pod for pod in pods if phase_of(pod) == "Failed"]
    return f"attempt {len(ended)} ended, {ending_of(ended[-1]).reason}" if ended else None


def _count_indexes(text: str) -> int:
    """Return how many numbers there are in ``1,3-5``."""
    count = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


# -- why nothing runs ------------------------------------------------------------------------------


def _wait_of_job(job: Manifest, events: Sequence[Manifest]) -> JobStatus:
    """Return why a Job has no pod."""
    name = job["metadata"]["name"]
    if job["spec"].get("suspend"):
        queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
        if queue is None:
            hint = f'kubectl patch job {name} -p \'{{"spec":{{"suspend":false}}}}\' starts it'
            return _pending("Suspended", "the Job is suspended", hint)
        hint = "kubectl get workloads says why; if there are none, Kueue or the queue is missing"
        return _pending("Suspended", f"it is pending in Kueue's queue {queue}", hint)
    if (event := _last(events)) is None:
        return _pending("NoPod", "it has no pod yet", f"kubectl describe job {name}")
    return _pending(str(event["reason"]), str(event.get("message", "")))


def _wait_of_pod(pod: Manifest, events: Sequence[Manifest]) -> JobStatus:
    """Return why a pod is pending."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _pending(str(condition.get("reason")), str(condition.get("message", "")))
    name = pod["metadata"]["name"]
    init = _blocking_init_container(pod)
    if init is not None and (status := _wait_of_init_container(name, *init)) is not None:
        return status
    containers = pod.get("status", {}).get("containerStatuses") or ()
    for container in sorted(containers, key=lambda one: bool(one["name"] != CONTAINER)):
        if waiting := (container.get("state") or {}).get("waiting"):
            event = _last(events) if waiting.get("reason") in _PREPARING else None
            if event is not None:
                return _pending(str(event["reason"]), str(event.get("message", "")))
            if container["name"] == CONTAINER:
                return _waiting("", waiting)
            return _waiting(
                f"container {container['name']}", waiting, f"kubectl describe pod {name}"
            )
    node = pod.get("spec", {}).get("nodeName")
    return _pending("Pending", f"on node {node}" if node else "no node is chosen yet")


def _wait_of_init_container(pod: str, name: str, state: Mapping[str, Any]) -> JobStatus | None:
    """Return why the run waits for an init container; None while the pod is being prepared."""
    hint = f"kubectl logs {pod} -c {name} has what it printed"
    if "running" in state:
        return _pending("PodInitializing", f"init container {name} runs", hint)
    if (ended := state.get("terminated")) is not None and ended.get("exitCode"):
        code = ended["exitCode"]
        return _pending("Init:Error", f"init container {name}: exit code {code}", hint)
    waiting = state.get("waiting")
    if waiting and waiting.get("reason") not in _PREPARING:
        return _waiting(f"init container {name}", waiting, hint)
    return None


def _waiting(prefix: str, waiting: Mapping[str, Any], hint: str | None = None) -> JobStatus:
    """Return the status for a container that waits, in the kubelet's words."""
    native = str(waiting.get("reason"))
    said = ": ".join(filter(None, (prefix, native, str(waiting.get("message") or ""))))
    return _pending(native, said, hint)


def _blocking_init_container(pod: Manifest) -> tuple[str, Mapping[str, Any]] | None:
    """Return name and state of the init container that the run waits for, or None.

    A native sidecar has to start; any other one has to end with 0.
    """
    declared = pod.get("spec", {}).get("initContainers") or ()
    sidecars = [one["name"] for one in declared if one.get("restartPolicy") == "Always"]
    for container in pod.get("status", {}).get("initContainerStatuses") or ():
        state, name = _present(container.get("state")), str(container["name"])
        succeeded = (state.get("terminated") or {}).get("exitCode") == 0
        if not (container.get("started") if name in sidecars else succeeded):
            return name, state
    return None


def _last(events: Sequence[Manifest]) -> Manifest | None:
    """Return the newest event that says more than a state."""

    def seen(event: Manifest) -> str:
        """Return when it was last seen; the field depends on who wrote it."""
        created = event["metadata"].get("creationTimestamp")
        return str(event.get("lastTimestamp") or event.get("eventTime") or created)

    telling = [event for event in events if event.get("reason") in _TELLING]
    return max(telling, key=seen, default=None)


def _pending(native: str, reason: str, hint: str | None = None) -> JobStatus:
    return JobStatus(JobState.PENDING, native, reason, hint or _hint(native, reason))


# -- how a pod ended -------------------------------------------------------------------------------


def _ended(
    native: str, reason: str, exit_code: int | None = None, hint: str | None = None
) -> JobStatus:
    hint = hint or _hint(native, reason) or _HINTS_BY_CODE.get(exit_code or 0)
    return JobStatus(JobState.FAILED, native, reason, hint, exit_code)


def _hint(native: str, message: str) -> str | None:
    for pattern, hint in _HINTS_BY_MESSAGE:
        if pattern.search(message):
            return hint
    return _HINTS.get(_SAME.get(native, native))


def _not_started(pod: Manifest) -> JobStatus:
    """Return how a pod ended whose run never started: at its init container, or its node."""
    status = pod.get("status", {})
    name, state = _blocking_init_container(pod) or ("", {})
    if (ended := state.get("terminated")) is None:
        message = str(status.get("message") or "the pod's node does not report")
        return _ended(str(status.get("reason") or "Failed"), message)
    said = " ".join(str(ended.get("message") or "no message").split())
    return _ended(
        "Init:Error",
        f"init container {name} failed with exit code {ended.get('exitCode')}: {said}",
        hint=f"kubectl logs {pod['metadata']['name']} -c {name} has what it printed",
    )


def _is_disrupted(pod: Manifest) -> bool:
    """Tell whether the cluster ended a pod, so that it does not count as a failure."""
    return _condition(pod, "DisruptionTarget") is not None


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
    return next((one for one in containers or () if one.get("name") == CONTAINER), {})


def _present(state: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a container's state has; a state of None is absent."""
    return {key: value for key, value in (state or {}).items() if value is not None}


def _condition(object_: Manifest, kind: str) -> Mapping[str, Any] | None:
    for condition in object_.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return None
