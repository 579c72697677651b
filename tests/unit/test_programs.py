"""The trainer's programs are found, and see nothing that they don't need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mlip_job.errors import ConfigError, TrainingError
from mlip_job.runtime.environment import THREAD_VARIABLES
from mlip_job.training.pacemaker.programs import convert_to_yace, find_program, trainer_environment


def test_secrets_do_not_reach_the_trainer() -> None:
    """Whatever pacemaker prints is published: it gets no credentials to print."""
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
    """By Slurm's count or a pod's; what the user has set stays."""
    passed = trainer_environment({"SLURM_CPUS_PER_TASK": "1", "OPENBLAS_NUM_THREADS": "7"})
    assert "SLURM_CPUS_PER_TASK" not in passed
    assert {name: passed[name] for name in THREAD_VARIABLES} == {
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "7",
        "MKL_NUM_THREADS": "1",
    }


def test_programs_beside_python_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pacemaker of another environment on the PATH is not taken."""
    other = tmp_path / "pacemaker"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    assert find_program("pacemaker") == Path(sys.executable).parent / "pacemaker"


def test_absent_trainer_is_a_usage_error_with_the_remedy() -> None:
    """A submitter's environment can't train, and says how to get one that can."""
    with pytest.raises(ConfigError, match="pacemaker-of-mars is not installed") as caught:
        find_program("pacemaker-of-mars")
    assert "trainer-cpu.txt" in str(caught.value)


def test_failed_conversion_names_the_file(tmp_path: Path) -> None:
    """What pace_yaml2yace can't read is a failed training, in one line."""
    broken = tmp_path / "output_potential.yaml"
    broken.write_text("species: 7\n")
    with pytest.raises(TrainingError, match=r"pace_yaml2yace failed on .*output_potential\.yaml"):
        convert_to_yace(broken, tmp_path / "potential.yace")
