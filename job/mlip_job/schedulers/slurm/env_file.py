"""The file of secrets that a job reads on its node."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlip_job.errors import ConfigError

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=(.*)")
_OTHERS = 0o077
_FORM = "write NAME=VALUE lines; values are taken as they are, without quotes"


def check_env_file(name: str) -> None:
    """Refuse a file that others can read, or that does not say what its writer meant.

    No value of it is ever printed.

    Raises
    ------
    ConfigError
        Naming the line.
    """
    path = Path(name)
    try:
        about = path.stat()
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"submit.slurm.env_file: {path} can't be read: {error}") from None
    if about.st_mode & _OTHERS or about.st_uid != os.getuid():
        raise ConfigError(
            f"submit.slurm.env_file: others have access to {path}", hint=f"chmod 600 {path}"
        )
    for number, line in enumerate(lines, start=1):
        if line.endswith("\r"):
            raise ConfigError(
                f"submit.slurm.env_file: {path}, line {number} ends as lines of Windows do (CRLF)",
                hint=f"sed -i 's/\\r$//' {path}",
            )
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            raise ConfigError(f"{path}, line {number} is no assignment", hint=_FORM)
        value = match.group(1)
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            raise ConfigError(f"{path}, line {number}: the value stands in quotes", hint=_FORM)
