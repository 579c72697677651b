"""Cost of evaluating the test set during a fit: whole runs with the real pacemaker."""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.costs import PROGRAM, read_report
from benchmarks.tables import table
from mlip_job.demo import demo_config, write_demo_database

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = ("pacemaker", "end")
LADDERS = {"one step": "null", "a ladder of two steps": "10"}
_SMALL = (
    "training.functions_per_element=20",
    "training.max_iter=60",
    "training.overrides={backend: {display_step: 10}}",
    # All weights are 1 but stored in the data frames, so that the fits are equal bit by bit.
    "training.weighting={by_group: {strained: {energy: 1}}}",
)


@dataclass(frozen=True)
class Fit:
    """One run: seconds of its parts, and its errors."""

    wall_s: float
    graphs_s: float
    fitting_s: float
    loss: float
    tested: int


def compare_test_evaluations(directory: Path, repeats: int) -> None:
    """Run each setting of ``training.test_evaluation`` in turn, with and without a ladder."""
    write_demo_database(directory / "structures.db", ["Cu"])
    (directory / "mlip-job.yaml").write_text(demo_config(["Cu"]), encoding="utf-8")
    for title, ladder in LADDERS.items():
        fits: dict[str, list[Fit]] = {setting: [] for setting in SETTINGS}
        for number in range(repeats):
            for setting in SETTINGS:
                store = f"store-{'ladder' if ladder != 'null' else 'single'}-{setting}-{number}"
                fits[setting].append(_run(directory, store, setting, ladder))
        if len({fit.loss for runs in fits.values() for fit in runs}) > 1:
            raise SystemExit(f"the fits in {title} did not end with the same loss: {fits}")
        _show(f"Fit in {title}, {repeats} of each, in turns", fits)


def _run(directory: Path, store: str, setting: str, ladder: str) -> Fit:
    settings = (
        f"storage.url={store}",
        "training.validation_fraction=0",
        f"training.test_evaluation={setting}",
        f"training.ladder_step={ladder}",
        *_SMALL,
    )
    options = [part for setting in settings for part in ("--set", setting)]
    started = time.monotonic()
    subprocess.run(
        [PROGRAM, "-q", *options, "run", "-g", "1"],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    wall = time.monotonic() - started
    fit = read_report(directory / store)["fit"]
    seconds = fit["timings_s"]
    return Fit(
        wall_s=wall,
        graphs_s=seconds["building_graph"] + seconds.get("building_test_graph", 0.0),
        fitting_s=seconds["fitting"],
        loss=fit["train_curve"][-1]["loss"],
        tested=len(fit["test_curve"]),
    )


def _show(title: str, fits: dict[str, list[Fit]]) -> None:
    rows = []
    walls = [fit.wall_s for fit in fits["pacemaker"]]
    for setting, runs in fits.items():
        ratio = statistics.median(
            before / run.wall_s for before, run in zip(walls, runs, strict=True)
        )
        rows.append(
            (
                f"`{setting}`",
                f"{statistics.median(run.wall_s for run in runs):.1f}",
                f"{ratio:.2f}",
                f"{statistics.median(run.graphs_s for run in runs):.1f}",
                f"{statistics.median(run.fitting_s for run in runs):.1f}",
                f"{runs[0].loss!r}",
                f"{runs[0].tested}",
            )
        )
    header = (
        "test_evaluation",
        "wall s",
        "pacemaker / this",
        "graphs s",
        "fitting s",
        "final training loss",
        "points of the test curve",
    )
    table(title, header, rows)
