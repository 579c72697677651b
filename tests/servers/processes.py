"""Free ports, waits and commands, for the fixtures that start servers on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlip-job-tests"
"""Where ``make servers`` installs programs that Debian does not package."""

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Callable[[], Any], what: str, *, log: Path | None = None, timeout: float = 120
) -> Any:
    """Return the first true result of `condition`; an error has the end of the log."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > end:
            text = log.read_text(errors="replace")[-3000:] if log is not None else ""
            raise RuntimeError(f"{what}: not within {timeout:.0f} s\n{text}")
        time.sleep(0.1)
    return found


def responds(url: str, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the server of {url} ended with {process.returncode}")
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - of this machine
            return True
    except OSError:
        return False


def run(command: Iterable[object], environment: Mapping[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    # Output goes to a file: a daemon that inherits a pipe blocks its reader forever.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [shutil.which(words[0], path=PATH) or words[0], *words[1:]],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", **(environment or {})},
        )
        output.seek(0)
        text = output.read()
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed: {text}")
    return text
