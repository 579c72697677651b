"""Growth of the cost of a linear generation with the number of atoms: whole runs by the CLI."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

import yaml

from benchmarks.costs import PROGRAM, read_report
from benchmarks.export import make_database
from benchmarks.tables import say, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_ATOMS_EACH = 20
_PER_ELEMENT = 100
"""Number of functions; the structures have three elements."""

_STAGES = ("export", "linear_start", "active_set", "evaluate")


class Run(NamedTuple):
    """Costs of a whole run: seconds of wall and CPU time, in total and by stage."""

    wall_s: float
    cpu_s: float
    functions: int
    stages_s: dict[str, float]
    peak_mib: float


def show_scale(scratch: Path, databases: Path, sizes: Sequence[int], wanted: int) -> None:
    """Train linear generations of these numbers of atoms, and extrapolate to `wanted` atoms."""
    runs = {}
    for atoms in sizes:
        database = make_database(databases, atoms // _ATOMS_EACH, _ATOMS_EACH)
        runs[atoms] = _run(scratch / f"scale-{atoms}", database)
        say(f"<!-- {atoms} atoms: {runs[atoms].wall_s:.0f} s -->")
    lines = [_line(f"{atoms:,}", run) for atoms, run in runs.items()]
    if len(sizes) > 1:
        small, large = sizes[-2:]
        lines.append(_line(f"{wanted:,}, extrapolated", _extrapolate(runs, (small, large), wanted)))
    table(
        f"Linear generations, structures of {_ATOMS_EACH} atoms",
        ("atoms", "functions", "wall s", "CPU s", *(f"{name} s" for name in _STAGES), "peak MiB"),
        lines,
    )


def _line(title: str, run: Run) -> tuple[str, ...]:
    stages = (f"{run.stages_s.get(name, 0.0):.1f}" for name in _STAGES)
    return (
        title,
        f"{run.functions}",
        f"{run.wall_s:.0f}",
        f"{run.cpu_s:.0f}",
        *stages,
        f"{run.peak_mib:.0f}",
    )


def _extrapolate(runs: dict[int, Run], between: tuple[int, int], wanted: int) -> Run:
    small, large = (runs[atoms] for atoms in between)
    factor = (wanted - between[0]) / (between[1] - between[0])

    def along(first: float, second: float) -> float:
        return first + factor * (second - first)

    return Run(
        along(small.wall_s, large.wall_s),
        along(small.cpu_s, large.cpu_s),
        large.functions,
        {
            name: along(small.stages_s.get(name, 0.0), large.stages_s.get(name, 0.0))
            for name in _STAGES
        },
        along(small.peak_mib, large.peak_mib),
    )


def _run(directory: Path, database: Path) -> Run:
    directory.mkdir()
    values = {
        "family": "scale",
        "database": {"url": str(database.absolute())},
        "storage": {"url": "store"},
        "training": {"functions_per_element": _PER_ELEMENT, "max_iter": 0},
        "evaluation": {"dynamics_steps": 0},
    }
    (directory / "mlip-job.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    started = time.monotonic()
    with subprocess.Popen(
        [PROGRAM, "-q", "run", "-g", "1"], cwd=directory, stdout=subprocess.DEVNULL
    ) as process:
        # Of this run alone: getrusage has the peak of all children so far.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(f"mlip-job run ended with {process.returncode} in {directory}")
    report = read_report(directory / "store")
    return Run(
        wall_s,
        used.ru_utime + used.ru_stime,
        report["fit"]["functions"],
        report["timings_s"],
        used.ru_maxrss / 1024,
    )
