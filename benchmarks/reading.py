"""Direct reading of rows compared with ASE's interface."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.tables import table
from mlip_job.config import DatabaseConfig
from mlip_job.dataset.connection import describe_url, open_database
from mlip_job.dataset.database import StructureDatabase

if TYPE_CHECKING:
    from collections.abc import Callable


def compare_readers(urls: list[str], repeats: int) -> None:
    """Print the cost of reading all rows of databases."""
    lines = []
    for url in urls:
        config = DatabaseConfig(url=url, select="status=completed")
        readers: dict[str, Callable[[DatabaseConfig], int]] = {
            "ASE": _read_by_ase,
            "ours": _read_pages,
            "ours, ids and times only": _select,
        }
        costs: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(repeats):
            for name, read in readers.items():
                started = time.process_time()
                rows = read(config)
                costs[name].append(1e6 * (time.process_time() - started) / rows)
        kind = describe_url(url).partition("://")[0] if "://" in url else "SQLite"
        medians = [f"{statistics.median(runs):.1f}" for runs in costs.values()]
        lines.append((f"{kind}, {rows} rows", *medians))
    table(
        f"Reading, CPU µs per structure, medians of {repeats}",
        ("database", "ASE (inside with)", "ours", "ids and times only"),
        lines,
    )


def _read_by_ase(config: DatabaseConfig) -> int:
    database = open_database(config).database
    with database:
        return sum(1 for row in database.select(config.select, include_data=False) if row.toatoms())


def _read_pages(config: DatabaseConfig) -> int:
    with StructureDatabase(config) as database:
        return sum(1 for _ in database.rows())


def _select(config: DatabaseConfig) -> int:
    with StructureDatabase(config) as database:
        return database.select().summary().count
