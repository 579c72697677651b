"""Why a pod does not run yet, or why there is none, in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlip_job.schedulers.kubernetes.containers import (
    blocking_init_container,
    image_words,
    waiting_containers,
)
from mlip_job.schedulers.kubernetes.ending import ARCHITECTURE_HINT, wrong_architecture
from mlip_job.schedulers.kubernetes.layout import CONTAINER, QUEUE_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.schedulers.kubernetes.pod import Manifest


@dataclass(frozen=True)
class Wait:
    """Why a job waits: Kubernetes' word, ours, and what to do."""

    native: str
    reason: str
    hint: str | None = None


# By the reason that a container waits for (kubelet); the rest is told as the kubelet tells it.
_CONTAINER: Mapping[str, tuple[str, str | None]] = {
    "ImagePullBackOff": (
        "the image can't be pulled",
        "check submit.kubernetes.image, and image_pull_secrets where the registry needs them",
    ),
    "InvalidImageName": ("the image's name is not valid", "check submit.kubernetes.image"),
    "ErrImageNeverPull": (
        "the image is not on the node",
        "set submit.kubernetes.image_pull_policy to IfNotPresent",
    ),
    "CreateContainerConfigError": (
        "the container can't be configured",
        "create the Secret that it names, or correct submit.kubernetes.secrets",
    ),
    "CreateContainerError": ("the container can't be created", None),
    "RunContainerError": (
        "the container can't be started",
        "check the image: its entry point has to be mlip-job",
    ),
    "ContainerCreating": ("its volumes and its container are being made", None),
    "PodInitializing": ("its volumes and its container are being made", None),
}
_PREPARING = ("ContainerCreating", "PodInitializing")
_FAILING = ("CreateContainerError", "RunContainerError")
_SAME = {"ErrImagePull": "ImagePullBackOff", "RegistryUnavailable": "ImagePullBackOff"}
# Events that say more than the state that they belong to.
_TELLING = ("FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
_QUOTA = re.compile("exceeded quota: (?P<quota>[^,]+), (?P<what>.*)")


def wait_of_job(job: Manifest, events: Sequence[Manifest]) -> Wait:
    """Return why a Job has no pod that waits or runs."""
    metadata, name = job["metadata"], job["metadata"]["name"]
    if job["spec"].get("suspend"):
        queue = metadata.get("labels", {}).get(QUEUE_LABEL)
        if queue is None:
            return Wait(
                "Suspended",
                "the Job is suspended",
                f'kubectl patch job {name} -p \'{{"spec":{{"suspend":false}}}}\' starts it',
            )
        return Wait(
            "Suspended",
            f"it waits in Kueue's queue {queue}",
            "kubectl get workloads says why; if there are none, Kueue or the queue is missing",
        )
    event = _last(events)
    if event is None:
        return Wait("NoPod", "no pod has been made for it yet", f"kubectl describe job {name}")
    return _failed_create(str(event.get("message", "")))


def wait_of_pod(pod: Manifest, events: Sequence[Manifest]) -> Wait:
    """Return why a pod that was made does not run."""
    status = pod.get("status", {})
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _unscheduled(condition)
    init = blocking_init_container(pod)
    if init is not None and (wait := _of_init_container(*init)) is not None:
        return wait
    for name, waiting in waiting_containers(pod):
        return _container_waits(pod, name, waiting, events)
    if pod.get("spec", {}).get("nodeName"):
        return Wait("Pending", "its node has not begun with it yet")
    return Wait("Pending", "it waits for the scheduler to choose a node")


def _unscheduled(condition: Mapping[str, str]) -> Wait:
    native, message = str(condition.get("reason")), str(condition.get("message", ""))
    if native == "SchedulingGated":
        return Wait(native, "it is held back by a scheduling gate, as those of a queueing system")
    return Wait(
        native,
        f"no node fits: {message}",
        "wait, or ask for less: submit.kubernetes.gpus, cpu, memory, work_size, node_selector",
    )


def _of_init_container(name: str, state: Mapping[str, Any]) -> Wait | None:
    """Return why the run waits for an init container; None while the pod is being prepared."""
    waiting, ended = state.get("waiting") or {}, state.get("terminated")
    native, message = str(waiting.get("reason")), str(waiting.get("message") or "no message")
    hint = f"kubectl logs POD -c {name} has what it printed"
    if state.get("running") is not None:
        return Wait("PodInitializing", f"the run waits for the init container {name}", hint)
    if ended:
        code = ended.get("exitCode")
        return Wait("Init:Error", f"the init container {name} failed with exit code {code}", hint)
    if native not in _PREPARING and waiting:
        return Wait(native, f"the init container {name} can't be started: {message}", hint)
    return None


def _container_waits(
    pod: Manifest, name: str, waiting: Mapping[str, str], events: Sequence[Manifest]
) -> Wait:
    native, message = str(waiting.get("reason")), str(waiting.get("message", ""))
    event = _last(events)
    if native in _PREPARING and event is not None:
        return Wait(
            str(event["reason"]),
            f"its volumes can't be mounted: {event.get('message', '')}",
            "create what it names; the same submission again makes up for a lost ConfigMap",
        )
    if name != CONTAINER and native not in _PREPARING:
        return Wait(
            native,
            f"the side container {name} can't be started: {message or 'no message'}",
            f"it is none of mlip-job's: kubectl describe pod {pod['metadata']['name']}",
        )
    if (reason := wrong_architecture(pod, message)) is not None:
        return Wait(native, reason, ARCHITECTURE_HINT)
    words, hint = _CONTAINER.get(_SAME.get(native, native), ("the container waits", None))
    if native in _FAILING:
        words = f"{words}; {image_words(pod)}"
    return Wait(native, f"{words}{': ' + message if message else ''}", hint)


def _failed_create(message: str) -> Wait:
    """Explain why the Job controller could make no pod."""
    if (quota := _QUOTA.search(message)) is not None:
        return Wait(
            "QuotaExceeded",
            f"the namespace's quota {quota['quota']} has no room: {quota['what']}",
            "wait for others' jobs to end, ask for less, or for a larger quota",
        )
    if "violates PodSecurity" in message:
        return Wait(
            "PodSecurity",
            f"the namespace's Pod Security level refuses the pod: {message}",
            "take out what submit.kubernetes.volumes or the template adds",
        )
    return Wait("FailedCreate", f"no pod can be made: {message}", None)


def _last(events: Sequence[Manifest]) -> Manifest | None:
    """Return the newest event that tells more than a state."""
    telling = [event for event in events if event.get("reason") in _TELLING]
    return max(telling, key=_when, default=None)


def _when(event: Manifest) -> str:
    """Return when an event was last seen; which field says so depends on who wrote it."""
    return str(
        event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
    )
