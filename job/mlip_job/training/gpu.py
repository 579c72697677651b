"""No fit on the CPU where a GPU is required: TensorFlow would fall back without a word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mlip_job.errors import ConfigError, GpuRequiredError
from mlip_job.training import on_device
from mlip_job.training.programs import find_program, trainer_environment

KIND = "GPU"
"""What TensorFlow calls it."""

# NVIDIA's (also on Jetson and under WSL) and AMD's drivers; without one of these there is no GPU.
_DEVICES = Path("/dev")
_DEVICE_FILES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")
_HIDING = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES; the last one is Slurm's

_PROBE = f"import tensorflow as tf; print(len(tf.config.list_physical_devices({KIND!r})))"


def require_gpu_device() -> None:
    """Check that a GPU could be here, at no cost; `pacemaker_on_gpu` asks TensorFlow.

    Raises
    ------
    GpuRequiredError
        If there is no device file of one, or CUDA is told to see none.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in _HIDING:
        raise _missing(f"CUDA_VISIBLE_DEVICES={visible} hides it")
    if not any(True for pattern in _DEVICE_FILES for _ in _DEVICES.glob(pattern)):
        raise _missing(f"there is no device file of one in {_DEVICES}")


def require_gpu() -> None:
    """Check that TensorFlow sees a GPU, which takes seconds.

    Raises
    ------
    ConfigError
        If TensorFlow does not start.
    GpuRequiredError
        If it sees none.
    """
    require_gpu_device()
    done = subprocess.run(  # noqa: S603 - this very Python
        [sys.executable, "-c", _PROBE],
        env=trainer_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConfigError(
            f"TensorFlow does not start: {last[0]}", hint="mlip-job check shows the trainer"
        )
    if done.stdout.split()[-1:] in ([], ["0"]):
        raise unseen()


def pacemaker_on_gpu() -> list[str]:
    """Return the command that is pacemaker, but ends with `NO_DEVICE` where it would use the CPU.

    TensorFlow starts once, in the process that trains: a check of our own would cost seconds more.
    """
    # -P keeps the modules beside that file from being taken for others of the same names.
    launcher = [sys.executable, "-P", str(Path(on_device.__file__)), KIND]
    return [*launcher, str(find_program("pacemaker"))]


def unseen() -> GpuRequiredError:
    """Return the error for a GPU that TensorFlow does not see."""
    return _missing("TensorFlow sees none")


def _missing(why: str) -> GpuRequiredError:
    return GpuRequiredError(
        f"a GPU is required, but {why}",
        hint="check the allocation (nvidia-smi) and that the image is the cuda one; "
        "training.require_gpu: false trains on the CPU",
    )
