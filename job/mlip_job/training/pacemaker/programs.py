"""The programs of the trainer environment: where they are, what they may see, their GPU."""

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
from mlip_job.runtime.processes import die_with_parent
from mlip_job.training.pacemaker.callbacks import on_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The trainer needs no credentials, so it gets none: only what these names or prefixes let through.
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


CALLBACKS = Path(__file__).parent / "callbacks"
"""The modules that pacemaker imports by their names; it may be of another environment."""


def find_program(name: str) -> Path:
    """Return the path of one of pacemaker's programs.

    Those beside the running Python come first: they belong to the same environment.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return beside
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not installed: this environment can submit and inspect, but not train",
            hint="pip install --no-deps -r requirements/trainer-cpu.txt (or trainer-gpu.txt)",
        )
    return Path(found)


def trainer_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment that the trainer's programs are started in.

    They have the machine to themselves while they run, so that they get all cores of the job.
    """
    source = os.environ if environment is None else environment
    passed = {
        name: value
        for name, value in source.items()
        if name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
    }
    return (
        passed
        | thread_counts(source)
        | {
            "PYTHONUNBUFFERED": "1",  # scipy's summary goes to stdout, which is block-buffered
            "MPLBACKEND": "Agg",
            # Pacemaker writes the user's name into log and potential, which are published; and it
            # fails where a container's user id has no name.
            "LOGNAME": "mlip-job",
            "USER": "mlip-job",
        }
    )


def convert_to_yace(potential: Path, yace: Path) -> None:
    """Convert a B-basis potential into the .yace that LAMMPS reads.

    Raises
    ------
    TrainingError
        If the converter fails.
    """
    # Without -o the converter replaces every "yaml" in the whole path.
    run_program("pace_yaml2yace", ["-o", yace.name, potential.name], potential.parent)
    if not yace.is_file():
        raise TrainingError(f"pace_yaml2yace left no {yace}")


def run_program(name: str, arguments: Sequence[str], directory: Path) -> None:
    """Run one of pacemaker's programs in a directory, to its end or that of this process.

    Raises
    ------
    ConfigError
        If it is not installed.
    TrainingError
        If it fails; with the last line that it printed.
    """
    done = subprocess.run(  # noqa: S603 - a fixed program with names of our own
        [str(find_program(name)), *arguments],
        cwd=directory,
        env=trainer_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        by_signal = done.returncode < 0
        cause = f"ended by {signal.Signals(-done.returncode).name}" if by_signal else last[0]
        raise TrainingError(f"{name} failed on {directory / arguments[-1]}: {cause}")


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
