"""Environment of a run: versions, cores, GPU, class of host, scheduler. No host or user names."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
import unicodedata
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCAL_JOB_VARIABLE = "MLIP_JOB_LOCAL_JOB"
"""The id of a job of `LocalScheduler`; its script sets it."""

CORES_VARIABLE = "MLIP_JOB_CORES"
"""The CPU request of a pod, in whole cores; the manifest sets it."""

# OpenBLAS and MKL take OMP_NUM_THREADS unless their own variable is set.
_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_OWN_VARIABLES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
THREAD_VARIABLES = (*_OWN_VARIABLES, *_BLAS_VARIABLES)
"""How many threads the numerical libraries of a process start: OpenMP, TensorFlow, BLAS."""

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2, as a container sees its own
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_DISTRIBUTIONS = (
    "mlip-job", "python-ace", "tensorpotential", "tensorflow", "numpy", "pandas", "ase"
)  # fmt: skip


class SchedulerJob(BaseModel, frozen=True):
    """The job of a scheduler that the run belongs to."""

    kind: str
    id: str


class ProcessIdentity(BaseModel, frozen=True):
    """Identity of a process, without its host's name.

    ``host`` is a hash of what processes share that can see each other: boot, host name, process
    namespace. ``started`` is in clock ticks since boot: process numbers are used again.
    """

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> ProcessIdentity:
        """Identify this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Identify a process of this machine."""
        parts = (
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"),
            platform.node(),
            str(Path("/proc/self/ns/pid").readlink()),
        )
        host = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return cls(host=host, pid=pid, started=_started(pid) or 0)

    def is_gone(self, seen_by: ProcessIdentity) -> bool:
        """Return whether `seen_by`, the calling process, can see that this one has ended."""
        return self.host == seen_by.host and _started(self.pid) != self.started


class HostClass(BaseModel, frozen=True):
    """Class of the machine: processor, `usable_cores`, physical memory, GPUs of the driver."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]


class RunEnvironment(BaseModel, frozen=True):
    """Environment of a run."""

    versions: dict[str, str | None]
    host: HostClass
    image: str | None
    scheduler: SchedulerJob | None

    @classmethod
    def current(cls) -> RunEnvironment:
        """Describe this process's environment."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            versions={"python": platform.python_version(), **installed_versions()},
            host=HostClass(
                cpu=cpu_model(),
                cores=usable_cores(),
                memory_gib=round(memory / 2**30, 1),
                gpus=_gpus(),
            ),
            image=os.environ.get("MLIP_JOB_IMAGE"),
            scheduler=current_scheduler_job(),
        )


def installed_versions() -> dict[str, str | None]:
    """Return the version of each distribution that a run depends on, None where it is absent."""
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    return versions | {"tensorflow": versions["tensorflow"] or _version("tensorflow-cpu")}


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many cores this job may use.

    The request to its scheduler: a pod's CPU request, or Slurm's CPUs per task. Without
    that, and at most, it is what the process may run on, within the CPU quota of its container.
    """
    requests = (environment.get(name, "") for name in (CORES_VARIABLE, "SLURM_CPUS_PER_TASK"))
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2
    return min(cores, next((int(n) for n in requests if n.isdecimal() and int(n)), cores))


def thread_counts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the thread counts of a process that has all cores of the job; the user's own win."""
    cores = str(usable_cores(environment))
    counts = {name: environment.get(name, cores) for name in _OWN_VARIABLES}
    return counts | {n: environment.get(n, counts["OMP_NUM_THREADS"]) for n in _BLAS_VARIABLES}


def cpu_model() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def available_memory() -> int:
    """Return the bytes of memory that are available, at most what the container may use."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
    try:
        limit = _MEMORY_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit))


def process_age_s() -> float:
    """Return the seconds since this process was started: before its first import."""
    ticks = _started(os.getpid()) or 0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def current_scheduler_job() -> SchedulerJob | None:
    """Return the job of a scheduler that this process belongs to."""
    if job_id := os.environ.get(LOCAL_JOB_VARIABLE):
        return SchedulerJob(kind="local", id=job_id)
    if job_id := os.environ.get("SLURM_JOB_ID"):
        return SchedulerJob(kind="slurm", id=job_id)
    if job := os.environ.get("MLIP_JOB_KUBERNETES_JOB"):
        # Pods of an Indexed Job are different members: none may take over another's generation.
        names = (os.environ.get("MLIP_JOB_KUBERNETES_NAMESPACE", "default"), job)
        index = os.environ.get("JOB_COMPLETION_INDEX")
        return SchedulerJob(kind="kubernetes", id="/".join((*names, *filter(None, (index,)))))
    return None


def current_array_index() -> int | None:
    """Return which task of an array this process belongs to, from 1."""
    if task := os.environ.get("SLURM_ARRAY_TASK_ID"):
        return int(task)
    if index := os.environ.get("JOB_COMPLETION_INDEX"):
        return int(index) + 1
    return None


def job_of_this_start() -> str | None:
    """Return what names a scheduler's job in all its starts, and no other job; None by hand.

    Unlike `SchedulerJob`, it differs for a re-created Job of the same name.
    """
    if job_id := os.environ.get("SLURM_JOB_ID"):
        return f"slurm/{job_id}"
    if uid := os.environ.get("MLIP_JOB_KUBERNETES_JOB_UID"):
        return f"kubernetes/{uid}"
    return None


def job_of_earlier_starts() -> str | None:
    """Return the same where the job may have been started before; None where it was not.

    Slurm counts the starts: a second run in one allocation, by hand, is no restart.
    Kubernetes does not: each pod may be one that replaces another.
    """
    job = job_of_this_start()
    first = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
    return None if job is not None and job.startswith("slurm/") and first else job


def require_one_line(*names: str) -> None:
    """Require that environment variables hold no line end or other control character.

    A Secret made with ``echo … | base64``, or an env file with CRLF, appends one to a password.
    The `ConfigError` names the variable, never its value.
    """
    for name in names:
        if any(unicodedata.category(character) == "Cc" for character in os.environ.get(name, "")):
            raise ConfigError(
                f"{name} holds a line end or another control character",
                hint="write the value without one, as printf %s does; a Secret made with echo "
                "ends in a line end",
            )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _started(pid: int) -> int | None:
    """Return field 22 of /proc/<pid>/stat (proc(5)), None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
