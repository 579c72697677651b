"""How a pod ended, in words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlip_job.schedulers.base import meaning_of
from mlip_job.schedulers.kubernetes.containers import (
    end_of_run,
    failed_init_container,
    image_words,
)
from mlip_job.schedulers.kubernetes.layout import CONTAINER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.schedulers.kubernetes.pod import Manifest

# Reasons of the condition DisruptionTarget (Kubernetes documentation, "Pod disruption conditions").
_DISRUPTIONS: Mapping[str, str] = {
    "PreemptionByScheduler": "it was pre-empted by a pod of higher priority",
    "DeletionByTaintManager": "its node got a taint that it does not tolerate, or was lost",
    "EvictionByEvictionAPI": "its node was drained",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node was short of resources, or shut down",
}

_HINTS: Mapping[int, str] = {
    64: "correct the configuration and submit again",
    65: "correct the data; mlip-job export builds the dataset alone",
    69: "correct what keeps the pod from the store or the database, and submit again",
    70: "mlip-job logs has the end of the log; the same submission goes on from the checkpoint",
    71: "check submit.kubernetes.gpu_resource, runtime_class, and the driver on the node",
    73: "mlip-job list shows what is published; train it under the next number",
    75: "nothing: Kubernetes starts it again, and it goes on from its checkpoint",
}
_NOT_EXECUTABLE = (126, 127)
"""Exit codes of tini, or of a shell, that can't execute or find a program."""

_NOT_STARTED = ("StartError", "ContainerCannotRun")
"""Reasons of containers that the node could not start: containerd's, and Docker's."""

_ENTRY_POINT_HINT = "check the image: its entry point has to be mlip-job"
ARCHITECTURE_HINT = (
    "name an image of the node's architecture, or choose nodes of the image's: "
    "submit.kubernetes.architecture"
)

# Of the kernel by runc, of containerd and of Docker.
_WRONG_ARCHITECTURE = re.compile(
    r"exec format error|no match for platform|no matching manifest for", re.IGNORECASE
)


@dataclass(frozen=True)
class Ending:
    """How a pod ended.

    Attributes
    ----------
    native
        Kubernetes' word: ``Completed``, ``OOMKilled``, ``Evicted``, …
    reason, hint
        See `JobStatus`.
    exit_code
        Of ``mlip-job run``; None where it was not its end that ended the pod.
    disrupted
        Whether the cluster wanted the pod gone, so that it does not count as a failure.
    """

    native: str
    reason: str
    hint: str | None = None
    exit_code: int | None = None
    disrupted: bool = False


def ending_of(pod: Manifest) -> Ending:
    """Return how a pod ended, or the run in a pod that another container keeps."""
    status = pod.get("status", {})
    terminated = end_of_run(pod)
    exit_code = terminated.get("exitCode")
    disruption = _condition(status, "DisruptionTarget")
    if status.get("reason") == "Evicted":
        return Ending(
            "Evicted",
            f"it was evicted: {status.get('message', 'no reason given')}",
            "raise submit.kubernetes.work_size, tmp_size or memory, whichever it names",
            exit_code,
            disrupted=disruption is not None,
        )
    if disruption is not None:
        native = str(disruption.get("reason") or "DisruptionTarget")
        text = _DISRUPTIONS.get(native, disruption.get("message") or "the cluster disrupted it")
        return Ending(native, text, _HINTS[75], exit_code, disrupted=True)
    if terminated.get("reason") == "OOMKilled":
        return Ending(
            "OOMKilled",
            f"it used more memory than its limit{_limit(pod)}",
            "raise submit.kubernetes.memory, or lower training.batch_size",
            exit_code,
        )
    if exit_code is None:
        return _not_begun(pod)
    return _by_exit_code(pod, terminated, exit_code)


def wrong_architecture(pod: Manifest, said: str) -> str | None:
    """Return that an image is not of its node's architecture, where a message says so."""
    if _WRONG_ARCHITECTURE.search(said) is None:
        return None
    return f"the image is not of the node's architecture: {image_words(pod)}: {said}"


def _not_begun(pod: Manifest) -> Ending:
    status = pod.get("status", {})
    if (failed := failed_init_container(pod)) is None:
        native = str(status.get("reason") or "Failed")
        return Ending(native, str(status.get("message") or "its node lost sight of it"))
    name, ended = failed
    said = " ".join(str(ended.get("message") or "").split())
    reason = f"init container {name} failed with exit code {ended.get('exitCode')}"
    hint = f"kubectl logs {pod['metadata']['name']} -c {name} has what it printed"
    return Ending(
        "Init:Error", f"{reason}, and the run did not begin: {said or 'no message'}", hint
    )


def _by_exit_code(pod: Manifest, terminated: Mapping[str, Any], exit_code: int) -> Ending:
    said, hint = _message(terminated)
    native = str(terminated.get("reason") or ("Completed" if exit_code == 0 else "Error"))
    if exit_code == 0:
        return Ending(native, said or "done", None, 0)
    if (reason := wrong_architecture(pod, said)) is not None:
        return Ending(native, reason, ARCHITECTURE_HINT, exit_code)
    meaning = meaning_of(exit_code).reason
    if native in _NOT_STARTED or exit_code in _NOT_EXECUTABLE:
        meaning = "the container could not be started" if native in _NOT_STARTED else meaning
        meaning, hint = f"{meaning}; {image_words(pod)}", hint or _ENTRY_POINT_HINT
    reason = f"exit code {exit_code}: {meaning}{': ' + said if said else ''}"
    return Ending(native, reason, hint or _HINTS.get(exit_code), exit_code)


def _message(terminated: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return what the run itself said: its termination message, else the end of its log."""
    text = str(terminated.get("message") or "").strip()
    try:
        end = json.loads(text)
        return str(end["message"]), end.get("hint")
    except (ValueError, TypeError, KeyError, RecursionError):
        return text[-500:], None


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return None


def _limit(pod: Manifest) -> str:
    for container in pod.get("spec", {}).get("containers", ()):
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        if container.get("name") == CONTAINER and limit:
            return f" of {limit}"
    return ""
