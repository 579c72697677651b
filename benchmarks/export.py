"""Exports by mlip-job and by ASE, and their growth with the number of structures."""

from __future__ import annotations

import shutil
import statistics
from typing import TYPE_CHECKING

from benchmarks.costs import measure_apart, median
from benchmarks.database import write_database
from benchmarks.routes import ROUTES
from benchmarks.tables import say, table

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.costs import Costs


def compare_routes(directory: Path, rows: int, repeats: int) -> None:
    """Run all routes in turn, several times, and print medians and ratios."""
    database = make_database(directory, rows)
    runs: dict[str, list[Costs]] = {route: [] for route in ROUTES}
    for repeat in range(repeats):
        for route in ROUTES:
            runs[route].append(_run(route, database, directory))
            cpu = runs[route][-1]["cpu_s"]
            say(f"<!-- {route} {repeat + 1}/{repeats}: {cpu:.2f} s -->")
    medians = {route: median(costs) for route, costs in runs.items()}
    # Ratios within a round, so that a machine that slows down does not distort them.
    ratios = {
        route: statistics.median(
            theirs["cpu_s"] / ours["cpu_s"]
            for theirs, ours in zip(costs, runs["ours"], strict=True)
        )
        for route, costs in runs.items()
    }
    table(
        f"Export of {rows} structures of 32 to 64 atoms, medians of {repeats}",
        (
            "route", "CPU s", "µs per structure", "CPU / ours", "wall s",
            "peak MiB above imports", "MB written",
        ),
        [
            (
                route,
                f"{costs['cpu_s']:.2f}",
                f"{1e6 * costs['cpu_s'] / rows:.0f}",
                f"{ratios[route]:.1f}",
                f"{costs['wall_s']:.2f}",
                f"{costs['peak_mib']:.0f}",
                f"{costs['written_mb']:.0f}",
            )
            for route, costs in medians.items()
        ],
    )  # fmt: skip


def show_growth(
    directory: Path, sizes: list[int], repeats: int, atoms_each: int | None = None
) -> None:
    """Print the costs of exports of different sizes."""
    lines = []
    for rows in sizes:
        database = make_database(directory, rows, atoms_each)
        costs = median([_run("ours", database, directory) for _ in range(repeats)])
        lines.append(
            (
                f"{rows}",
                f"{costs['cpu_s']:.2f}",
                f"{1e6 * costs['cpu_s'] / rows:.0f}",
                f"{costs['wall_s']:.2f}",
                f"{costs['peak_mib']:.0f}",
            )
        )
    table(
        f"Growth of our export, {atoms_each or '32 to 64'} atoms each, medians of {repeats}",
        (
            "structures",
            "CPU s",
            "µs per structure",
            "wall s",
            "peak MiB above imports",
        ),
        lines,
    )


def make_database(directory: Path, rows: int, atoms_each: int | None = None) -> Path:
    """Return a database of this size; an existing one is reused."""
    path = directory / f"structures-{rows}-{atoms_each or 'mixed'}.db"
    if not path.exists():
        unfinished = path.with_suffix(".new.db")
        unfinished.unlink(missing_ok=True)
        write_database(unfinished, rows, atoms_each)
        unfinished.rename(path)
    return path


def _run(route: str, database: Path, directory: Path) -> Costs:
    output = directory / "out"
    shutil.rmtree(output, ignore_errors=True)  # left by an interrupted benchmark
    try:
        return measure_apart("benchmarks.routes", route, str(database), str(output))
    finally:
        shutil.rmtree(output, ignore_errors=True)
