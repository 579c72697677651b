"""Nothing trains on the CPU where a GPU is required. None is on the machine of the tests."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from mlip_job.errors import GpuRequiredError
from mlip_job.training.pacemaker import programs
from mlip_job.training.pacemaker.callbacks import on_device
from mlip_job.training.pacemaker.programs import require_gpu, require_gpu_device

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a directory that is taken for /dev."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(programs, "_DEVICES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["nvidia0", "nvhost-gpu", "dxg", "kfd"])
def test_a_device_file_is_enough_to_try(devices: Path, name: str) -> None:
    """Whether TensorFlow can use it is seen when pacemaker starts."""
    (devices / "null").touch()
    with pytest.raises(GpuRequiredError, match="no device file"):
        require_gpu_device()
    (devices / name).touch()
    require_gpu_device()


@pytest.mark.parametrize("value", ["", "-1", "-1,0", "NoDevFiles"])
def test_a_hidden_gpu_is_none(devices: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Slurm hides those that a job did not ask for."""
    (devices / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(GpuRequiredError, match="hides it"):
        require_gpu_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    require_gpu_device()


def test_missing_at_once(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the check before a run nor `mlip-job check` starts TensorFlow for that."""
    assert devices.is_dir()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    for check in (require_gpu_device, require_gpu):
        with pytest.raises(GpuRequiredError, match="no device file"):
            check()


def test_tensorflow_has_the_last_word(devices: Path) -> None:
    """A file alone is no GPU: a driver may be missing, or the image the wrong one."""
    (devices / "nvidia0").touch()
    with pytest.raises(GpuRequiredError, match="TensorFlow sees none"):
        require_gpu()


def test_the_exit_code_is_that_of_the_error() -> None:
    """The file that starts pacemaker imports nothing of this package."""
    assert GpuRequiredError.exit_code == on_device.NO_DEVICE
