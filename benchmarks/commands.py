"""How fast the command line answers."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.s3 import s3_storage
from benchmarks.tables import table
from mlip_job.config import StorageConfig
from mlip_job.registry import Registry
from mlip_job.store.open import open_store
from tests.manifests import make_manifest

if TYPE_CHECKING:
    from mlip_job.store.base import ObjectStore

GENERATIONS = 1000
_FILES_PER_GENERATION = 12
_PROGRAM = str(Path(sys.executable).with_name("mlip-job"))


def compare_commands(directory: Path, repeats: int) -> None:
    """Print what commands cost, as whole processes."""
    with s3_storage(directory / "s3.log") as s3:
        stores = {"a directory": StorageConfig(url=str(directory / "store")), "S3": s3}
        commands = {
            "import click": [sys.executable, "-c", "import click"],
            "mlip-job --help": [_PROGRAM, "--help"],
            "mlip-job --version": [_PROGRAM, "--version"],
        }
        empty = StorageConfig(url=str(directory / "empty"))
        configured = [_PROGRAM, "-c", str(_configure(directory, "nothing", empty))]
        commands["mlip-job list"] = [*configured, "list"]
        commands["mlip-job submit -g 1 --scheduler slurm --dry-run"] = [
            *configured, "submit", "-g", "1", "--scheduler", "slurm", "--dry-run"
        ]  # fmt: skip
        requests = {}
        for name, storage in stores.items():
            what = f"mlip-job list, {GENERATIONS} generations in {name}"
            _publish(open_store(storage))
            commands[what] = [_PROGRAM, "-c", str(_configure(directory, name, storage)), "list"]
            if name == "S3":
                requests[what] = _count_requests(open_store(storage))
        costs: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for _ in range(repeats):
            for what, command in commands.items():
                costs[what].append(_run(command))
    medians = {
        what: tuple(statistics.median(column) for column in zip(*runs, strict=True))
        for what, runs in costs.items()
    }
    table(
        f"Commands, medians of {repeats}",
        ("command", "CPU s", "CPU / import click", "wall s", "requests"),
        [
            (
                f"`{what}`" if "," not in what else what,
                f"{cpu:.3f}",
                f"{cpu / medians['import click'][0]:.1f}",
                f"{wall:.3f}",
                str(requests.get(what, "")),
            )
            for what, (cpu, wall) in medians.items()
        ],
    )


def _run(command: list[str]) -> tuple[float, float]:
    """Return CPU and wall seconds of a process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def _publish(store: ObjectStore) -> None:
    """Put generations into a store, with as many objects as a real one has."""
    registry = Registry(store, "bench")

    def put(number: int) -> None:
        manifest = make_manifest(number, family="bench")
        store.put(registry.keys.manifest(number), manifest.to_json())
        for file in range(_FILES_PER_GENERATION):
            store.put(registry.keys.attempt(number, manifest.attempt, f"file-{file}"), b"")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(1, GENERATIONS + 1)))


def _configure(directory: Path, name: str, storage: StorageConfig) -> Path:
    path = directory / f"{name.replace(' ', '-')}.yaml"
    values = {"family": "bench", "storage": storage.model_dump(exclude_defaults=True)}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _count_requests(store: ObjectStore) -> int:
    sent: list[str] = []

    def note(event_name: str, **_: Any) -> None:
        sent.append(event_name)

    store._client.meta.events.register("before-send.s3", note)  # type: ignore[attr-defined]  # noqa: SLF001
    registry = Registry(store, "bench")
    registry.summaries()
    registry.latest()
    return len(sent)
