"""How soon a fit reaches a loss: from nothing, by a ladder, and from a linear fit."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.tables import say, table
from mlip_job.config import JobConfig
from mlip_job.demo import write_demo_database
from mlip_job.naming import WorkFiles
from mlip_job.pipeline import export_generation
from mlip_job.pipeline.stages import make_input, start_linearly
from mlip_job.store.open import open_store
from mlip_job.training.programs import find_program, trainer_environment
from mlip_job.training.tables import TableFollower, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.training.tables import MetricsRow

_ITERATIONS = 200
_TRAINING: dict[str, Any] = {"functions_per_element": 100, "stress_weight": 0}
STARTS: dict[str, dict[str, Any]] = {
    "from nothing": {"ladder_step": None, "max_iter": _ITERATIONS},
    "by a ladder of two steps": {"ladder_step": 50, "max_iter": _ITERATIONS // 2},
    "from a linear fit": {"linear_start": True, "max_iter": _ITERATIONS},
}
_REFERENCE, _LINEAR = "from nothing", "from a linear fit"


class Fit(NamedTuple):
    """One fit: seconds since its beginning and loss, row by row, and what it ended with.

    The seconds of the linear fit, where there was one, are counted.
    """

    linear_s: float
    points: list[tuple[float, float]]
    test: MetricsRow

    def seconds_to(self, loss: float) -> float | None:
        """Return when it first was at or below a loss, if ever."""
        return next((seconds for seconds, reached in self.points if reached <= loss), None)


class _Silent:
    def message(self, _text: str) -> None:
        """Say nothing."""

    def progress(self, _progress: object) -> None:
        """Say nothing."""

    def trainer_line(self, _line: str) -> None:
        """Say nothing."""


def compare_starts(directory: Path, databases: Sequence[str], rounds: int) -> None:
    """Run the starts in turn on copper of the demo, and on other databases."""
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
            seconds, loss = fits[start][-1].points[-1]
            say(f"<!-- {start} {number + 1}/{rounds}: loss {loss:.3g} after {seconds:.0f} s -->")
    rows = []
    for start, own in fits.items():
        # Each beside the fit from nothing of its round: when did it reach what that ended with?
        pairs = [
            (reference.points[-1][0], fit.seconds_to(reference.points[-1][1]))
            for fit, reference in zip(own, fits[_REFERENCE], strict=True)
        ]
        reached = [(theirs, ours) for theirs, ours in pairs if ours is not None]
        whole = len(reached) == len(pairs)
        rows.append(
            (
                start,
                f"{statistics.median(fit.linear_s for fit in own):.1f}" if start == _LINEAR else "",
                f"{_median(own, 0, 0):.0f}",
                f"{_median(own, 0, 1):.2e}",
                f"{_median(own, -1, 0):.0f}",
                f"{_median(own, -1, 1):.2e}",
                f"{statistics.median(ours for _, ours in reached):.0f}" if whole else "never",
                f"{statistics.median(a / b for a, b in reached):.1f}" if whole else "",
                _test_errors(own),
            )
        )
    table(
        f"Starts, {title}, {_TRAINING['functions_per_element']} functions, {_ITERATIONS} "
        f"iterations, medians of {rounds}",
        (
            "start", "linear fit, s", "s to first loss", "first loss", "s in all", "last loss",
            "s to the last loss from nothing", "times faster there",
            "RMSE test, meV/atom and meV/Å",
        ),
        rows,
    )  # fmt: skip


def _median(fits: Sequence[Fit], row: int, column: int) -> float:
    return statistics.median(fit.points[row][column] for fit in fits)


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
    """Fit with what `mlip-job run` gives pacemaker, and watch its table."""
    files = WorkFiles(directory)
    record = _dataset(config, files)
    content = make_input(config.training, files, record, None)
    begun = time.perf_counter()
    if config.training.linear_start:
        start_linearly(config, files, record, content, _Silent())
    linear_s = time.perf_counter() - begun
    command = [str(find_program("pacemaker")), "--no-predict", files.input_yaml.name]
    points: list[tuple[float, float]] = []
    follower = TableFollower(files.table("metrics"))
    with (
        files.train_log.open("wb") as log,
        subprocess.Popen(
            command, cwd=directory, env=trainer_environment(), stdout=log, stderr=log
        ) as pacemaker,
    ):
        ended = False
        while not ended:
            ended = pacemaker.poll() is not None
            seconds = time.perf_counter() - begun
            points += [(seconds, row.loss) for row in follower.poll() if row.loss is not None]
            time.sleep(0.05)
    if pacemaker.returncode != 0:
        raise RuntimeError(f"pacemaker failed: {files.train_log.read_text()[-2000:]}")
    return Fit(linear_s, points, read_table(files.table("test_metrics")).rows[-1])


def _dataset(config: JobConfig, files: WorkFiles) -> DatasetRecord:
    shutil.rmtree(files.directory, ignore_errors=True)
    files.directory.mkdir(parents=True)
    return export_generation(
        config,
        1,
        store=open_store(config.storage),
        observer=_Silent(),
        output=files.dataset.directory,
    )
