"""Quality of potentials: mlip-job's defaults against upstream's inputs, on the same frames.

The configuration is written by `mlip-job init` and run with `mlip-job run`. All of its CPU time
counts, including evaluation and publishing. Pacemaker alone then runs upstream's input for the same
time, or a multiple of it, and its potential at that time is converted. The same code measures the
test errors of both.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import yaml
from pydantic import BaseModel, ConfigDict

from benchmarks.costs import PROGRAM
from benchmarks.tables import say, table
from benchmarks.upstream import INPUTS, examples_for, upstream_input
from mlip_job.dataset.record import DatasetRecord
from mlip_job.dataset.xyz import parse, read_blocks
from mlip_job.demo import write_demo_database
from mlip_job.evaluation.measure import Models, Task, measuring
from mlip_job.evaluation.potential import Potential, measure_speed
from mlip_job.evaluation.statistics import SetErrors
from mlip_job.paths import DatasetFiles
from mlip_job.runtime.environment import usable_cores
from mlip_job.training.grace import GraceFiles, potential_file
from mlip_job.training.grace.potential_file import is_grace
from mlip_job.training.pacemaker import PacemakerFiles
from mlip_job.training.pacemaker.potential_file import (
    convert_to_yace,
    count_functions,
    read_potential,
)
from mlip_job.training.pacemaker.snapshot import copy_potential
from mlip_job.training.pacemaker.tables import read_table
from mlip_job.training.programs import find_program, trainer_environment
from mlip_job.training.trainer import dump_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlip_job.evaluation.results import SetEvaluation

_POLL_S = 0.5
_SEED = 42  # the default of training.seed, after which gracemaker names its folder
_UNLIMITED = 100_000  # iterations, of fits that the CPU time ends
_COLUMNS = (
    "fit", "CPU s", "functions", "E RMSE", "E MAE", "F RMSE", "F MAE", "S RMSE", "S MAE", "µs/atom",
)  # fmt: skip


class BenchmarkSet(BaseModel):
    """One set of labelled structures.

    Attributes
    ----------
    name
        Title of its table.
    database
        URL.
    select
        ``database.select``; None takes all finished rows.
    split_key
        The key_value_pair that holds a published split.
    published
        Test MAE of other potentials by name: meV/atom and meV/Å.
    upstream
        Upstream inputs to compare with; chosen by the data if empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    database: str
    select: str | None = None
    split_key: str | None = None
    published: dict[str, tuple[float, float]] = {}
    upstream: tuple[str, ...] = ()


class Budget(NamedTuple):
    """CPU time limits of the fits.

    Attributes
    ----------
    cpu_limit_s
        Stop the run after this time and use its potential; None for no limit.
    factors
        Upstream's time as multiples of the run's, ascending.
    """

    cpu_limit_s: float | None
    factors: tuple[float, ...]


class Fit(NamedTuple):
    """A potential (``.yaml``) and its cost; None if there was none yet."""

    name: str
    cpu_s: float
    potential: Path | None


def read_sets(path: Path) -> list[BenchmarkSet]:
    """Read a YAML list of sets."""
    sets = [BenchmarkSet.model_validate(one) for one in yaml.safe_load(path.read_text())]
    for one in sets:
        for name in one.upstream:
            if name not in INPUTS:
                raise SystemExit(f"{path}: upstream has {', '.join(INPUTS)}, but no {name}")
    return sets


def compare_quality(
    directory: Path, sets: Sequence[BenchmarkSet], settings: Sequence[str], budget: Budget
) -> None:
    """Compare on the demo's copper and on other sets, one table each.

    Parameters
    ----------
    settings
        ``KEY=VALUE`` changes to the configuration that `init` writes.
    """
    database = directory / "quality-demo.db"
    write_demo_database(database, ("Cu",))
    demo = BenchmarkSet(name="the demo's copper", database=str(database))
    for number, one in enumerate((demo, *sets)):
        root = directory / f"quality-{number}"
        root.mkdir()
        _compare(root, one, settings, budget)


