"""A manifest describes the environment of a run without identifying the machine."""

from __future__ import annotations

import getpass
import socket
from importlib import metadata
from pathlib import Path

import pytest

from mlip_job.runtime import environment
from mlip_job.runtime.environment import (
    THREAD_VARIABLES,
    RunEnvironment,
    job_of_earlier_starts,
    job_of_this_start,
    thread_counts,
    usable_cores,
)


def test_versions_are_those_that_are_installed() -> None:
    versions = RunEnvironment.current().versions
    assert versions["python-ace"] == metadata.version("python-ace")
    assert versions["tensorflow"] == metadata.version("tensorflow-cpu")
    assert versions["mlip-job"] == metadata.version("mlip-job")


def test_scheduler_and_image_come_from_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RunEnvironment.current().scheduler is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("MLIP_JOB_IMAGE", "example/mlip-job@sha256:0123")
    current = RunEnvironment.current()
    assert current.scheduler is not None
    assert (current.scheduler.kind, current.scheduler.id) == ("slurm", "4711")
    assert current.image == "example/mlip-job@sha256:0123"


@pytest.fixture
def six_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the file of a quota that does not exist yet."""
    monkeypatch.setattr(environment, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "variables", "cores"),
    [
        ("max 100000", {}, 6),
        ("250000 100000", {}, 2),
        ("50000 100000", {}, 1),
        ("9900000 100000", {}, 6),
        ("", {}, 6),
        ("", {"MLIP_JOB_CORES": "2"}, 2),
        ("", {"SLURM_CPUS_PER_TASK": "3"}, 3),
        ("", {"MLIP_JOB_CORES": "2", "SLURM_CPUS_PER_TASK": "3"}, 2),
        ("", {"SLURM_CPUS_PER_TASK": "64"}, 6),
        ("", {"MLIP_JOB_CORES": "0", "SLURM_CPUS_PER_TASK": ""}, 6),
    ],
)
def test_cores_are_those_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
    six_cores: Path,
    quota: str,
    variables: dict[str, str],
    cores: int,
) -> None:
    """Within the quota of a container and the request: a node may show all its cores."""
    if quota:
        six_cores.write_text(f"{quota}\n")
    assert usable_cores(variables) == cores
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert usable_cores() == cores
    assert RunEnvironment.current().host.cores == cores


@pytest.mark.usefixtures("six_cores")
def test_threads_follow_the_cores_unless_set_by_the_user() -> None:
    """BLAS libraries without their own variable use that of OpenMP."""
    assert thread_counts({"SLURM_CPUS_PER_TASK": "4"}) == dict.fromkeys(THREAD_VARIABLES, "4")
    own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2", "TF_NUM_INTEROP_THREADS": "3"}
    others = {"OPENBLAS_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "6"}
    assert thread_counts(own) == own | others


def test_pods_of_one_kubernetes_job_are_the_same_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a retry need not wait; members of an ensemble are different jobs."""
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_NAMESPACE", "alloys")
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_JOB", "mlip-cu-ni-gen-04-01234567")
    job = RunEnvironment.current().scheduler
    assert job is not None
    assert (job.kind, job.id) == ("kubernetes", "alloys/mlip-cu-ni-gen-04-01234567")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    member = RunEnvironment.current().scheduler
    assert member is not None
    assert member.id == "alloys/mlip-cu-ni-gen-04-01234567/2"


def test_kubernetes_jobs_of_the_same_name_are_distinguished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its UID, which its pods share; any of them may be the second."""
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_JOB", "mlip-cu-ni-gen-04-01234567")
    assert (job_of_this_start(), job_of_earlier_starts()) == (None, None)
    monkeypatch.setenv("MLIP_JOB_KUBERNETES_JOB_UID", "0b7c")
    assert job_of_this_start() == job_of_earlier_starts() == "kubernetes/0b7c"


def test_only_a_requeued_slurm_job_had_earlier_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated runs by hand in one allocation are not requeues."""
    assert (job_of_this_start(), job_of_earlier_starts()) == (None, None)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    for count in (None, "0"):
        if count is not None:
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert (job_of_this_start(), job_of_earlier_starts()) == ("slurm/4711", None)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert job_of_this_start() == job_of_earlier_starts() == "slurm/4711"


def test_names_of_host_and_user_are_left_out() -> None:
    text = RunEnvironment.current().model_dump_json()
    assert f'"{socket.gethostname()}"' not in text
    assert f'"{getpass.getuser()}"' not in text
