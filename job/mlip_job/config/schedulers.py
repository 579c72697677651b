"""Settings of submission: Slurm, Kubernetes, or a process of this machine."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mlip_job.config.fields import Part, Positive, matching
from mlip_job.secret_texts import is_secret_variable

if TYPE_CHECKING:
    from collections.abc import Mapping

# Options of sbatch that follow from other settings, or by which mlip-job finds and keeps its jobs.
OWNED_OPTIONS: Mapping[str, str] = {
    "account": "submit.slurm.account",
    "array": "mlip-job submit --ensemble",
    "chdir": "work_dir",
    "cpus-per-task": "submit.slurm.cpus",
    "dependency": "mlip-job submit --after",
    "error": "work_dir, where the log is",
    "export": "submit.slurm.env_file",
    "export-file": "submit.slurm.env_file",
    "get-user-env": "submit.slurm.setup",
    "gres": "submit.slurm.gres",
    "input": "nothing: a run reads no input",
    "job-name": "nothing: mlip-job finds its jobs by name",
    "kill-on-invalid-dep": "mlip-job submit --after",
    "mem": "submit.slurm.mem",
    "no-requeue": "submit.slurm.max_requeues",
    "nodes": "nothing: a run uses one node",
    "ntasks": "nothing: a run is one task",
    "open-mode": "nothing: the log is appended to after a requeue",
    "output": "work_dir, where the log is",
    "parsable": "nothing: mlip-job reads what sbatch prints",
    "partition": "submit.slurm.partition",
    "qos": "submit.slurm.qos",
    "quiet": "nothing: mlip-job reads what sbatch prints",
    "requeue": "submit.slurm.max_requeues",
    "signal": "submit.slurm.warning",
    "test-only": "mlip-job submit --dry-run",
    "time": "submit.slurm.time",
    "wait": "mlip-job submit --wait",
    "wrap": "nothing: mlip-job writes the script",
}

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=.*)?")


def _one_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("takes one line of printable characters")
    return text


def _extra(option: str) -> str:
    match = _OPTION.fullmatch(option)
    if match is None:
        raise ValueError(f"{option!r} is no option in the form --name or --name=value")
    # sbatch accepts any unambiguous prefix of an option, so prefixes are rejected too.
    for owned, setting in OWNED_OPTIONS.items():
        if owned.startswith(match.group(1)):
            raise ValueError(f"sets --{owned}, which follows from {setting}")
    return option


def _is_gpu(resource: str) -> bool:
    """Return whether a generic resource, ``gpu:a100:1``, is a GPU or a part of one."""
    return resource.removeprefix("gres:").partition(":")[0].lower() in _GPU_RESOURCES


def _chooses_gpu_nodes(option: str) -> bool:
    """Return whether an option of sbatch requests GPUs or nodes with GPUs."""
    name = option.removeprefix("--").partition("=")[0]
    of_nodes = any(known.startswith(name) for known in ("constraint", "reservation"))
    return of_nodes or "gpu" in option.lower()


def _quoted(value: object) -> object:
    if isinstance(value, int):
        raise ValueError("needs quotes, as in '24:00:00': YAML reads it as a number without")  # noqa: TRY004 - pydantic wants a ValueError
    return value


# Generic resources of GPUs or of parts of them, and options of containers that show GPUs.
_GPU_RESOURCES = frozenset({"gpu", "mps", "shard"})
_GPU_CONTAINER_OPTIONS = frozenset({"--nv", "--nvccli", "--rocm"})

Line = Annotated[str, AfterValidator(_one_line)]
Extra = Annotated[str, AfterValidator(_one_line), AfterValidator(_extra)]
Time = Annotated[
    str,
    BeforeValidator(_quoted),
    matching(
        r"(?=.*[1-9])(\d+-)?\d+(:[0-5]?\d){0,2}",
        "takes minutes, hours:minutes:seconds or days-hours:minutes:seconds",
    ),
]
Memory = Annotated[
    str, matching(r"\d+[KMGT]?", "takes a whole number with K, M, G or T, as in 32G")
]


class SlurmCpuConfig(Part):
    """Slurm resources of linear fits, which need no GPU.

    Unset keys are as for the fit, except those for its GPU or GPU node.
    """

    partition: Line | None = Field(
        None, description="Partition without GPUs; with one, the fit's QOS is not asked for."
    )
    qos: Line | None = None
    time: Time | None = Field(None, description="Time limit, in quotes: '02:00:00'.")
    mem: Memory | None = Field(None, description="Memory of the node, e.g. 16G.")
    cpus: int | None = Field(None, ge=1, description="CPUs.")
    extra: tuple[Extra, ...] | None = Field(
        None,
        description="More options of sbatch. Not given, those of the fit without --constraint, "
        "--reservation and any that names a GPU.",
    )


class SlurmConfig(Part):
    """Resources of the batch script, and its commands on the node."""

    secrets_belong: ClassVar[str] = "put it into the file that submit.slurm.env_file names"

    account: Line | None = Field(None, description="Account that pays for the job.")
    partition: Line | None = None
    qos: Line | None = None
    gres: Line | None = Field(None, description="Generic resources, e.g. gpu:a100:1.")
    time: Time | None = Field(
        None, description="Time limit, in quotes: '24:00:00'. A longer fit resumes after a requeue."
    )
    mem: Memory | None = Field(None, description="Memory of the node, e.g. 32G.")
    cpus: int | None = Field(None, ge=1, description="CPUs.")
    extra: tuple[Extra, ...] = Field(
        (),
        description="More options of sbatch, e.g. ['--constraint=a100', '--mail-type=END,FAIL'].",
    )
    cpu: SlurmCpuConfig = SlurmCpuConfig()
    warning: int = Field(
        120,
        ge=10,
        le=65535,
        description="s. Time before the limit at which the run saves its checkpoint and is "
        "requeued. Slurm may be a minute early.",
    )
    max_requeues: int = Field(
        20, ge=0, description="How often a job may be requeued, for any reason."
    )
    require_gpu: bool = Field(
        True, description="Fail (71) where a GPU was asked for and TensorFlow sees none."
    )
    env_file: Line | None = Field(
        None,
        description="File of NAME=VALUE lines that the run finds in its environment: passwords and "
        "keys. Only its owner may have access (chmod 600).",
    )
    modules: tuple[Line, ...] = Field((), description="Environment modules to load.")
    setup: tuple[Line, ...] = Field(
        (), description="Lines of shell to run first, e.g. ['source /sw/venv/bin/activate']."
    )
    image: Line | None = Field(
        None, description="Apptainer image to run. Without one, command is run on the node itself."
    )
    container: Line = Field("apptainer", description="Program that runs the image.")
    container_options: tuple[Line, ...] = Field(
        ("--nv",),
        description="Further options of it; --nv is for NVIDIA GPUs, --bind=/data shows a path. "
        "Work directory, database file and store directory are shown anyway.",
    )
    command: Line = Field(
        "mlip-job", description="Program to run without an image, e.g. /sw/venv/bin/mlip-job."
    )

    def without_gpu(self) -> Self:
        """Return the settings of a job that needs no GPU."""
        resources = [item for item in (self.gres or "").split(",") if item and not _is_gpu(item)]
        left = {
            "gres": ",".join(resources) or None,
            "extra": tuple(option for option in self.extra if not _chooses_gpu_nodes(option)),
            "container_options": tuple(
                option for option in self.container_options if option not in _GPU_CONTAINER_OPTIONS
            ),
        }
        if self.cpu.partition is not None:
            left["qos"] = None
        own = {name: value for name, value in self.cpu if value is not None}
        return self.model_copy(update=left | own)

    @property
    def asks_for_gpu(self) -> bool:
        """Whether the job is to have a GPU."""
        return "gpu" in (self.gres or "") or any(o.startswith("--gpus") for o in self.extra)


_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_UNITS = {
    "": Decimal(1),
    "m": Decimal("1e-3"),
    "u": Decimal("1e-6"),
    "n": Decimal("1e-9"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")

OWNED_PATHS = ("/work", "/tmp", "/dev", "/etc/mlip-job", "/proc", "/sys")  # noqa: S108 - in the container
"""Paths of the pod's own files, where nothing else can be mounted."""

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
"""Set by mlip-job in every pod."""


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _amount(quantity: str) -> Decimal:
    """Return a quantity as a number: ``500m`` is 0.5, ``1Ki`` is 1024."""
    number = quantity.rstrip("munkMGTPEi")
    return Decimal(number) * _UNITS[quantity.removeprefix(number)]