def _compare(root: Path, one: BenchmarkSet, settings: Sequence[str], budget: Budget) -> None:
    ours, dataset, record = _fit("ours", root, one, settings, budget.cpu_limit_s)
    say(f"<!-- {one.name}: ours took {ours.cpu_s:.0f} s of CPU -->")
    fits = [ours]
    for name in one.upstream or examples_for(record, periodic=_is_periodic(dataset)):
        fits += _run_upstream(root / name, name, dataset, record, ours.cpu_s, budget.factors)
        say(f"<!-- {one.name}: {name} ended after {fits[-1].cpu_s:.0f} s of CPU -->")
    rows = [_row(fit, _errors(fit, dataset, record), dataset, record) for fit in fits]
    _table(one, record, [*rows, *_published(one)])


def compare_trainers(
    directory: Path, sets: Sequence[BenchmarkSet], settings: Sequence[str], cpu_limit_s: float
) -> None:
    """Compare grace-fs with pacemaker, as a linear fit and with iterations, one table per set.

    The fits with iterations are stopped at the same CPU time, exports and publishing of finished
    runs included. `settings` are those of grace-fs; the last rows are its errors over those of
    pacemaker.
    """
    for number, one in enumerate(sets):
        root = directory / f"trainers-{number}"
        candidates = {
            "pacemaker, linear": (),
            "pacemaker, iterations": (f"training.max_iter={_UNLIMITED}",),
            "grace-fs": (
                "training.trainer=grace-fs", "training.zbl=false",
                f"training.max_iter={_UNLIMITED}", *settings,
            ),
        }  # fmt: skip
        rows: list[tuple[str, ...]] = []
        measured: list[tuple[str, SetEvaluation | None]] = []
        for name, own in candidates.items():
            folder = root / name.replace(", ", "-")
            folder.mkdir(parents=True)
            fit, dataset, record = _fit(name, folder, one, own, cpu_limit_s)
            say(f"<!-- {one.name}: {fit.name} took {fit.cpu_s:.0f} s of CPU -->")
            errors = _errors(fit, dataset, record)
            rows.append(_row(fit, errors, dataset, record))
            measured.append((name, errors))
        grace = measured.pop()[1]
        ratios = [_ratios(f"grace-fs / {name}", grace, errors) for name, errors in measured]
        _table(one, record, [*rows, *ratios, *_published(one)])


def _table(one: BenchmarkSet, record: DatasetRecord, rows: Sequence[Sequence[str]]) -> None:
    table(
        f"{one.name}: {record.counts.train} train, {record.counts.test} test; test errors in "
        "meV/atom, meV/Å and GPa",
        _COLUMNS,
        rows,
    )


def _published(one: BenchmarkSet) -> Iterator[tuple[str, ...]]:
    for name, (energy, force) in one.published.items():
        yield f"{name}, published", "", "", "", f"{energy:.2f}", "", f"{force:.1f}", "", "", ""


def _is_periodic(dataset: DatasetFiles) -> bool:
    return bool(parse(next(read_blocks(dataset.xyz("test")))).atoms.pbc.all())


# -- fits ------------------------------------------------------------------------------------------


def _fit(
    name: str, root: Path, one: BenchmarkSet, settings: Sequence[str], limit_s: float | None
) -> tuple[Fit, DatasetFiles, DatasetRecord]:
    """Run mlip-job; of a stopped run take the newest potential."""
    cpu_s, finished = _run_ours(root, one, settings, limit_s)
    (folder,) = (root / "store").glob("*/datasets/*")
    dataset = DatasetFiles(folder)
    record = DatasetRecord.from_json(dataset.record.read_text(encoding="utf-8"), key="dataset.json")
    (work,) = (root / "work" / "gen_01").iterdir()
    grace, pacemaker = GraceFiles(work, _SEED), PacemakerFiles(work)
    potential: Path | None
    if grace.output.is_dir():
        export_s, potential = (0.0, grace.potential) if finished else _export(grace)
        cpu_s += export_s
    elif finished:
        potential = pacemaker.output_potential
    else:
        potential = _stopped(pacemaker, record, root / "newest.yaml")
    return Fit(name if finished else f"{name}, stopped", cpu_s, potential), dataset, record


