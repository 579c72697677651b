"""What sbatch says when it refuses a job, as an error that names our setting."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError, UnavailableError
from mlip_job.schedulers.slurm.limits import limit_named
from mlip_job.schedulers.slurm.states import what_to_do, why

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_YOURS = "sacctmgr show associations user=$USER format=account,partition,qos lists what is open"
_LIMITS = (
    "sacctmgr show associations user=$USER and sacctmgr show qos list the limits; one on the "
    "number of jobs passes when some of yours have ended: submit it again then"
)
_NODES = "sinfo -o '%P %c %m %G %f' lists CPUs, memory (MB), generic resources and features"

# By what sbatch prints: the settings to look at, and a command that shows what there is. The first
# that fits counts.
_REFUSALS: Sequence[tuple[str, str, str | None]] = (
    # "(job submit limit, user's size and/or time limits)" is said of any limit, most often of one
    # on the number of jobs. Most versions name it in a line before, see `_by_limit`.
    (
        "accounting/QOS policy",
        "the number of your jobs, and {section}.cpus, gres, mem and time",
        _LIMITS,
    ),
    ("invalid partition", "{section}.partition", None),
    ("invalid account", "{section}.account", f"{_YOURS} to you"),
    ("invalid qos", "{section}.qos", f"{_YOURS} to you"),
    ("reservation", "{section}.reservation", "scontrol show reservation lists them"),
    ("time limit|--time", "{section}.time", "sinfo -o '%P %l' lists the longest times"),
    ("generic resource|gres", "{section}.gres", _NODES),
    ("invalid feature", "{section}.constraint", _NODES),
    ("memory", "{section}.mem", _NODES),
    ("cpu count", "{section}.cpus", _NODES),
    ("node configuration|node count|node name", "what the job asks of a node", _NODES),
    ("dependency", "--after", "squeue --me lists your jobs"),
    ("mail", "submit.slurm.mail_type", "e.g. END,FAIL"),
    ("unrecognized option|invalid option|requires an argument", "{section}.extra", None),
)


def explain_refusal(
    said: str, partitions: Callable[[], Sequence[str]], section: str
) -> ConfigError | UnavailableError:
    """Return the error for a job that sbatch refused.

    It is unavailable where only the number of jobs is in the way: that passes.

    Parameters
    ----------
    said
        What sbatch printed.
    partitions
        Tells which partitions there are.
    section
        Part of the configuration that the job's settings are in.
    """
    text = re.sub(r"sbatch: (error: )?(Batch job submission failed: )?", "", said)
    message = f"Slurm refuses the job: {text}"
    if (refusal := _by_limit(message, text.split(), section)) is not None:
        return refusal
    for pattern, key, command in _REFUSALS:
        if re.search(pattern, text, re.IGNORECASE) is None:
            continue
        setting = key.format(section=section)
        if key == "{section}.partition":
            known = ", ".join(partitions()) or "sinfo lists them"
            return ConfigError(message, hint=f"set {setting} to one of: {known}")
        hint = f"look at {setting}" + (f"; {command}" if command is not None else "")
        return ConfigError(message, hint=hint)
    return ConfigError(message)


def _by_limit(
    message: str, words: Sequence[str], section: str
) -> ConfigError | UnavailableError | None:
    """Return the error where Slurm names the limit: ``AssocMaxSubmitJobLimit``."""
    named = next((word for word in words if limit_named(word) is not None), None)
    limit = limit_named(named) if named is not None else None
    if named is None or limit is None:
        return None
    then = "change that" if limit.never else what_to_do(named, section)
    error = UnavailableError if limit.of_submitted_jobs else ConfigError
    return error(message, hint=f"{why(named, section)}: {then}")
