"""What processes cost, and the medians of that."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Costs = dict[str, float]


def cpu_seconds() -> float:
    """Return what this process and those that it started and that have ended took."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_mib() -> float:
    """Return the most memory that this process had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def measure_apart(module: str, *arguments: str) -> Costs:
    """Run a module that prints its costs as JSON, in a process of its own."""
    os.sync()  # or the kernel writes what another process left while this one runs
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    costs: Costs = json.loads(done.stdout)
    return costs


def median(runs: Sequence[Costs]) -> Costs:
    """Return the median of each cost."""
    return {name: statistics.median(costs[name] for costs in runs) for name in runs[0]}