def _mount_path(path: str) -> str:
    parts = path.split("/")
    if not path.startswith("/") or path == "/" or ":" in path or ".." in parts:
        raise ValueError("takes an absolute path in the container, as in /data")
    if any(f"{path}/".startswith(f"{owned}/") for owned in OWNED_PATHS):
        raise ValueError(f"{path} is the pod's own; choose another, as in /data")
    return path.rstrip("/")


LabelName = Annotated[
    str, matching(_LABEL, "{text!r} is no name: up to 63 lower-case letters, digits and '-'")
]
ObjectName = Annotated[  # RFC 1123
    str,
    matching(
        rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*",
        "{text!r} is no name: lower-case letters, digits, '-' and '.'",
    ),
]
Quantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    matching(
        r"(?!0+(\.0+)?\D*$)\d+(\.\d+)?([munkMGTPE]|[KMGTPE]i)?",
        "{text!r} is no quantity above 0, as in 500m, 4, 16Gi",
    ),
]
ResourceName = Annotated[
    str,
    matching(
        rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-._A-Za-z0-9]{{0,61}}[A-Za-z0-9])?",
        "{text!r} is no name of a resource, as in nvidia.com/gpu",
    ),
]
Image = Annotated[
    str, matching(r"\S+", "is no reference of an image, as in registry.example/mlip-job:1.0")
]
MountPath = Annotated[str, AfterValidator(_mount_path)]
Manifest = dict[str, Any]


