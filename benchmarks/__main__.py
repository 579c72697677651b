"""Run the benchmarks: ``python -m benchmarks [export|growth|read|commands|transfer|fit|…]``."""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.commands import compare_commands
from benchmarks.export import compare_routes, make_database, show_growth
from benchmarks.fit import compare_test_evaluations
from benchmarks.linear import compare_starts
from benchmarks.overhead import compare_with_bare_pacemaker
from benchmarks.quality import Budget, compare_quality, read_sets
from benchmarks.reading import compare_readers
from benchmarks.tables import machine, say
from benchmarks.transfer import compare_transfers

PARTS = ("export", "growth", "read", "commands", "transfer", "fit", "linear", "quality")
LONG = ("overhead",)  # a quarter of an hour: only when asked for


def main() -> None:
    """Run what was asked for, all by default."""
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="|".join((*PARTS, *LONG)))
    parser.add_argument("--rows", type=int, default=20_000, help="structures to compare with")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--mib", type=int, default=256, help="size of the file to transfer")
    parser.add_argument("--repeats", type=int, help="[5; 2 of the overhead]")
    parser.add_argument("--fits", type=int, default=1, help="repeats of fits, minutes each")
    parser.add_argument("--iterations", type=int, default=400, help="of the overhead's fits")
    parser.add_argument("--directory", type=Path, help="where databases are kept for later runs")
    parser.add_argument("--database", action="append", default=[], help="URL to read from too")
    parser.add_argument("--sets", type=Path, help="YAML list of sets for quality")
    parser.add_argument("--set", action="append", default=[], help="of ours in quality: KEY=VALUE")
    parser.add_argument("--cpu-limit", type=float, help="s of CPU, of each of ours in quality")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[1.0], help="upstream's CPU over ours"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
        scratch = Path(temporary)
        databases = options.directory or scratch
        databases.mkdir(parents=True, exist_ok=True)
        say(f"{datetime.now(UTC):%Y-%m-%d}: {machine()}")
        repeats = options.repeats or 5
        if "export" in options.parts:
            compare_routes(databases, options.rows, repeats)
        if "growth" in options.parts:
            show_growth(databases, options.sizes, 3)
        if "read" in options.parts:
            urls = [str(make_database(databases, options.rows)), *options.database]
            compare_readers(urls, repeats)
        if "commands" in options.parts:
            compare_commands(scratch, repeats)
        if "transfer" in options.parts:
            compare_transfers(scratch, options.mib, repeats)
        if "fit" in options.parts:
            compare_test_evaluations(scratch, options.fits)
        if "linear" in options.parts:
            compare_starts(scratch, options.database, options.fits)
        if "quality" in options.parts:
            sets = read_sets(options.sets) if options.sets else []
            budget = Budget(options.cpu_limit, tuple(sorted(options.factors)))
            compare_quality(scratch, sets, options.set, budget)
        if "overhead" in options.parts:
            compare_with_bare_pacemaker(scratch, options.iterations, options.repeats or 2)


if __name__ == "__main__":
    main()
