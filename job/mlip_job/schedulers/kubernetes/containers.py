"""The containers of a pod: which of them is the run, and what the others are doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlip_job.schedulers.kubernetes.layout import ARCHITECTURE_LABEL, CONTAINER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.schedulers.kubernetes.pod import Manifest


def end_of_run(pod: Manifest) -> Mapping[str, Any]:
    """Return the state ``terminated`` of the run's container; empty where it has not ended."""
    for container in _statuses(pod, "containerStatuses"):
        if container.get("name") == CONTAINER:
            return _state(container).get("terminated") or {}
    return {}


def running_besides(pod: Manifest) -> list[str]:
    """Return the names of other containers that run, and so keep the pod.

    Native sidecars are init containers, and none of these: the kubelet stops them.
    """
    return [
        str(container["name"])
        for container in _statuses(pod, "containerStatuses")
        if container["name"] != CONTAINER and _state(container).get("running") is not None
    ]


def waiting_containers(pod: Manifest) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and state ``waiting`` of the containers that wait, the run's first."""
    waiting = [
        (str(container["name"]), state)
        for container in _statuses(pod, "containerStatuses")
        if (state := _state(container).get("waiting"))
    ]
    return sorted(waiting, key=lambda one: one[0] != CONTAINER)


def blocking_init_container(pod: Manifest) -> tuple[str, Mapping[str, Any]] | None:
    """Return name and state of the init container that the run waits for, or None.

    It waits until a native sidecar has started, and any other one has ended with 0.
    """
    for container in _statuses(pod, "initContainerStatuses"):
        state, name = _state(container), str(container["name"])
        done = container.get("started") if name in _sidecars(pod) else _has_succeeded(state)
        if not done:
            return name, state
    return None


def failed_init_container(pod: Manifest) -> tuple[str, Mapping[str, Any]] | None:
    """Return name and state ``terminated`` of the init container that ended the pod, or None."""
    found = blocking_init_container(pod)
    ended = found[1].get("terminated") if found is not None else None
    return (found[0], ended) if found is not None and ended else None


def image_words(pod: Manifest) -> str:
    """Return which image runs, on which node, and the architecture that was asked for."""
    spec = pod.get("spec", {})
    images = [one.get("image") for one in spec.get("containers", ()) if one["name"] == CONTAINER]
    node = f" on node {spec['nodeName']}" if spec.get("nodeName") else ""
    architecture = (spec.get("nodeSelector") or {}).get(ARCHITECTURE_LABEL)
    asked = f"{ARCHITECTURE_LABEL}={architecture}" if architecture else "no architecture asked for"
    return f"image {images[0] if images else None}{node} ({asked})"


def _statuses(pod: Manifest, kind: str) -> list[Mapping[str, Any]]:
    return pod.get("status", {}).get(kind) or []


def _state(container: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = container.get("state") or {}
    return found


def _has_succeeded(state: Mapping[str, Any]) -> bool:
    return (state.get("terminated") or {}).get("exitCode") == 0


def _sidecars(pod: Manifest) -> list[str]:
    """Return the init containers that run for as long as the pod: native sidecars."""
    declared = pod.get("spec", {}).get("initContainers") or ()
    return [str(one["name"]) for one in declared if one.get("restartPolicy") == "Always"]
