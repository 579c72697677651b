"""Settings of a Kubernetes Job."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mlip_job.config.base import Part, Positive
from mlip_job.secret_texts import is_secret_variable

_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_QUANTITY = re.compile(r"(?!0+(\.0+)?\D*$)\d+(\.\d+)?([munkMGTPE]|[KMGTPE]i)?")
_UNITS = {
    "": Decimal(1),
    "m": Decimal("1e-3"),
    "u": Decimal("1e-6"),
    "n": Decimal("1e-9"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}
_RESOURCE = re.compile(rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-._A-Za-z0-9]{{0,61}}[A-Za-z0-9])?")
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")

OWNED_PATHS = ("/work", "/tmp", "/dev", "/etc/mlip-job", "/proc", "/sys")  # noqa: S108 - in the container
"""Where a pod has its own files; nothing else can be mounted there."""

OWNED_VARIABLES = (
    "HOME",
    "MLIP_JOB_CONFIG",
    "MLIP_JOB_CORES",
    "MLIP_JOB_IMAGE",
    "MLIP_JOB_KUBERNETES_JOB",
    "MLIP_JOB_KUBERNETES_JOB_UID",
    "MLIP_JOB_KUBERNETES_NAMESPACE",
    "MLIP_JOB_TERMINATION_MESSAGE",
)
"""What a pod's environment says of the pod itself."""

LIMITS = {
    "cpu_limit": "cpu",
    "ephemeral_storage_limit": "work_size",
}
"""The setting of each limit, and that of what is reserved."""


def _label_name(text: str) -> str:
    if re.fullmatch(_LABEL, text) is None:
        raise ValueError(f"{text!r} is no name: up to 63 lower-case letters, digits and '-'")
    return text


def _object_name(text: str) -> str:
    if len(text) > 253 or re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", text) is None:  # noqa: PLR2004 - RFC 1123
        raise ValueError(f"{text!r} is no name: lower-case letters, digits, '-' and '.'")
    return text


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _quantity(text: str) -> str:
    if _QUANTITY.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no quantity above 0, as in 500m, 4, 16Gi")
    return text


def _amount(quantity: str) -> Decimal:
    """Return a quantity as a number: ``500m`` is 0.5, ``1Ki`` is 1024."""
    number = quantity.rstrip("munkMGTPEi")
    return Decimal(number) * _UNITS[quantity.removeprefix(number)]


def _resource(text: str) -> str:
    if _RESOURCE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no name of a resource, as in nvidia.com/gpu")
    return text


def _image(text: str) -> str:
    if not text.isprintable() or re.search(r"\s", text) or not text:
        raise ValueError("is no reference of an image, as in registry.example/mlip-job:1.0")
    return text


def _mount_path(path: str) -> str:
    parts = path.split("/")
    if not path.startswith("/") or path == "/" or ":" in path or ".." in parts:
        raise ValueError("takes an absolute path in the container, as in /data")
    if any(f"{path}/".startswith(f"{owned}/") for owned in OWNED_PATHS):
        raise ValueError(f"{path} is the pod's own; choose another, as in /data")
    return path.rstrip("/")


LabelName = Annotated[str, AfterValidator(_label_name)]
ObjectName = Annotated[str, AfterValidator(_object_name)]
Quantity = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_quantity)]
ResourceName = Annotated[str, AfterValidator(_resource)]
Image = Annotated[str, AfterValidator(_image)]
MountPath = Annotated[str, AfterValidator(_mount_path)]
Manifest = dict[str, Any]


class ClaimMount(Part):
    """A PersistentVolumeClaim that the pod sees, e.g. with the database file or the store."""

    claim: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    mount_path: MountPath = Field(description="Where the container sees it, e.g. /data.")
    read_only: bool = False


class WithoutGpuConfig(Part):
    """What Jobs of linear fits ask, which need no GPU.

    What is not set is as for the fit. Only its GPUs, its RuntimeClass, its node_selector and its
    affinity, which choose nodes with GPUs, are not taken over.
    """

    cpu: Quantity | None = Field(None, description="Processors that are reserved.")
    memory: Quantity | None = Field(None, description="Memory, reserved and at most.")
    node_selector: dict[str, str] | None = Field(
        None, description="Labels that the node must have; by default none."
    )
    queue: LabelName | None = Field(None, description="Kueue's LocalQueue.")