class ClaimMount(Part):
    """A PersistentVolumeClaim mounted in the pod, e.g. with the database file or the store."""

    claim: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    mount_path: MountPath = Field(description="Where the container sees it, e.g. /data.")
    read_only: bool = False


class WithoutGpuConfig(Part):
    """Resources of Jobs of linear fits, which need no GPU.

    Unset keys are as for the fit, except its GPUs, RuntimeClass, node_selector and affinity, which
    choose nodes with GPUs.
    """

    cpu: Quantity | None = Field(None, description="Processors that are reserved.")
    memory: Quantity | None = Field(None, description="Memory, reserved and at most.")
    node_selector: dict[str, str] | None = Field(
        None, description="Labels that the node must have; by default none."
    )
    queue: LabelName | None = Field(None, description="Kueue's LocalQueue.")


class KubernetesConfig(Part):
    """Settings of the Kubernetes Job."""

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
        "nvidia.com/gpu",
        description="The cluster's name of a GPU resource; its taint is tolerated.",
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
    node_selector: dict[str, str] = Field(
        {},
        description="Labels that the node must have, besides kubernetes.io/arch: amd64, which an "
        "image for another architecture replaces.",
    )
    tolerations: tuple[Manifest, ...] = Field((), description="More tolerations than the GPU's.")
    affinity: Manifest = Field({}, description="Affinity, as in a pod's manifest.")
    labels: dict[str, str] = Field({}, description="More labels of Job and pods.")
    annotations: dict[str, str] = Field({}, description="Annotations of Job and pods.")
    backoff_limit: int = Field(
        3,
        ge=0,
        description="Retries of a run that failed for a transient reason. Pre-emption and drained "
        "nodes don't count.",
    )
    active_deadline_seconds: int | None = Field(
        None, ge=1, description="s. Time limit of the Job, pending time included."
    )
    ttl_days: Positive = Field(
        7.0, le=3650, description="days. A finished Job and its pods are removed after this time."
    )
    run_as_user: int | None = Field(
        10001, ge=1, description="User and group; null where the cluster assigns them (OpenShift)."
    )

    without_gpu: WithoutGpuConfig = Field(
        WithoutGpuConfig(), description="Resources of Jobs that need no GPU, if different."
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
        for limit_key, limit, request_key, request in (
            ("cpu_limit", self.cpu_limit, "cpu", self.cpu),
            ("ephemeral_storage_limit", self.ephemeral_storage_limit, "work_size", self.work_size),
        ):
            if limit is not None and _amount(limit) < _amount(request):
                raise ValueError(
                    f"{limit_key} is {limit}, less than {request_key}, {request}: a pod can't "
                    "reserve more than its limit"
                )
        return self


class SubmitConfig(Part):
    """Scheduler for ``mlip-job submit``."""

    scheduler: Literal["kubernetes", "slurm", "local"] = Field(
        "local", description="kubernetes, slurm or local (a process of this machine)."
    )
    poll_interval: Positive = Field(
        15.0, description="s. How often `submit --wait` and `logs -f` check the state of a job."
    )
    slurm: SlurmConfig = SlurmConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
