"""Costs of processes, and their medians."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Costs = dict[str, float]

PROGRAM = str(Path(sys.executable).with_name("mlip-job"))


def read_report(store: Path) -> dict[str, Any]:
    """Return the report of the only generation in a store."""
    (path,) = store.glob("*/generations/gen_01/attempts/*/report.json")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_mib() -> float:
    """Return the peak memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def measure_apart(module: str, *arguments: str) -> Costs:
    """Run a module that prints its costs as JSON in a new process."""
    os.sync()  # otherwise the kernel writes dirty pages of another process meanwhile
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    costs: Costs = json.loads(done.stdout)
    return costs


def median(runs: Sequence[Costs]) -> Costs:
    """Return the median of each cost."""
    return {name: statistics.median(costs[name] for costs in runs) for name in runs[0]}
