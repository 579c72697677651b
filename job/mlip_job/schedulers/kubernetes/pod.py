"""The pod that trains: one container, no privileges, no token, nothing of the node's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlip_job.errors import ConfigError
from mlip_job.runtime.environment import CORES_VARIABLE
from mlip_job.schedulers.kubernetes.layout import (
    ARCHITECTURE_LABEL,
    CONFIG_DIR,
    CONFIG_FILE,
    CONTAINER,
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    TERMINATION_MESSAGE,
    WORK_DIR,
)

if TYPE_CHECKING:
    from mlip_job.config.kubernetes import KubernetesConfig
    from mlip_job.schedulers.base import JobRequest

Manifest = dict[str, Any]

_GRACE_MARGIN_SECONDS = 20
"""Pacemaker ends, TensorFlow lets go of its GPU, the interpreter ends."""


def settings_of(request: JobRequest) -> KubernetesConfig:
    """Return what the Job of a request asks for: without a GPU, where it has no use for one."""
    settings = request.config.submit.kubernetes
    if request.needs_gpu:
        return settings
    of_gpu: dict[str, Any] = {"gpus": 0, "runtime_class": None, "node_selector": {}, "affinity": {}}
    return settings.model_copy(update=of_gpu | settings.without_gpu.model_dump(exclude_none=True))


def pod_spec(request: JobRequest, config_map: str) -> Manifest:
    """Return the specification of the pod that a request runs in.

    Parameters
    ----------
    request
        What it runs.
    config_map
        With its configuration.

    Raises
    ------
    ConfigError
        If the image is missing, or the pod would be killed before it has stored its checkpoint.
    """
    settings = settings_of(request)
    spec: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_period_seconds(request),
        "automountServiceAccountToken": False,
        # A Service named mlip-job would put MLIP_JOB_… into the environment.
        "enableServiceLinks": False,
        "securityContext": _pod_security(settings.run_as_user),
        "containers": [_container(request, settings)],
        "volumes": _volumes(settings, config_map),
    }
    optional: Manifest = {
        "serviceAccountName": settings.service_account,
        "runtimeClassName": settings.runtime_class,
        "priorityClassName": settings.priority_class,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "nodeSelector": _node_selector(settings),
        "affinity": settings.affinity,
        "tolerations": _tolerations(settings),
        "topologySpreadConstraints": list(settings.topology_spread_constraints),
    }
    return spec | {key: value for key, value in optional.items() if value}


def grace_period_seconds(request: JobRequest) -> int:
    """Return how long a pod that shall stop has got.

    The last checkpoint and the release of the claim may each take ``run.stop_timeout``.
    """
    stop = request.config.run.stop_timeout
    chosen = request.config.submit.kubernetes.grace_period_seconds
    if chosen is None:
        return math.ceil(2 * stop) + _GRACE_MARGIN_SECONDS
    least = math.ceil(stop) + 5
    if chosen < least:
        raise ConfigError(
            f"submit.kubernetes.grace_period_seconds is {chosen}, but with run.stop_timeout at "
            f"{stop:g} s storing a checkpoint may take {least} s",
            hint="raise it, leave it out, or lower run.stop_timeout",
        )
    return chosen


def _container(request: JobRequest, settings: KubernetesConfig) -> Manifest:
    if settings.image is None:
        raise ConfigError(
            "submit.kubernetes.image is not set: the image that has mlip-job and pacemaker",
            hint="docs/kubernetes.md says how to build one",
        )
    container: Manifest = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": _arguments(request, settings),
        "workingDir": WORK_DIR,
        "env": _environment(settings, settings.image),
        "envFrom": [{"secretRef": {"name": name}} for name in settings.secrets],
        "resources": _resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": TERMINATION_MESSAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(settings),
    }
    return {key: value for key, value in container.items() if value}


def _arguments(request: JobRequest, settings: KubernetesConfig) -> list[str]:
    """Return the arguments of the image's entry point, ``mlip-job``."""
    arguments = ["--config", f"{CONFIG_DIR}/{CONFIG_FILE}", "run"]
    arguments += ["--generation", str(request.generation)]
    if (members := request.ensemble) is not None:
        arguments += ["--of", str(members)]  # which member: by the pod's index
    if settings.gpus and settings.require_gpu:
        arguments.append("--require-gpu")
    # Not request.options: the same submission, made again to wait for it, has the same manifest.
    arguments += map(_literal, request.run_options)
    return arguments


