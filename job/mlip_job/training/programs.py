"""Programs of the trainer: paths, environment variables and GPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, GpuRequiredError, TrainingError
from mlip_job.runtime.environment import thread_counts
from mlip_job.runtime.processes import start_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GPU = "GPU"
"""TensorFlow's name for it."""
NO_DEVICE = 71
"""Exit code of a trainer without a device: that of `GpuRequiredError`."""
# Runs a Python program if TensorFlow finds a device of a type: python -P -c CODE GPU PROGRAM ...
_WITH_DEVICE = f"""
import os, runpy, sys
kind = sys.argv.pop(1)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as pacemaker sets it before its own import
import tensorflow as tf
if not tf.config.list_physical_devices(kind):
    sys.exit({NO_DEVICE})
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# The trainer needs no credentials, so it gets none: only variables of these names or prefixes.
_PASSED_NAMES = {
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
}
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "TF_", "XLA_", "OMP_", "MKL_", "OPENBLAS_", "MPL")

# NVIDIA's (also on Jetson and under WSL) and AMD's drivers; without one of these there is no GPU.
DEVICES = Path("/dev")
_DEVICE_FILES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")
_HIDING = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES; the last one is Slurm's


def find_program(name: str) -> Path:
    """Return the path of a program, first of the environment of the running Python.

    Raise a ConfigError if it is not installed.
    """
    own = Path(sys.executable).parent / name
    if own.is_file():
        return own
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not installed: this environment can submit and inspect, but not train",
            hint="pip install --no-deps -r requirements/trainer-cpu.txt (or trainer-gpu.txt)",
        )
    return Path(found)


def trainer_command(name: str, *, require_gpu: bool) -> list[str]:
    """Return the command of a trainer; one that requires a GPU ends with `NO_DEVICE` without it.

    TensorFlow starts once, in the process that trains: a separate check would cost seconds.

    Raise a ConfigError if it is not installed.
    """
    return [*(_requiring_gpu() if require_gpu else []), str(find_program(name))]


def _requiring_gpu() -> list[str]:
    # -P keeps the modules in the work directory from being imported by mistake.
    return [sys.executable, "-P", "-c", _WITH_DEVICE, GPU]


def trainer_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables of the trainer's programs, which get all cores."""
    source = os.environ if environment is None else environment
    passed = {
        name: value
        for name, value in source.items()
        if name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
    }
    own = {
        "PYTHONUNBUFFERED": "1",  # scipy's summary goes to stdout, which is block-buffered
        "MPLBACKEND": "Agg",
        # Pacemaker writes the user's name into log and potential, which are published; and it
        # fails where a container's user id has no name.
        "LOGNAME": "mlip-job",
        "USER": "mlip-job",
    }
    return passed | thread_counts(source) | own


def run_program(name: str, arguments: Sequence[str], directory: Path) -> None:
    """Run a program in a directory.

    Raise a ConfigError if it is not installed, a TrainingError if it fails; the message has its
    last line of output.
    """
    process = start_program(
        [str(find_program(name)), *arguments],
        cwd=directory,
        env=trainer_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        output, errors = process.communicate()
    if process.returncode != 0:
        text = (errors or output).decode(errors="replace").strip()
        last = text.splitlines()[-1:] or ["no message"]
        by_signal = process.returncode < 0
        cause = f"ended by {signal.Signals(-process.returncode).name}" if by_signal else last[0]
        raise TrainingError(f"{name} failed on {directory / arguments[-1]}: {cause}")


def write_active_set(
    potential: Path, frames: Sequence[Path], *options: str, suffix: str = ".asi"
) -> Path:
    """Make the active set of a potential from data frames, which are unpickled.

    Raise a TrainingError if the program fails.
    """
    given = [part for frame in frames for part in ("-d", str(frame.resolve()))]
    run_program("pace_activeset", [*options, *given, potential.name], potential.parent)
    written = potential.with_suffix(suffix)
    if not written.is_file():
        raise TrainingError(f"pace_activeset left no {written}")
    return written


# -- the GPU -------------------------------------------------------------------------------------


def require_gpu_device() -> None:
    """Require a GPU device file: a cheap check, without TensorFlow.

    Raise a GpuRequiredError if it has no device file, or is hidden from CUDA.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in _HIDING:
        raise _gpu_missing(f"CUDA_VISIBLE_DEVICES={visible} hides it")
    if not any(True for pattern in _DEVICE_FILES for _ in DEVICES.glob(pattern)):
        raise _gpu_missing(f"there is no device file of one in {DEVICES}")


def require_gpu() -> None:
    """Require that TensorFlow finds a GPU; takes seconds.

    Raise a ConfigError if TensorFlow does not start, a GpuRequiredError if it sees none.
    """
    require_gpu_device()
    done = subprocess.run(  # noqa: S603 - this very Python, and an empty program
        [*_requiring_gpu(), os.devnull],
        env=trainer_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == NO_DEVICE:
        raise gpu_unseen()
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConfigError(
            f"TensorFlow does not start: {last[0]}", hint="mlip-job check shows the trainer"
        )


def gpu_unseen() -> GpuRequiredError:
    """Return the error for a GPU that TensorFlow does not see."""
    return _gpu_missing("TensorFlow sees none")


def _gpu_missing(why: str) -> GpuRequiredError:
    return GpuRequiredError(
        f"a GPU is required, but {why}",
        hint="check the allocation (nvidia-smi) and that the image is the cuda one; "
        "training.require_gpu: false trains on the CPU",
    )
