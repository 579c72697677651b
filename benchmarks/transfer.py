"""Transfers of large files to and from an object store, compared with a plain script.

::

    python -m benchmarks.transfer ours '{"url": "s3://bucket/x", "endpoint_url": "..."}' file
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

from benchmarks.costs import cpu_seconds, measure_apart, median, peak_mib
from benchmarks.s3 import s3_storage
from benchmarks.tables import table
from mlip_job.config import StorageConfig
from mlip_job.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.costs import Costs

    Moves = tuple[Callable[[Path], str], Callable[[Path], str]]
    """Upload and download; both return the file's sha256."""

_KEY = "large"
_MIB = 1 << 20


def compare_transfers(directory: Path, mib: int, repeats: int) -> None:
    """Print the cost of moving a file of random bytes, both ways in turn."""
    file = directory / "large"
    with file.open("wb") as output:
        for _ in range(mib):
            output.write(os.urandom(_MIB))
    with s3_storage(directory / "transfer.log") as s3:
        stores = {"S3": s3, "a directory": StorageConfig(url=str(directory / "transfer"))}
        cases = [(name, way, stores[name]) for name in stores for way in ("by hand", "ours")]
        runs: dict[tuple[str, str], list[Costs]] = {(name, way): [] for name, way, _ in cases}
        for _ in range(repeats):
            for name, way, storage in cases:
                settings = storage.model_dump_json(exclude_defaults=True)
                costs = measure_apart("benchmarks.transfer", way, settings, str(file))
                runs[name, way].append(costs)
    _show(f"A file of {mib} MiB to a store and back, medians of {repeats}", runs)


def _show(title: str, runs: dict[tuple[str, str], list[Costs]]) -> None:
    table(
        title,
        ("store", "way", "upload s", "CPU s", "download s", "CPU s", "peak MiB above imports"),
        [
            (
                *case,
                f"{costs['upload_s']:.2f}",
                f"{costs['upload_cpu_s']:.2f}",
                f"{costs['download_s']:.2f}",
                f"{costs['download_cpu_s']:.2f}",
                f"{costs['peak_mib']:.0f}",
            )
            for case, costs in ((case, median(all_costs)) for case, all_costs in runs.items())
        ],
    )


def _ours(storage: StorageConfig) -> Moves:
    store = open_store(storage)
    store.head(_KEY)  # creates the client; the other way has created its own here too
    return lambda file: store.upload(file, _KEY), lambda file: store.download(_KEY, file)


def _by_hand(storage: StorageConfig) -> Moves:
    """Move it with boto3's transfers or `shutil`, and read it again for its hash."""
    if not storage.url.startswith("s3://"):
        kept = Path(storage.url).with_suffix(".by-hand")
        return (
            lambda file: _sha256(Path(shutil.copyfile(file, kept))),
            lambda file: _sha256(Path(shutil.copyfile(kept, file))),
        )
    client = boto3.client("s3", endpoint_url=storage.endpoint_url)
    bucket = storage.url.removeprefix("s3://").split("/")[0]

    def upload(file: Path) -> str:
        client.upload_file(str(file), bucket, _KEY)
        return _sha256(file)

    def download(file: Path) -> str:
        client.download_file(bucket, _KEY, str(file))
        return _sha256(file)

    return upload, download


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(way: str, storage: StorageConfig, file: Path) -> Costs:
    """Move a file there and back in this process, and check that it is unchanged."""
    upload, download = {"by hand": _by_hand, "ours": _ours}[way](storage)
    before, costs, digests = peak_mib(), {}, []
    copy = file.with_suffix(".copy")
    for name, move, path in (("upload", upload, file), ("download", download, copy)):
        cpu, started = cpu_seconds(), time.perf_counter()
        digests.append(move(path))
        costs[f"{name}_s"] = time.perf_counter() - started
        costs[f"{name}_cpu_s"] = cpu_seconds() - cpu
    copy.unlink()
    if len(set(digests)) > 1:
        raise SystemExit(f"{way}: the file came back as another")
    return costs | {"peak_mib": peak_mib() - before}


if __name__ == "__main__":
    result = measure(sys.argv[1], StorageConfig.model_validate_json(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps(result))  # noqa: T201
