"""Run the benchmarks: ``python -m benchmarks [export|growth|read|commands|transfer|fit|…]``."""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.commands import compare_commands
from benchmarks.design import show_design_costs
from benchmarks.export import compare_routes, make_database, show_growth
from benchmarks.fit import compare_test_evaluations
from benchmarks.linear import compare_starts
from benchmarks.overhead import compare_with_bare_pacemaker
from benchmarks.quality import Budget, compare_quality, compare_trainers, read_sets
from benchmarks.reading import compare_readers
from benchmarks.scale import show_scale
from benchmarks.tables import machine, say
from benchmarks.transfer import compare_transfers

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("export", "growth", "read", "commands", "transfer", "fit", "linear", "quality")
LONG = ("overhead", "scale", "trainers")  # minutes to hours: only when asked for


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="|".join((*PARTS, *LONG)))
    parser.add_argument("--rows", type=int, default=20_000, help="structures to compare with")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--atoms", type=int, help="per structure of growth, a multiple of 4")
    parser.add_argument("--mib", type=int, default=256, help="size of the file to transfer")
    parser.add_argument("--repeats", type=int, help="[5; 2 of the overhead]")
    parser.add_argument("--fits", type=int, default=1, help="repeats of fits, minutes each")
    parser.add_argument("--iterations", type=int, default=400, help="of the overhead's fits")
    parser.add_argument("--directory", type=Path, help="where databases are kept for later runs")
    parser.add_argument("--database", action="append", default=[], help="URL to read from too")
    parser.add_argument("--sets", type=Path, help="YAML list of sets for quality, trainers")
    parser.add_argument(
        "--set", action="append", default=[], help="of ours, or grace-fs: KEY=VALUE"
    )
    parser.add_argument(
        "--cpu-limit", type=float, help="s of CPU, of each of ours in quality, of trainers [1800]"
    )
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[1.0], help="upstream's CPU over ours"
    )
    options = parser.parse_args()
    if unknown := set(options.parts).difference(PARTS, LONG):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Run the parts asked for, by default all but the long ones."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
        databases = options.directory or Path(temporary)
        databases.mkdir(parents=True, exist_ok=True)
        say(f"{datetime.now(UTC):%Y-%m-%d}: {machine()}")
        parts = _parts(options, Path(temporary), databases)
        for name in options.parts:
            parts[name]()


def _parts(
    options: argparse.Namespace, scratch: Path, databases: Path
) -> dict[str, Callable[[], None]]:
    repeats = options.repeats or 5

    def read() -> None:
        urls = [str(make_database(databases, options.rows)), *options.database]
        compare_readers(urls, repeats)

    def linear() -> None:
        show_design_costs(scratch, options.database)
        compare_starts(scratch, options.database, options.fits)

    def quality() -> None:
        sets = read_sets(options.sets) if options.sets else []
        budget = Budget(options.cpu_limit, tuple(sorted(options.factors)))
        compare_quality(scratch, sets, options.set, budget)

    def trainers() -> None:
        if not options.sets:
            raise SystemExit("trainers compares on the sets of --sets FILE")
        limit_s = options.cpu_limit or 1800.0
        compare_trainers(scratch, read_sets(options.sets), options.set, limit_s)

    return {
        "export": lambda: compare_routes(databases, options.rows, repeats),
        "growth": lambda: show_growth(
            databases, options.sizes, options.repeats or 3, options.atoms
        ),
        "read": read,
        "commands": lambda: compare_commands(scratch, repeats),
        "transfer": lambda: compare_transfers(scratch, options.mib, repeats),
        "fit": lambda: compare_test_evaluations(scratch, options.fits),
        "linear": linear,
        "quality": quality,
        "trainers": trainers,
        "overhead": lambda: compare_with_bare_pacemaker(
            scratch, options.iterations, options.repeats or 2
        ),
        "scale": lambda: show_scale(scratch, databases, (10_000, 100_000), 1_000_000),
    }


if __name__ == "__main__":
    main()
