"""Who measures the test set changes neither the potential nor what is said of the test set."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.config import JobConfig
from mlip_job.naming import WorkFiles
from mlip_job.pipeline import run_generation
from mlip_job.registry import Registry
from mlip_job.report import TrainingReport
from mlip_job.store.open import open_store
from mlip_job.training.signals import StopRequest
from mlip_job.training.tables import read_table
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlip_job.training.process import Progress
    from mlip_job.training.run_summary import CurvePoint

pytestmark = pytest.mark.pacemaker

# Weights are in the data frames then: without a test set they are the same to the last bit.
WEIGHTING = {"by_group": {"strained": {"energy": 3, "forces": 2}}}
TRAINING = {
    "functions_per_element": 8,
    "linear_start": False,
    "ladder_step": 4,
    "ladder_type": "power_order",
    "max_iter": 60,
    "display_step": 1,
    "test_fraction": 0.25,
    "validation_fraction": 0,
    "force_weight": 4,
    "stress_weight": 0,
    "weighting": WEIGHTING,
}
TINY = {
    "linear_start": False,
    "evaluator": "pyace",
    "functions_per_element": 3,
    "ladder_step": None,
    "max_iter": 80,
    "display_step": 1,
    "validation_fraction": 0,
}


class _Observer:
    """Keeps messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.tested = False

    def message(self, text: str) -> None:
        self.messages.append(text)

    def trainer_line(self, line: str) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        self.tested = self.tested or progress.test_row is not None


