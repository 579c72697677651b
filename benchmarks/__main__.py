"""Run the benchmarks: ``python -m benchmarks [export|growth|read|commands|linear ...]``."""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.commands import compare_commands
from benchmarks.export import compare_routes, make_database, show_growth
from benchmarks.linear import compare_starts
from benchmarks.reading import compare_readers
from benchmarks.tables import machine, say

PARTS = ("export", "growth", "read", "commands", "linear")


def main() -> None:
    """Run what was asked for, all by default."""
    parser = argparse.ArgumentParser(prog="benchmarks")
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="|".join(PARTS))
    parser.add_argument("--rows", type=int, default=20_000, help="structures to compare with")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where databases are kept for later runs")
    parser.add_argument("--rounds", type=int, default=1, help="of fits, a minute or two each")
    parser.add_argument("--database", action="append", default=[], help="URL to read from too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
        scratch = Path(temporary)
        databases = options.directory or scratch
        databases.mkdir(parents=True, exist_ok=True)
        say(f"{datetime.now(UTC):%Y-%m-%d}: {machine()}")
        if "export" in options.parts:
            compare_routes(databases, options.rows, options.repeats)
        if "growth" in options.parts:
            show_growth(databases, options.sizes, 3)
        if "read" in options.parts:
            urls = [str(make_database(databases, options.rows)), *options.database]
            compare_readers(urls, options.repeats)
        if "commands" in options.parts:
            compare_commands(scratch, options.repeats)
        if "linear" in options.parts:
            compare_starts(scratch, options.database, options.rounds)


if __name__ == "__main__":
    main()