class KubernetesConfig(Part):
    """What the Job asks of Kubernetes."""

    secrets_belong: ClassVar[str] = (
        "put it into a Secret and name that in submit.kubernetes.secrets"
    )

    context: str | None = Field(
        None, min_length=1, description="Context of the kubeconfig, else its current one."
    )
    namespace: LabelName | None = Field(
        None, description="Namespace, else that of the context, as with kubectl."
    )
    image: Image | None = Field(None, description="Image of mlip-job; by digest, best.")
    image_pull_secrets: tuple[ObjectName, ...] = Field(
        (), description="Secrets with the registry's credentials."
    )
    cpu: Quantity = Field("4", description="Processors that are reserved.")
    cpu_limit: Quantity | None = Field(
        None, description="Processors at most. Not given, no limit: a fit may use idle ones."
    )
    memory: Quantity = Field(
        "16Gi", description="Memory, reserved and at most; /dev/shm is part of it."
    )
    gpus: int = Field(1, ge=0, description="GPUs; 0 trains on processors.")
    gpu_resource: ResourceName = Field(
        "nvidia.com/gpu", description="What the cluster calls a GPU; its taint is tolerated."
    )
    require_gpu: bool = Field(
        True, description="Fail (71) where a GPU was asked for and TensorFlow sees none."
    )
    runtime_class: ObjectName | None = Field(
        None, description="RuntimeClass, e.g. nvidia, where GPUs need one."
    )
    work_size: Quantity = Field("20Gi", description="Disk for the dataset and the fit.")
    ephemeral_storage_limit: Quantity | None = Field(
        None,
        description="Disk at most: work_size, 1Gi of /tmp, the log. Not given, no limit.",
    )
    secrets: tuple[ObjectName, ...] = Field(
        (),
        description="Secrets whose keys are environment variables of the run, e.g. "
        "MLIP_JOB_DATABASE_PASSWORD, AWS_ACCESS_KEY_ID.",
    )
    env: dict[str, str] = Field({}, description="More environment variables; nothing secret.")
    claims: tuple[ClaimMount, ...] = Field(
        (), description="Volumes of PersistentVolumeClaims: [{claim: data, mount_path: /data}]."
    )
    volumes: tuple[Manifest, ...] = Field((), description="More volumes, as in a pod's manifest.")
    volume_mounts: tuple[Manifest, ...] = Field((), description="Where the container sees them.")
    service_account: ObjectName | None = Field(
        None, description="ServiceAccount, e.g. for workload identity; its token is not mounted."
    )
    queue: LabelName | None = Field(None, description="Kueue's LocalQueue.")
    priority_class: ObjectName | None = None
    architecture: LabelName | None = Field(
        "amd64",
        description="Architecture of the image, kubernetes.io/arch of the node, unless "
        "node_selector has that; null for an image of several.",
    )
    node_selector: dict[str, str] = Field({}, description="Labels that the node must have.")
    tolerations: tuple[Manifest, ...] = Field((), description="More tolerations than the GPU's.")
    affinity: Manifest = Field({}, description="Affinity, as in a pod's manifest.")
    labels: dict[str, str] = Field({}, description="More labels of Job and pods.")
    annotations: dict[str, str] = Field({}, description="Annotations of Job and pods.")
    backoff_limit: int = Field(
        3,
        ge=0,
        description="How often a run that failed for a reason that may pass is started again. "
        "Pre-emption and drained nodes don't count.",
    )
    active_deadline_seconds: int | None = Field(
        None, ge=1, description="s. The Job is ended after so long, waiting included."
    )
    ttl_days: Positive = Field(
        7.0, le=3650, description="days. An ended Job is removed after so long, with its pods."
    )
    run_as_user: int | None = Field(
        10001, ge=1, description="User and group; null where the cluster assigns them (OpenShift)."
    )

    without_gpu: WithoutGpuConfig = Field(
        WithoutGpuConfig(), description="What Jobs ask that need no GPU, if other."
    )

    @field_validator("env")
    @classmethod
    def _variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if _VARIABLE.fullmatch(name) is None:
                raise ValueError(f"{name!r} is no name of a variable")
            if name in OWNED_VARIABLES:
                raise ValueError(f"{name} is set by mlip-job itself")
            if is_secret_variable(name):
                raise ValueError(f"{name} names a secret; {cls.secrets_belong}")
        return env

    @model_validator(mode="after")
    def _distinct_mounts(self) -> Self:
        paths = [claim.mount_path for claim in self.claims]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise ValueError(f"claims: {min(twice)} is mounted twice")
        return self

    @model_validator(mode="after")
    def _limits_above_requests(self) -> Self:
        for limit_key, request_key in LIMITS.items():
            limit, request = getattr(self, limit_key), getattr(self, request_key)
            if limit is not None and _amount(limit) < _amount(request):
                raise ValueError(
                    f"{limit_key} is {limit}, less than {request_key}, {request}: a pod can't "
                    "reserve more than its limit"
                )
        return self
