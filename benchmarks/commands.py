"""Costs of commands: CPU, wall time, and requests to S3."""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from benchmarks.costs import PROGRAM
from benchmarks.s3 import s3_storage
from benchmarks.tables import table
from mlip_job.config import StorageConfig
from mlip_job.registry import Artefact, Registry
from mlip_job.registry.maintenance import find_orphans
from mlip_job.registry.objects import at_once
from mlip_job.report.figures import MAX_GENERATIONS
from mlip_job.report.model import read_report
from mlip_job.store.open import open_store
from tests.manifests import make_manifest
from tests.reports import make_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.store.base import ObjectStore

GENERATIONS = 1000
FEWER_GENERATIONS = 200
_FILES_PER_GENERATION = 11
_COMPARED = range(FEWER_GENERATIONS - MAX_GENERATIONS + 1, FEWER_GENERATIONS + 1)
_COMPARE = f"compare {' '.join(map(str, _COMPARED))} -o {os.devnull}"


def compare_commands(directory: Path, repeats: int) -> None:
    """Print the costs of commands, each run as a process."""
    with s3_storage(directory / "s3.log") as s3:
        (server,) = psutil.Process().children()
        stores = {"a directory": StorageConfig(url=str(directory / "store")), "S3": s3}
        empty = StorageConfig(url=str(directory / "empty"))
        configured = [PROGRAM, "-c", str(_configure(directory, "bench", empty))]
        commands = {
            "import click": [sys.executable, "-c", "import click"],
            "mlip-job --help": [PROGRAM, "--help"],
            "mlip-job --version": [PROGRAM, "--version"],
            "mlip-job list": [*configured, "list"],
            "mlip-job submit -g 1 --scheduler slurm --dry-run": [
                *configured, "submit", "-g", "1", "--scheduler", "slurm", "--dry-run"
            ],
        }  # fmt: skip
        requests = {}
        for name, storage in stores.items():
            store = open_store(storage)
            for family, count, verbs in (
                ("many", GENERATIONS, ("list", "list --all")),
                ("fewer", FEWER_GENERATIONS, ("list", _COMPARE, "gc")),
            ):
                registry = Registry(store, family)
                _publish(registry, count)
                config = str(_configure(directory, family, storage))
                for verb in verbs:
                    what = f"mlip-job {verb}: {count} generations in {name}"
                    commands[what] = [PROGRAM, "-c", config, *verb.split()]
                    if name == "S3":
                        requests[what] = _count_requests(store, partial(_READS[verb], registry))
        costs: dict[str, list[tuple[float, float, float]]] = {what: [] for what in commands}
        for _ in range(repeats):
            for what, command in commands.items():
                costs[what].append(_run(command, server))
    medians = {
        what: tuple(statistics.median(column) for column in zip(*runs, strict=True))
        for what, runs in costs.items()
    }
    table(
        f"Commands, medians of {repeats}",
        ("command", "CPU s", "CPU / import click", "S3 server's CPU s", "wall s", "requests"),
        [
            (
                f"`{what}`" if ":" not in what else what,
                f"{cpu:.3f}",
                f"{cpu / medians['import click'][0]:.1f}",
                f"{server_cpu:.3f}" if what in requests else "",
                f"{wall:.3f}",
                str(requests.get(what, "")),
            )
            for what, (cpu, server_cpu, wall) in medians.items()
        ],
    )


def _run(command: list[str], server: psutil.Process) -> tuple[float, float, float]:
    """Return CPU seconds of the process and of the server, and wall seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    served = sum(server.cpu_times()[:2])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, sum(server.cpu_times()[:2]) - served, wall


def _publish(registry: Registry, generations: int) -> None:
    """Fill a store with generations that have as many objects as real ones."""
    report = make_report().to_json()
    sha256 = hashlib.sha256(report).hexdigest()

    def put(number: int) -> None:
        manifest = make_manifest(number, family=registry.family)
        key = registry.keys.attempt(number, manifest.attempt, "report.json")
        artefact = Artefact(key=key, sha256=sha256, size=len(report))
        manifest = manifest.model_copy(update={"artefacts": {"report.json": artefact}})
        registry.store.put(key, report)
        registry.store.put(registry.keys.manifest(number), manifest.to_json())
        for file in range(_FILES_PER_GENERATION):
            key = registry.keys.attempt(number, manifest.attempt, f"file-{file}")
            registry.store.put(key, b"")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(1, generations + 1)))


def _configure(directory: Path, family: str, storage: StorageConfig) -> Path:
    kind = "s3" if storage.url.startswith("s3:") else Path(storage.url).name
    path = directory / f"{family}-{kind}.yaml"
    values = {"family": family, "storage": storage.model_dump(exclude_defaults=True)}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _count_requests(store: ObjectStore, read: Callable[[], object]) -> int:
    sent: list[str] = []

    def note(event_name: str, **_: Any) -> None:
        sent.append(event_name)

    events = store._client.meta.events  # type: ignore[attr-defined]  # noqa: SLF001
    events.register("before-send.s3", note)
    read()
    events.unregister("before-send.s3", note)
    return len(sent)


def _list(registry: Registry, newest: int) -> None:
    registry.summaries(registry.started()[-newest:])
    registry.latest()


def _find_orphans(registry: Registry) -> None:
    list(find_orphans(registry, timedelta(days=30)))


def _compare(registry: Registry) -> None:
    at_once(lambda manifest: read_report(registry, manifest), at_once(registry.get, _COMPARED))


_READS: dict[str, Callable[[Registry], None]] = {
    "list": partial(_list, newest=100),
    "list --all": partial(_list, newest=GENERATIONS),
    _COMPARE: _compare,
    "gc": _find_orphans,
}
"""Objects that a command reads from a store."""
