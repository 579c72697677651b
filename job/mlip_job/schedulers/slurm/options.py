"""From settings to options of sbatch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.schedulers.records import SubmitFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config.slurm import SlurmConfig
    from mlip_job.schedulers.base import JobRequest

_JOB = re.compile(r"\d+(_\d+)?")
# https://slurm.schedmd.com/sbatch.html#OPT_dependency; which kinds there are is for Slurm to say.
_DEPENDENCY = r"(singleton|[a-z]+(:\d+(_(\d+|\*))?(\+\d+)?)+)"
_DEPENDENCIES = re.compile(rf"{_DEPENDENCY}(,{_DEPENDENCY})*|{_DEPENDENCY}(\?{_DEPENDENCY})*")
_SPARE_SECONDS = 5  # beside run.stop_timeout, see there


def settings_of(request: JobRequest) -> SlurmConfig:
    """Return the settings that hold for a request's job."""
    slurm = request.config.submit.slurm
    return slurm if request.needs_gpu else slurm.without_gpu()


def sbatch_options(request: JobRequest, name: str) -> Iterator[str]:
    """Yield every option of a job, in the form ``--name=value``.

    Raises
    ------
    ConfigError
        If a setting can't be passed on; the message names the key.
    """
    slurm, run = settings_of(request), request.config.run
    if slurm.warning < run.stop_timeout + _SPARE_SECONDS:
        raise ConfigError(
            f"submit.slurm.warning is {slurm.warning} s, too short for a checkpoint that may take "
            f"run.stop_timeout = {run.stop_timeout:.0f} s",
            hint=f"set it to {run.stop_timeout + _SPARE_SECONDS:.0f} or more",
        )
    directory = SubmitFiles.of(request.config, request.generation).directory
    yield f"--job-name={name}"
    yield f"--output={_output(str(directory), array=request.ensemble is not None)}"
    yield f"--chdir={directory}"
    yield from ("--open-mode=append", "--export=NONE", "--requeue")
    yield f"--signal=B:USR1@{slurm.warning}"
    yield from ("--nodes=1", "--ntasks=1")
    asked = {
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "gres": slurm.gres,
        "gpus-per-node": slurm.gpus_per_node,
        "time": slurm.time,
        "mem": slurm.mem,
        "cpus-per-task": slurm.cpus,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "reservation": slurm.reservation,
        "mail-user": slurm.mail_user,
        "mail-type": slurm.mail_type,
    }
    yield from (f"--{option}={value}" for option, value in asked.items() if value is not None)
    if request.ensemble is not None:
        yield f"--array=1-{request.ensemble}"
    if request.after is not None:
        yield f"--dependency={_dependency(request.after)}"
        yield "--kill-on-invalid-dep=yes"
    yield from slurm.extra


def quote_directive(option: str) -> str:
    r"""Return an option as a line ``#SBATCH …`` has to hold it.

    sbatch splits such lines by rules of its own: double quotes hold words together, and a
    backslash takes the next character as it is.
    """
    if not any(character in option for character in " \t\"'\\#"):
        return option
    return '"' + option.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _output(directory: str, *, array: bool) -> str:
    """Return the pattern of the log's name; a percent sign begins a placeholder in it."""
    if "\\" in directory:
        raise ConfigError("work_dir: Slurm takes no backslash in the name of a log")
    return f"{directory.replace('%', '%%')}/slurm-{'%A_%a' if array else '%j'}.log"


def _dependency(after: str) -> str:
    """Return what ``--after`` means: a job that has to succeed, or what sbatch takes as it is."""
    number = after.partition(";")[0]  # of a federation, a job's cluster is behind its number
    if _JOB.fullmatch(number) is not None:
        return f"afterok:{number}"
    if _DEPENDENCIES.fullmatch(after) is not None:
        return after
    raise ConfigError(
        f"--after: {after!r} is no job of Slurm's",
        hint="give its number, or what sbatch takes as --dependency, as in afterany:4711",
    )
