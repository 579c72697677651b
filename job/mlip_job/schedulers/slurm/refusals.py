"""What sbatch says when it refuses a job, as an error that names our setting."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_YOURS = "sacctmgr show associations user=$USER format=account,partition,qos lists what is open"
_NODES = "sinfo -o '%P %c %m %G %f' lists CPUs, memory (MB), generic resources and features"

# By what sbatch prints: the settings to look at, and a command that shows what there is.
_REFUSALS: Sequence[tuple[str, str, str | None]] = (
    ("invalid partition", "submit.slurm.partition", None),
    ("invalid account", "submit.slurm.account", f"{_YOURS} to you"),
    ("invalid qos", "submit.slurm.qos", f"{_YOURS} to you"),
    ("reservation", "submit.slurm.reservation", "scontrol show reservation lists them"),
    ("time limit|--time", "submit.slurm.time", "sinfo -o '%P %l' lists the longest times"),
    ("generic resource|gres", "submit.slurm.gres", _NODES),
    ("invalid feature", "submit.slurm.constraint", _NODES),
    ("memory", "submit.slurm.mem", _NODES),
    ("cpu count", "submit.slurm.cpus", _NODES),
    ("node configuration|node count|node name", "what the job asks of a node", _NODES),
    ("dependency", "--after", "squeue --me lists your jobs"),
    ("mail", "submit.slurm.mail_type", "e.g. END,FAIL"),
    ("unrecognized option|invalid option|requires an argument", "submit.slurm.extra", None),
)


def explain_refusal(said: str, partitions: Callable[[], Sequence[str]]) -> ConfigError:
    """Return the error for a job that sbatch refused.

    Parameters
    ----------
    said
        What sbatch printed.
    partitions
        Tells which partitions there are.
    """
    text = re.sub(r"sbatch: (error: )?(Batch job submission failed: )?", "", said)
    message = f"Slurm refuses the job: {text}"
    for pattern, setting, command in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE) is None:
            continue
        if setting == "submit.slurm.partition":
            known = ", ".join(partitions()) or "sinfo lists them"
            return ConfigError(message, hint=f"set {setting} to one of: {known}")
        hint = f"look at {setting}" + (f"; {command}" if command is not None else "")
        return ConfigError(message, hint=hint)
    return ConfigError(message)