def _environment(settings: KubernetesConfig, image: str) -> list[Manifest]:
    def of_pod(name: str, field: str) -> Manifest:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}

    return [
        # Caches and settings of libraries go where a pod may write.
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - a volume of the pod's own
        {"name": "MLIP_JOB_IMAGE", "value": _literal(image)},
        of_pod("MLIP_JOB_KUBERNETES_NAMESPACE", "metadata.namespace"),
        of_pod("MLIP_JOB_KUBERNETES_JOB", f"metadata.labels['{JOB_NAME_LABEL}']"),
        of_pod("MLIP_JOB_KUBERNETES_JOB_UID", f"metadata.labels['{JOB_UID_LABEL}']"),
        # Rounded up to whole cores.
        {
            "name": CORES_VARIABLE,
            "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1"}},
        },
        {"name": "MLIP_JOB_TERMINATION_MESSAGE", "value": TERMINATION_MESSAGE},
        *({"name": name, "value": _literal(text)} for name, text in settings.env.items()),
    ]


def _literal(text: str) -> str:
    """Escape what the kubelet would expand: ``$(NAME)``."""
    return text.replace("$", "$$")


def _resources(settings: KubernetesConfig) -> Manifest:
    requests = {
        "cpu": settings.cpu,
        "memory": settings.memory,
        "ephemeral-storage": settings.work_size,
    }
    limits = {
        "cpu": settings.cpu_limit,
        "memory": settings.memory_limit or settings.memory,
        "ephemeral-storage": settings.ephemeral_storage_limit,
    }
    limits = {resource: limit for resource, limit in limits.items() if limit is not None}
    if settings.gpus:
        limits[settings.gpu_resource] = str(settings.gpus)
    return {"requests": requests, "limits": limits}


def _pod_security(user: int | None) -> Manifest:
    context: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if user is not None:
        context |= {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
        context["fsGroupChangePolicy"] = "OnRootMismatch"
    return context


def _node_selector(settings: KubernetesConfig) -> dict[str, str]:
    """Return the labels of a node that can run the image."""
    own = {ARCHITECTURE_LABEL: settings.architecture} if settings.architecture is not None else {}
    return own | settings.node_selector


def _tolerations(settings: KubernetesConfig) -> list[Manifest]:
    gpu = {"key": settings.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
    return [*([gpu] if settings.gpus else []), *settings.tolerations]


def _volumes(settings: KubernetesConfig, config_map: str) -> list[Manifest]:
    claims = dict.fromkeys(mount.claim for mount in settings.claims)
    return [
        {"name": "config", "configMap": {"name": config_map}},
        {"name": "work", "emptyDir": {"sizeLimit": settings.work_size}},
        {"name": "tmp", "emptyDir": {"sizeLimit": settings.tmp_size}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm_size}},
        *(
            {"name": _claim_volume(settings, name), "persistentVolumeClaim": {"claimName": name}}
            for name in claims
        ),
        *settings.volumes,
    ]


def _mounts(settings: KubernetesConfig) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "work", "mountPath": WORK_DIR},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - likewise
    ]
    for claim in settings.claims:
        mount = {"name": _claim_volume(settings, claim.claim), "mountPath": claim.mount_path}
        mount |= {"subPath": claim.sub_path} if claim.sub_path else {}
        mounts.append(mount | ({"readOnly": True} if claim.read_only else {}))
    return [*mounts, *settings.volume_mounts]


def _claim_volume(settings: KubernetesConfig, claim: str) -> str:
    """Return a volume's name for a claim, whose own name may be too long for one."""
    claims = list(dict.fromkeys(mount.claim for mount in settings.claims))
    return f"claim-{claims.index(claim)}"
