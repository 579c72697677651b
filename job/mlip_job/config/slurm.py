"""Settings of a Slurm job."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field

from mlip_job.config.base import Part

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
    "open-mode": "nothing: the log goes on after a requeue",
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

_TIME = re.compile(r"\d+(:[0-5]?\d){0,2}|\d+-\d+(:[0-5]?\d){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=.*)?")


def _one_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("takes one line of printable characters")
    return text


def _extra(option: str) -> str:
    match = _OPTION.fullmatch(option)
    if match is None:
        raise ValueError(f"{option!r} is no option in the form --name or --name=value")
    # sbatch takes any beginning of an option that is no other's, so that one is refused too.
    for owned, setting in OWNED_OPTIONS.items():
        if owned.startswith(match.group(1)):
            raise ValueError(f"sets --{owned}, which follows from {setting}")
    return option


def _is_gpu(resource: str) -> bool:
    """Tell whether one of generic resources, ``gpu:a100:1``, is a GPU or a part of one."""
    return resource.removeprefix("gres:").partition(":")[0].lower() in _GPU_RESOURCES


def _chooses_gpu_nodes(option: str) -> bool:
    """Tell whether an option of sbatch asks for GPUs, or for the nodes that have them."""
    name = option.removeprefix("--").partition("=")[0]
    of_nodes = any(known.startswith(name) for known in ("constraint", "reservation"))
    return of_nodes or "gpu" in option.lower()


def _text_of_time(value: object) -> object:
    if isinstance(value, int):
        raise ValueError("needs quotes, as in '24:00:00': YAML reads it as a number without")  # noqa: TRY004 - pydantic wants a ValueError
    return value


def _time(text: str) -> str:
    if _TIME.fullmatch(text) is None or not re.search("[1-9]", text):
        raise ValueError("takes minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    return text


def _memory(text: str) -> str:
    if _MEMORY.fullmatch(text) is None:
        raise ValueError("takes a whole number with K, M, G or T, as in 32G")
    return text


# Generic resources of GPUs or of parts of them, and options of containers that show GPUs.
_GPU_RESOURCES = frozenset({"gpu", "mps", "shard"})
_GPU_CONTAINER_OPTIONS = frozenset({"--nv", "--nvccli", "--rocm"})

Line = Annotated[str, AfterValidator(_one_line)]
Extra = Annotated[str, AfterValidator(_one_line), AfterValidator(_extra)]
Time = Annotated[str, BeforeValidator(_text_of_time), AfterValidator(_time)]
Memory = Annotated[str, AfterValidator(_memory)]


class SlurmCpuConfig(Part):
    """What jobs of linear fits ask of Slurm, which need no GPU.

    What is not given here is as for the fit, but for what its GPU, or the node of it, takes.
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
    """What the batch script asks of Slurm, and what it runs on the node."""

    secrets_belong: ClassVar[str] = "put it into the file that submit.slurm.env_file names"

    account: Line | None = Field(None, description="Account that pays for the job.")
    partition: Line | None = None
    qos: Line | None = None
    gres: Line | None = Field(None, description="Generic resources, e.g. gpu:a100:1.")
    time: Time | None = Field(
        None, description="Time limit, in quotes: '24:00:00'. A longer fit goes on after a requeue."
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
        description="s. So long before the time limit the run saves its checkpoint and is "
        "requeued. Slurm may be a minute early.",
    )
    max_requeues: int = Field(
        20, ge=0, description="How often a job may start again, whatever the reason."
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
        ("--nv",), description="Further options of it; --nv is for NVIDIA GPUs."
    )
    binds: tuple[Line, ...] = Field(
        (),
        description="Further paths that the container shows, e.g. ['/data', '/scratch:/scratch']. "
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