def _export(files: GraceFiles) -> tuple[float, Path | None]:
    """Export the best iteration of a stopped fit by gracemaker; return the CPU time (s) too."""
    if not files.checkpoint(files.BEST)[0].is_file():
        return 0.0, None
    cpu_s, code = _run(
        [str(find_program("gracemaker")), "-rs", files.BEST, "-s", "-sf", files.input_yaml.name],
        files.directory,
        trainer_environment() | {"TF_USE_LEGACY_KERAS": "1"},
        [],
        lambda _: None,
    )
    return cpu_s, files.exported_again if code == 0 else None


def _run_ours(
    root: Path, one: BenchmarkSet, settings: Sequence[str], limit_s: float | None
) -> tuple[float, bool]:
    """Return the CPU time (s), and whether the run finished."""
    database = one.database if "://" in one.database else str(Path(one.database).absolute())
    subprocess.run(
        [PROGRAM, "-q", "init", database, "--family", "quality"],
        cwd=root,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    keys = {"dataset.split_key": one.split_key, "database.select": one.select}
    chosen = (f"{key}={value}" for key, value in keys.items() if value is not None)
    settings = (*chosen, *settings)
    options = [part for setting in settings for part in ("--set", setting)]
    command = [PROGRAM, "-q", *options, "run", "-g", "1"]
    limits = [] if limit_s is None else [limit_s]
    cpu_s, code = _run(command, root, dict(os.environ), limits, lambda _: None)
    if code != 0 and (limit_s is None or cpu_s < limit_s):
        text = (root / "console.log").read_text(encoding="utf-8")
        raise SystemExit(f"mlip-job run ended with {code}: {text[-2000:]}")
    return cpu_s, code == 0


def _stopped(files: PacemakerFiles, record: DatasetRecord, copy: Path) -> Path | None:
    """Return the potential of a stopped run."""
    newest = _newest(files, record.elements, copy)
    if newest is None and files.linear_start.is_file():
        return files.linear_start
    return newest


def _run_upstream(
    directory: Path,
    name: str,
    dataset: DatasetFiles,
    record: DatasetRecord,
    ours_s: float,
    factors: Sequence[float],
) -> Iterator[Fit]:
    """Yield pacemaker's potential at each of the times, or at its end."""
    directory.mkdir()
    for frame in record.frames.train:
        shutil.copy(dataset.directory / frame, directory)
    files = PacemakerFiles(directory)
    content = upstream_input(name, record.elements, record.frames.train, record.reference_energies)
    files.input_yaml.write_text(dump_input(content), encoding="utf-8")
    found: list[Path | None] = []
    cpu_s, code = _run(
        [str(find_program("pacemaker")), "--no-predict", files.input_yaml.name],
        directory,
        trainer_environment(),
        [factor * ours_s for factor in factors],
        lambda number: found.append(
            _newest(files, record.elements, directory / f"newest-{number}.yaml")
        ),
    )
    for factor, potential in zip(factors, found, strict=False):
        yield Fit(f"{name}, {factor:g} × the time", factor * ours_s, potential)
    if len(found) < len(factors):
        there = files.output_potential if files.output_potential.is_file() else None
        word = "to its end" if code == 0 else f"failed ({code})"
        yield Fit(f"{name}, {word}", cpu_s, there)


def _run(
    command: Sequence[str],
    directory: Path,
    environment: dict[str, str],
    limits_s: Sequence[float],
    at_limit: Callable[[int], object],
) -> tuple[float, int]:
    """Run a program, stop it at the last limit; return the CPU time (s) and the exit code.

    Parameters
    ----------
    limits_s
        CPU times of the program and its children, ascending; empty for no limit.
    at_limit
        Called with the number of each limit that is reached, before the program is stopped.
    """
    cpu_s, number = 0.0, 0
    with (
        (directory / "console.log").open("wb") as log,
        subprocess.Popen(
            command, cwd=directory, env=environment, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL,
        ) as process,
    ):  # fmt: skip
        while process.poll() is None:
            cpu_s = max(cpu_s, _cpu_seconds(process.pid))
            while number < len(limits_s) and cpu_s >= limits_s[number]:
                at_limit(number)
                number += 1
            if limits_s and number == len(limits_s):
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(_POLL_S)
    return cpu_s, process.returncode


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its children."""
    seconds = 0.0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            try:
                seconds += sum(one.cpu_times()[:4])  # user, system, and finished children
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return seconds


def _newest(files: PacemakerFiles, elements: Sequence[str], copy: Path) -> Path | None:
    """Return the complete potential of the newest iteration."""
    for _ in range(20):  # it may be incomplete while pacemaker writes it
        rows = read_table(files.table("metrics")).rows
        if rows and rows[-1].iter_num:
            source = files.directory / f"interim_potential_{rows[-1].cycle_step or 0}.yaml"
            if copy_potential(source, elements, rows[-1].nfuncs, copy) is not None:
                return copy
        time.sleep(0.1)
    return None


# -- figures ---------------------------------------------------------------------------------------


def _row(
    fit: Fit, errors: SetEvaluation | None, dataset: DatasetFiles, record: DatasetRecord
) -> tuple[str, ...]:
    cost = (fit.name, f"{fit.cpu_s:.0f}")
    if fit.potential is None or errors is None:
        return (*cost, "no potential yet", *[""] * (len(_COLUMNS) - 3))
    speed = measure_speed(
        Potential(_artefact(fit.potential)),
        read_blocks(dataset.xyz("test")),
        structures=record.counts.test,
        atoms=record.atoms.test,
    )
    return (
        *cost,
        str(_functions(fit.potential)),
        *(
            "" if found is None else f"{found:.{digits}f}"
            for found, digits in zip(_figures(errors), (2, 2, 1, 1, 3, 3), strict=True)
        ),
        f"{speed.evaluator_us_per_atom:.0f}",
    )


def _ratios(name: str, ours: SetEvaluation | None, other: SetEvaluation | None) -> tuple[str, ...]:
    pairs = zip(_figures(ours), _figures(other), strict=True)
    return (name, "", "", *("" if not a or not b else f"{a / b:.2f}" for a, b in pairs), "")


def _figures(errors: SetEvaluation | None) -> tuple[float | None, ...]:
    """Return RMSE and MAE of energy, forces and stress."""
    if errors is None:
        return (None,) * 6
    return tuple(figure for both in zip(errors.rmse, errors.mae, strict=True) for figure in both)


def _artefact(potential: Path) -> Path:
    """Return the file that LAMMPS reads."""
    if is_grace(potential):
        return potential
    yace = potential.with_suffix(".yace")
    convert_to_yace(potential, yace)
    return yace


def _functions(potential: Path) -> int:
    if is_grace(potential):
        return potential_file.count_functions(potential_file.read_potential(potential))
    return count_functions(read_potential(potential))


def _errors(fit: Fit, dataset: DatasetFiles, record: DatasetRecord) -> SetEvaluation | None:
    if fit.potential is None:
        return None
    errors = SetErrors()
    models = Models(_artefact(fit.potential), record.reference_energies)
    with measuring(models, atoms=record.atoms.test, cores=usable_cores()) as measure:
        for batch in measure(map(Task, read_blocks(dataset.xyz("test")))):
            errors.add_all(batch.measured)
    return errors.result()
