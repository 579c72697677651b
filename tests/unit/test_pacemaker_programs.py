"""The trainer's programs are found, get a minimal environment, and a GPU if required."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mlip_job.errors import ConfigError, GpuRequiredError, TrainingError
from mlip_job.runtime.environment import THREAD_VARIABLES
from mlip_job.training import programs
from mlip_job.training.pacemaker.potential_file import convert_to_yace
from mlip_job.training.programs import (
    NO_DEVICE,
    find_program,
    require_gpu,
    require_gpu_device,
    trainer_environment,
)


def test_secrets_do_not_reach_the_trainer() -> None:
    """Pacemaker's output is published: it gets no credentials to print."""
    passed = trainer_environment(
        {
            "PATH": "/bin",
            "CUDA_VISIBLE_DEVICES": "0",
            "OMP_NUM_THREADS": "4",
            "AWS_SECRET_ACCESS_KEY": "hunter2",
            "PGPASSWORD": "hunter2",
            "MLIP_JOB_DATABASE_PASSWORD": "hunter2",
            "PACEMAKERDATAPATH": "/elsewhere",
        }
    )
    assert "hunter2" not in passed.values()
    assert "PACEMAKERDATAPATH" not in passed
    assert passed["CUDA_VISIBLE_DEVICES"] == "0"
    assert passed["OMP_NUM_THREADS"] == "4"
    assert passed["PYTHONUNBUFFERED"] == "1"


def test_the_trainer_has_as_many_threads_as_the_job_has_cores() -> None:
    """By Slurm's count or a pod's; the user's settings are kept."""
    passed = trainer_environment({"SLURM_CPUS_PER_TASK": "1", "OPENBLAS_NUM_THREADS": "7"})
    assert "SLURM_CPUS_PER_TASK" not in passed
    assert {name: passed[name] for name in THREAD_VARIABLES} == {
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "7",
        "MKL_NUM_THREADS": "1",
    }


def test_programs_next_to_python_come_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pacemaker of another environment on the PATH is not used."""
    other = tmp_path / "pacemaker"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    assert find_program("pacemaker") == Path(sys.executable).parent / "pacemaker"


def test_absent_trainer_is_a_usage_error_with_the_remedy() -> None:
    """An environment without the trainer can't train; the error says how to install it."""
    with pytest.raises(ConfigError, match="pacemaker-of-mars is not installed") as caught:
        find_program("pacemaker-of-mars")
    assert "trainer-cpu.txt" in str(caught.value)


def test_failed_conversion_names_the_file(tmp_path: Path) -> None:
    """If pace_yaml2yace can't read a file, the training has failed, with one line."""
    broken = tmp_path / "output_potential.yaml"
    broken.write_text("species: 7\n")
    with pytest.raises(TrainingError, match=r"pace_yaml2yace failed on .*output_potential\.yaml"):
        convert_to_yace(broken, tmp_path / "potential.yace")


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(programs, "DEVICES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["nvidia0", "nvhost-gpu", "dxg", "kfd"])
def test_a_device_file_is_enough_to_try(
    devices: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without one, no check starts TensorFlow."""
    (devices / "null").touch()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    for check in (require_gpu_device, require_gpu):
        with pytest.raises(GpuRequiredError, match="no device file"):
            check()
    (devices / name).touch()
    require_gpu_device()


@pytest.mark.parametrize("value", ["", "-1", "-1,0", "NoDevFiles"])
def test_a_hidden_gpu_is_none(devices: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    (devices / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(GpuRequiredError, match="hides it"):
        require_gpu_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    require_gpu_device()


def test_tensorflow_decides(devices: Path) -> None:
    """A device file alone is no GPU: the driver may be missing, or the image unsuitable."""
    (devices / "nvidia0").touch()
    with pytest.raises(GpuRequiredError, match="TensorFlow sees none"):
        require_gpu()
    assert GpuRequiredError.exit_code == NO_DEVICE  # of a program that imports nothing of ours
