"""What a job printed: its end, the error in it, and how it is followed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_END_BYTES = 1 << 16
_ERROR = "error: "
_HINT = "  hint: "
_DETAILS = 5
# What the scheduler's own daemons add after the run has ended.
_NOISE = re.compile(r"srun: |slurmstepd|mlip-job: ")


def error_in(log: str) -> tuple[str, str | None] | None:
    """Return message and hint of the last error that a run printed, or None.

    That is what `mlip_job.cli.main` prints: ``error: …``, indented details, ``hint: …``.
    """
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(_ERROR)]
    if not starts:
        return None
    first, *rest = lines[starts[-1] :]
    details = []
    for line in rest:
        if not line.startswith("  ") or line.startswith(_HINT):
            break
        details.append(line.strip())
    shown = "; ".join(details[:_DETAILS])
    hints = [line.removeprefix(_HINT) for line in rest if line.startswith(_HINT)]
    message = first.removeprefix(_ERROR)
    return f"{message} {shown}" if shown else message, hints[0] if hints else None


def last_line(log: str) -> str | None:
    """Return the last line that the run, and not its scheduler, printed."""
    said = [line.strip() for line in log.splitlines() if line.strip() and not _NOISE.match(line)]
    return said[-1] if said else None


def read_end(path: Path) -> str | None:
    """Return the end of a log; None where there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return None


def lines_of(
    logs: Callable[[], Mapping[Path, str]], ended: Callable[[], bool] | None, interval: float
) -> Iterator[str]:
    """Yield the lines of one or several logs as they grow.

    Parameters
    ----------
    logs
        Returns the logs there are by now, each with what to put before its lines.
    ended
        Follow them until this says so; None yields what is there.
    interval
        Seconds between two looks.
    """
    readers: dict[Path, _Reader] = {}
    while True:
        over = ended is None or ended()  # asked first: what is printed meanwhile is read below
        for path, prefix in logs().items():
            reader = readers.setdefault(path, _Reader(path, prefix))
            yield from reader.more()
        if over:
            break
        time.sleep(interval)
    yield from (reader.prefix + reader.rest for reader in readers.values() if reader.rest)


@dataclass
class _Reader:
    """Reads a growing file line by line; `rest` is the last one while its end is missing."""

    path: Path
    prefix: str
    position: int = 0
    rest: str = ""

    def more(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                data = file.read()
        except FileNotFoundError:
            return []
        self.position += len(data)
        *whole, self.rest = (self.rest + data.decode(errors="replace")).split("\n")
        return [self.prefix + line for line in whole]
