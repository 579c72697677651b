"""The programs of the trainer environment: where they are and what they may see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, TrainingError
from mlip_job.processes import die_with_parent

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


IN_PACEMAKER = Path(__file__).parent / "in_pacemaker"
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
    """Return the environment that the trainer's programs are started in."""
    source = os.environ if environment is None else environment
    passed = {
        name: value
        for name, value in source.items()
        if name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
    }
    return passed | {
        "PYTHONUNBUFFERED": "1",  # scipy's summary goes to stdout, which is block-buffered
        "MPLBACKEND": "Agg",
        # Pacemaker writes the user's name into log and potential, which are published; and it
        # fails where a container's user id has no name.
        "LOGNAME": "mlip-job",
        "USER": "mlip-job",
    }


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