@contextmanager
def _holding(directory: Path, wait: Callable[[WorkFiles], bool]) -> Iterator[None]:
    """Let pacemaker stand still while `wait` is true of its files.

    The few structures of a test are fitted faster than a process beside can be sure to look, on a
    machine with other work. Now and then pacemaker is let go for a moment: what it was writing
    when it was stopped has to become whole.
    """
    over = threading.Event()

    def hold() -> None:
        while not over.wait(0.02):
            for process in _pacemakers(directory):
                files = WorkFiles(Path(f"/proc/{process}/cwd").resolve())
                until = time.monotonic() + 2
                while wait(files) and time.monotonic() < until and not over.is_set():
                    _send(signal.SIGSTOP, process)
                    time.sleep(0.02)
                _send(signal.SIGCONT, process)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _send(number: signal.Signals, process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _pacemakers(directory: Path) -> list[int]:
    """Return the processes that work somewhere in a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(directory):
                found.append(int(process.name))
    return found


def _rows(files: WorkFiles, table: str) -> set[tuple[int, int]]:
    try:
        rows = read_table(files.table(table)).rows
    except FileNotFoundError:
        return set()
    return {(row.ladder_step or 0, row.iter_num or 0) for row in rows}


def _is_behind(files: WorkFiles) -> bool:
    """Tell whether the step at hand has begun, or the first one ended, without its test set."""
    fitted, tested = _rows(files, "metrics"), _rows(files, "test_metrics")
    step, iteration = max(fitted, default=(0, 0))
    if step == 0 and files.ladder_potential(0).is_file():
        return (step, iteration) not in tested
    return iteration > 0 and step not in {of_step for of_step, _ in tested}


def _run(directory: Path, training: dict[str, Any], observer: _Observer) -> TrainingReport:
    database = directory / "structures.db"
    if not database.exists():
        write_database(database, rattled(8), config_type="bulk")
        write_database(database, rattled(8, seed=1), config_type="strained")
    name = f"{training['test_evaluation']}-{training.get('evaluator', 'tensorpot')}"
    config = JobConfig.model_validate(
        {
            "family": "cu",
            "database": {"url": str(database)},
            "training": training,
            "evaluation": {"active_set": False, "dynamics_steps": 10},
            "storage": {"url": str(directory / f"store-{name}")},
            "work_dir": str(directory / f"work-{name}"),
        }
    )
    store = open_store(config.storage)
    with StopRequest() as stop:
        outcome = run_generation(config, 1, store=store, observer=observer, stop=stop)
    return TrainingReport.from_json(Registry(store, "cu").read(outcome.manifest, "report.json"))


def _place(point: CurvePoint) -> tuple[int, int]:
    return point.ladder_step, point.iteration


def test_beside_the_fit_as_by_pacemaker(tmp_path: Path) -> None:
    """The same fit, bit by bit; the same curve, where it was measured; two graphs fewer."""
    by_pacemaker = _run(tmp_path, TRAINING | {"test_evaluation": "pacemaker"}, _Observer())
    observer = _Observer()
    with _holding(tmp_path, _is_behind):
        beside = _run(tmp_path, TRAINING | {"test_evaluation": "beside"}, observer)

    assert beside.fit.train_curve == by_pacemaker.fit.train_curve
    assert by_pacemaker.fit.timings_s["building_test_graph"] > 0
    assert "building_test_graph" not in beside.fit.timings_s
    assert set(beside.fit.structures) == {"train"}

    theirs = {_place(point): point for point in by_pacemaker.fit.test_curve}
    ours = {_place(point): point for point in beside.fit.test_curve}
    assert {step for step, _ in ours} == {0, 1}
    assert (0, 60) in ours  # the end of a step is measured as well
    assert observer.tested
    for name in ("loss", "rmse_energy_mev_per_atom", "rmse_force_mev_per_angstrom"):
        expected = {place: getattr(theirs[place], name) for place in ours}
        assert {place: getattr(point, name) for place, point in ours.items()} == pytest.approx(
            expected, rel=1e-5
        )

    for report in (by_pacemaker, beside):
        assert report.evaluation is not None
    assert by_pacemaker.evaluation.test == beside.evaluation.test  # type: ignore[union-attr]
    assert [a.side for a in by_pacemaker.evaluation.agreement] == ["train", "test"]  # type: ignore[union-attr]
    assert [a.side for a in beside.evaluation.agreement] == ["train"]  # type: ignore[union-attr]
    assert any("training.test_evaluation: beside" in text for text in beside.warnings)
    assert not any("test_evaluation: pacemaker" in text for text in by_pacemaker.warnings)


def test_at_the_end_only(tmp_path: Path) -> None:
    """No curve, but the errors of the published file."""
    observer = _Observer()
    report = _run(tmp_path, TINY | {"test_evaluation": "end"}, observer)
    assert report.fit.test_curve == ()
    assert not observer.tested
    assert report.evaluation is not None
    assert report.evaluation.test.structures == 2
    assert not any("validation part" in text for text in report.warnings)


def test_a_process_that_dies_beside_the_fit_is_a_warning(tmp_path: Path) -> None:
    """The fit goes on, and is published."""

    def kill(files: WorkFiles) -> bool:
        children = multiprocessing.active_children() if _rows(files, "metrics") else []
        for child in children:
            child.kill()
        return bool(children)

    observer = _Observer()
    with _holding(tmp_path, kill):
        report = _run(tmp_path, TINY | {"test_evaluation": "beside"}, observer)
    assert report.fit.status == "succeeded"
    warning = "warning: the test set was not measured to the end of the fit: ended by SIGKILL"
    assert warning in observer.messages
    assert multiprocessing.active_children() == []


def test_what_it_fails_with_is_said(tmp_path: Path) -> None:
    """In one line; the process reads the table's columns, which are gone here."""

    def remove(files: WorkFiles) -> bool:
        if not max((iteration for _, iteration in _rows(files, "metrics")), default=0):
            return False
        files.table("test_metrics").unlink(missing_ok=True)
        return bool(multiprocessing.active_children())

    observer = _Observer()
    with _holding(tmp_path, remove):
        report = _run(tmp_path, TINY | {"test_evaluation": "beside"}, observer)
    assert report.fit.status == "succeeded"
    (warning,) = (text for text in observer.messages if text.startswith("warning: the test set"))
    assert "FileNotFoundError" in warning
