"""Overhead of a whole run over pacemaker alone, on the same input and the same frames."""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import yaml
from ase.build import bulk

from benchmarks.tables import say, table
from mlip_job.config import load_config
from mlip_job.registry import Registry
from mlip_job.store.open import open_store
from mlip_job.training.pacemaker.log import LogParser
from mlip_job.training.pacemaker.tables import read_table
from mlip_job.training.process import read_lines
from mlip_job.training.programs import find_program, trainer_environment
from tests.support import with_emt, write_database

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ase import Atoms

    from mlip_job.registry import Timings

_STRUCTURES = 160
_RELATIVE, _ABSOLUTE_S = 0.05, 3.0  # limit, as a fraction of the time of pacemaker alone
_PREDICTING = "predicting"


@dataclass(frozen=True)
class _Pair:
    """A run of mlip-job and pacemaker alone, one after the other; wall and CPU time in s."""

    ours_s: float
    ours_cpu_s: float
    bare_s: float
    bare_cpu_s: float
    timings: Timings
    bare_phases_s: dict[str, float]

    @property
    def limit_s(self) -> float:
        """Upper limit of the run's overhead."""
        return _RELATIVE * self.bare_s + _ABSOLUTE_S

    @property
    def own_s(self) -> float:
        """CPU time of the run outside pacemaker: least affected by other load."""
        return self.ours_s - sum(self.timings.phases_s.values())

    @property
    def fit_alone_s(self) -> float:
        """Time of pacemaker alone, without the predictions that a run skips."""
        return self.bare_s - self.bare_phases_s.get(_PREDICTING, 0.0)


def compare_with_bare_pacemaker(directory: Path, iterations: int, repeats: int) -> None:
    """Run both in turn, several times, and print the time of each part."""
    config = _configure(directory, iterations)
    pairs = []
    for repeat in range(repeats):
        pairs.append(_run_both(directory, config))
        ours, bare = pairs[-1].ours_s, pairs[-1].bare_s
        say(f"<!-- {repeat + 1}/{repeats}: {ours:.1f} s, pacemaker alone {bare:.1f} s -->")
    _print(pairs, iterations)


def _print(pairs: list[_Pair], iterations: int) -> None:
    table(
        f"`mlip-job run` and `pacemaker input.yaml`, {_STRUCTURES} structures, "
        f"{iterations} iterations, bit-equal losses",
        (
            "round", "run, s", "pacemaker, s", "overhead, s", "%", "limit, s", "within",
            "predictions of pacemaker's, s", "overhead without them, s",
            "run outside of pacemaker, s", "CPU of the run, s",
            "CPU of pacemaker, s",
        ),
        [
            (
                str(number),
                f"{pair.ours_s:.1f}",
                f"{pair.bare_s:.1f}",
                f"{pair.ours_s - pair.bare_s:+.1f}",
                f"{100 * (pair.ours_s / pair.bare_s - 1):+.1f}",
                f"{pair.limit_s:.1f}",
                "yes" if pair.ours_s - pair.bare_s <= pair.limit_s else "NO",
                f"{pair.bare_s - pair.fit_alone_s:.1f}",
                f"{pair.ours_s - pair.fit_alone_s:+.1f}",
                f"{pair.own_s:.1f}",
                f"{pair.ours_cpu_s:.0f}",
                f"{pair.bare_cpu_s:.0f}",
            )
            for number, pair in enumerate(pairs, start=1)
        ],
    )  # fmt: skip
    stages = [pair.timings.stages_s for pair in pairs]
    phases = [pair.timings.phases_s for pair in pairs]
    bare = [pair.bare_phases_s for pair in pairs]
    rest = [
        pair.ours_s - sum(pair.timings.stages_s.values())  # after the manifest, between stages
        for pair in pairs
    ]
    table(
        "Where it goes, medians",
        ("stage", "run, s", "pacemaker alone, s"),
        [
            *((name, _median(stages, name), "") for name in stages[0] if name != "fit"),
            *(
                (f"pacemaker: {name}", _median(phases, name), _median(bare, name))
                for name in bare[0]
            ),
            ("checkpoints, waiting", _cell(map(_outside_phases, pairs)), ""),
            ("tracking, exit, not in any stage", _cell(rest), ""),
            (
                "from the start of the job to pacemaker's",
                _cell(pair.timings.to_trainer_s or 0.0 for pair in pairs),
                "",
            ),
        ],
    )


def _outside_phases(pair: _Pair) -> float:
    return pair.timings.stages_s["fit"] - sum(pair.timings.phases_s.values())


def _median(columns: list[dict[str, float]], name: str) -> str:
    return _cell(column.get(name, 0.0) for column in columns)


def _cell(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.2f}"


def _configure(directory: Path, iterations: int) -> Path:
    write_database(directory / "structures.db", map(with_emt, _structures()))
    path = directory / "mlip-job.yaml"
    values = {
        "family": "cu",
        "database": {"url": "structures.db"},
        "storage": {"url": "store"},
        "training": {
            "functions_per_element": 30,
            "ladder_step": None,
            "max_iter": iterations,
        },
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _structures() -> list[Atoms]:
    rng = np.random.default_rng(0)
    structures = []
    for _ in range(_STRUCTURES):
        atoms = bulk("Cu", cubic=True, a=3.5 + 0.3 * rng.random()).repeat((1, 2, 2))
        atoms.positions += rng.normal(scale=0.15, size=(len(atoms), 3))
        structures.append(atoms)
    return structures


def _run_both(directory: Path, config: Path) -> _Pair:
    for left in ("store", "work", "bare"):
        shutil.rmtree(directory / left, ignore_errors=True)
    before, started = _children_cpu_s(), time.perf_counter()
    subprocess.run(
        [str(find_program("mlip-job")), "-q", "-c", str(config), "run", "-g", "1"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    ours_s, ours_cpu_s = time.perf_counter() - started, _children_cpu_s() - before
    settings = load_config(config)
    manifest = Registry(open_store(settings.storage), settings.family).get(1)
    (work,) = (directory / "work" / "gen_01").iterdir()
    bare = directory / "bare"
    bare.mkdir()
    shutil.copy(work / "input.yaml", bare)
    shutil.copytree(work / "dataset", bare / "dataset")
    before = _children_cpu_s()
    bare_s, phases_s = _run_pacemaker(bare)
    bare_cpu_s = _children_cpu_s() - before
    _require_same_losses(work / "metrics" / "metrics.txt", bare / "metrics.txt")
    return _Pair(ours_s, ours_cpu_s, bare_s, bare_cpu_s, manifest.attempts[-1].timings, phases_s)


def _children_cpu_s() -> float:
    """Return the CPU time of all finished children and their descendants."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run_pacemaker(directory: Path) -> tuple[float, dict[str, float]]:
    output = directory / "console.log"
    begun, started = datetime.now(), time.perf_counter()  # noqa: DTZ005 - as its log is stamped
    with output.open("wb") as file:
        subprocess.run(
            [str(find_program("pacemaker")), "input.yaml"],
            check=True,
            cwd=directory,
            env=trainer_environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    ended, wall = datetime.now(), time.perf_counter() - started  # noqa: DTZ005
    parser = LogParser()
    for line in read_lines(output):
        parser.feed(line)
    return wall, parser.state.phase_seconds(begun, ended)


def _require_same_losses(ours: Path, bare: Path) -> None:
    """Check that both have done the same work."""
    losses = [[row.loss for row in read_table(path).rows] for path in (ours, bare)]
    if losses[0] != losses[1] or not losses[0]:
        raise SystemExit(f"{ours} and {bare} hold different losses: the times can't be compared")
