"""Time until a fit reaches a loss: from scratch, with a ladder, and from a linear fit."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.tables import say, table
from mlip_job.config import JobConfig
from mlip_job.demo import write_demo_database
from mlip_job.generation import export_generation
from mlip_job.generation.data import make_fit_data
from mlip_job.registry import Registry
from mlip_job.store.open import open_store
from mlip_job.training.pacemaker.process import PacemakerWrapper
from mlip_job.training.pacemaker.tables import TableFollower, read_table
from mlip_job.training.programs import find_program, trainer_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.training.pacemaker import PacemakerFiles
    from mlip_job.training.pacemaker.tables import MetricsRow

_ITERATIONS = 200
_TRAINING: dict[str, Any] = {
    "functions_per_element": 100,
    "test_evaluation": "pacemaker",
    "validation_fraction": 0,
}
STARTS: dict[str, dict[str, Any]] = {
    "from nothing": {"linear_start": False, "ladder_step": None, "max_iter": _ITERATIONS},
    "by a ladder of two steps": {
        "linear_start": False,
        "ladder_step": 50,
        "max_iter": _ITERATIONS // 2,
    },
    "from a linear fit": {"linear_start": True, "max_iter": _ITERATIONS},
}
_REFERENCE, _LINEAR = "from nothing", "from a linear fit"


class Point(NamedTuple):
    """Cost of a fit until it reached a loss, including a preceding linear fit."""

    wall_s: float
    cpu_s: float
    loss: float


class Fit(NamedTuple):
    """One fit, iteration by iteration, and its result."""

    linear_s: float
    points: list[Point]
    test: MetricsRow

    def first_below(self, loss: float) -> Point | None:
        """Return the first point at or below a loss, if any."""
        return next((point for point in self.points if point.loss <= loss), None)


class _Silent:
    def message(self, _text: str) -> None:
        """Ignore it."""

    def progress(self, _progress: object) -> None:
        """Ignore it."""

    def trainer_line(self, _line: str) -> None:
        """Ignore it."""


def compare_starts(directory: Path, databases: Sequence[str], rounds: int) -> None:
    """Run the starts in turn on the demo's copper and on other databases."""
    demo = directory / "demo.db"
    write_demo_database(demo, ("Cu",))
    for number, url in enumerate((str(demo), *databases)):
        title = "the demo's copper" if url == str(demo) else f"database {number}"
        _compare(directory / f"starts-{number}", url, title, rounds)


def _compare(directory: Path, url: str, title: str, rounds: int) -> None:
    fits: dict[str, list[Fit]] = {start: [] for start in STARTS}
    for number in range(rounds):
        for start, settings in STARTS.items():
            config = _config(directory, url, settings)
            fits[start].append(_fit(config, directory / f"{number}-{start.replace(' ', '-')}"))
            last = fits[start][-1].points[-1]
            reached = f"loss {last.loss:.3g} after {last.wall_s:.0f} s"
            say(f"<!-- {start} {number + 1}/{rounds}: {reached} -->")
    table(
        f"Starts, {title}, {_TRAINING['functions_per_element']} functions, {_ITERATIONS} "
        f"iterations, medians of {rounds}",
        (
            "start", "first loss", "after s", "last loss", "after s", "RMSE test, meV/atom, meV/Å",
            "s to the last loss from nothing", "ratio", "CPU s", "ratio",
        ),
        [(start, *_line(own, fits[_REFERENCE])) for start, own in fits.items()],
    )  # fmt: skip
    seconds = statistics.median(fit.linear_s for fit in fits[_LINEAR])
    say(f"\nThe linear fit itself took {seconds:.1f} s.")


def _line(own: list[Fit], references: list[Fit]) -> tuple[str, ...]:
    """Return the figures of one start, relative to fits from scratch in the same rounds."""
    first, last = (
        (f"{_median(own, row).loss:.2e}", f"{_median(own, row).wall_s:.0f}") for row in (0, -1)
    )
    ends = [reference.points[-1] for reference in references]
    there = [fit.first_below(end.loss) for fit, end in zip(own, ends, strict=True)]
    reached = [point for point in there if point is not None]
    if len(reached) < len(ends):
        return *first, *last, _test_errors(own), "never", "", "never", ""
    wall = statistics.median(point.wall_s for point in reached)
    cpu = statistics.median(point.cpu_s for point in reached)
    pairs = list(zip(ends, reached, strict=True))
    return (
        *first,
        *last,
        _test_errors(own),
        f"{wall:.0f}",
        f"{statistics.median(end.wall_s / point.wall_s for end, point in pairs):.1f}",
        f"{cpu:.0f}",
        f"{statistics.median(end.cpu_s / point.cpu_s for end, point in pairs):.1f}",
    )


def _median(fits: list[Fit], row: int) -> Point:
    columns = zip(*(fit.points[row] for fit in fits), strict=True)
    return Point(*map(statistics.median, columns))


def _test_errors(fits: Sequence[Fit]) -> str:
    energy = statistics.median(1000 * (fit.test.rmse_energy_ev_per_atom or 0) for fit in fits)
    force = statistics.median(1000 * (fit.test.rmse_force_ev_per_angstrom or 0) for fit in fits)
    return f"{energy:.2f}, {force:.2f}"


def _config(directory: Path, url: str, settings: dict[str, Any]) -> JobConfig:
    return JobConfig.model_validate(
        {
            "family": "starts",
            "database": {"url": url},
            "training": _TRAINING | settings,
            "storage": {"url": str(directory / "store")},
        }
    )


def _fit(config: JobConfig, directory: Path) -> Fit:
    """Fit with the input of `mlip-job run`, and follow pacemaker's table."""
    trainer = PacemakerWrapper(config.training, directory)
    files = trainer.files
    record = _dataset(config, files)
    registry = Registry(open_store(config.storage), config.family)
    trainer.begin(make_fit_data(config.training, record, registry, files), None)
    begun, before = time.perf_counter(), _cpu_of_children()
    if trainer.linear_fit_due:
        trainer.fit_linearly(lambda _: None)
    linear_s, linear_cpu_s = time.perf_counter() - begun, _cpu_of_children() - before
    command = [str(find_program("pacemaker")), "--no-predict", files.input_yaml.name]
    points: list[Point] = []
    follower = TableFollower(files.table("metrics"))
    with (
        files.train_log.open("wb") as log,
        subprocess.Popen(
            command, cwd=directory, env=trainer_environment(), stdout=log, stderr=log
        ) as pacemaker,
    ):
        ended = False
        while not ended:
            cpu_s = linear_cpu_s + _cpu_of(pacemaker.pid)
            ended = pacemaker.poll() is not None
            wall_s = time.perf_counter() - begun
            losses = [row.loss for row in follower.poll() if row.loss is not None]
            points += [Point(wall_s, cpu_s, loss) for loss in losses]
            time.sleep(0.05)
    if pacemaker.returncode != 0:
        raise RuntimeError(f"pacemaker failed: {files.train_log.read_text()[-2000:]}")
    return Fit(linear_s, points, read_table(files.table("test_metrics")).rows[-1])


def _cpu_of_children() -> float:
    """Return the CPU seconds of all finished children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_of(pid: int) -> float:
    """Return the CPU seconds of a child that has not been waited for (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _dataset(config: JobConfig, files: PacemakerFiles) -> DatasetRecord:
    shutil.rmtree(files.directory, ignore_errors=True)
    files.directory.mkdir(parents=True)
    return export_generation(
        config,
        1,
        store=open_store(config.storage),
        observer=_Silent(),
        output=files.dataset.directory,
    )
