"""States of a running fit are copied completely or not at all; the best potential is kept."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.errors import TrainingError
from mlip_job.training.pacemaker import TABLES, PacemakerFiles
from mlip_job.training.pacemaker.callbacks.mlip_job_callbacks import (
    keep_best,
    last_gain,
    numbered_losses,
)
from mlip_job.training.pacemaker.input import Segment
from mlip_job.training.pacemaker.log import LogState, OptimiserResult
from mlip_job.training.pacemaker.outcome import better_than_last
from mlip_job.training.pacemaker.potential_file import (
    POTENTIAL,
    count_functions,
    read_potential,
    write_potential,
)
from mlip_job.training.pacemaker.snapshot import (
    configure_callback,
    make_final,
    read_best,
    take_snapshot,
)
from mlip_job.training.pacemaker.tables import Offset, read_table
from mlip_job.training.trainer import FitPosition, Snapshot


def _at(step: int, iteration: int, *, done: bool = False, finished: bool = False) -> FitPosition:
    return FitPosition(
        ladder_step=step, iteration=iteration, step_done=done, last_step=False, finished=finished
    )


def test_positions_sort_from_beginning_to_end() -> None:
    """The end of a step follows all its iterations: it may have stopped early."""
    expected = [
        _at(0, 1),
        _at(0, 9),
        _at(0, 7, done=True),
        _at(1, 2),
        _at(1, 2, done=True),
        _at(0, 8, done=True, finished=True),
    ]
    shuffled = random.Random(3).sample(expected, len(expected))
    assert sorted(shuffled, key=FitPosition.order) == expected


def test_positions_as_text() -> None:
    """Steps of a ladder count from 1, unlike pacemaker's; the first one is not named."""
    assert str(_at(0, 12)) == "iteration 12"
    assert str(_at(3, 12, done=True)) == "ladder step 4, iteration 12"
    assert str(_at(3, 12, done=True, finished=True)) == "the end of the fit"


RUN = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder"
SINGLE = Segment({"potential": {}, "fit": {"maxiter": 8}})
LADDER = Segment({"potential": {}, "fit": {"maxiter": 8, "ladder_step": [5]}})
HALF = Segment({"potential": "start.yaml", "fit": {"maxiter": 8}}, Offset(1, 3), partial=True)


def _potential(step: int) -> bytes:
    return (RUN / f"interim_potential_ladder_step_{step}.yaml").read_bytes()


def _fit_until(
    directory: Path, step: int, iteration: int, *, steps_done: int = 0
) -> PacemakerFiles:
    files = PacemakerFiles(directory)
    header, *rows = (RUN / "metrics.txt").read_text().splitlines(keepends=True)
    upto = [row for row in rows if [int(n) for n in row.split()[:3]] <= [step, 0, iteration]]
    files.table("metrics").write_text(header + "".join(upto))
    files.interim_potential.write_bytes(_potential(step))
    for done in range(steps_done):
        files.ladder_potential(done).write_bytes(_potential(done))
    (files.directory / "target_potential.yaml").write_bytes(_potential(2))
    _write_order(files.table("metrics"), files.interim_potential)
    return files


def _write_order(*paths: Path) -> None:
    for number, path in enumerate(paths):
        os.utime(path, ns=(10**18, 10**18 + number * 10**6))


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Snapshot | None]:
    def take(files: PacemakerFiles, segment: Segment) -> Snapshot | None:
        target = Path(tempfile.mkdtemp(dir=tmp_path))
        return take_snapshot(files, segment, ("Cu",), target)

    return take


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("segment", "row", "steps_done", "position", "iterations"),
    [
        (SINGLE, (0, 5), 0, {"ladder_step": 0, "iteration": 5, "last_step": True}, 5),
        (LADDER, (1, 4), 1, {"ladder_step": 1, "iteration": 4}, 12),
        (LADDER, (2, 2), 2, {"ladder_step": 2, "iteration": 2, "last_step": True}, 18),
        (LADDER, (0, 8), 1, {"ladder_step": 0, "iteration": 8, "step_done": True}, 8),
        # While the graph of the next step is built.
        (LADDER, (1, 0), 1, {"ladder_step": 0, "iteration": 8, "step_done": True}, 8),
    ],
)
def test_a_fit_is_copied_at_its_last_iteration(
    work: Path,
    take: Any,
    segment: Segment,
    row: tuple[int, int],
    steps_done: int,
    position: dict[str, Any],
    iterations: int,
) -> None:
    """The potential, and the rows that led to it."""
    files = _fit_until(work, *row, steps_done=steps_done)
    if "step_done" in position:
        files.interim_potential.write_bytes(_potential(0))
    snapshot = take(files, segment)
    unset = {"step_done": False, "last_step": False}
    assert snapshot.position == FitPosition(**unset | position)
    assert snapshot.iterations == iterations
    last = _rows(snapshot)[-1]
    assert (last.ladder_step, last.iter_num) == (position["ladder_step"], position["iteration"])
    functions = 5 * (position["ladder_step"] + 1)
    assert count_functions(read_potential(snapshot.files[POTENTIAL])) == functions


def test_a_row_that_is_newer_than_the_potential_is_left_out(work: Path, take: Any) -> None:
    """Pacemaker writes the row first: the potential may still be that of the iteration before."""
    files = _fit_until(work, 0, 5)
    _write_order(files.interim_potential, files.table("metrics"))
    snapshot = take(files, SINGLE)
    assert snapshot.position.iteration == 4
    assert snapshot.iterations == 4
    assert read_table(snapshot.files["metrics/metrics.txt"]).rows[-1].iter_num == 4


@pytest.mark.parametrize("newer", ["row", "potential"])
def test_a_fit_can_not_resume_from_its_beginning(work: Path, take: Any, newer: str) -> None:
    """Neither before the first iteration nor while it may be incomplete."""
    assert take(PacemakerFiles(work), SINGLE) is None
    files = _fit_until(work, 0, 0)
    assert take(files, SINGLE) is None
    files = _fit_until(work, 0, 1)
    if newer == "row":
        _write_order(files.interim_potential, files.table("metrics"))
        assert take(files, SINGLE) is None
    else:
        assert take(files, SINGLE).position.iteration == 1


def test_several_cycles_have_no_checkpoint(work: Path, take: Any) -> None:
    """Pacemaker uses the best of them, which a resumed fit could not know."""
    cycles = Segment({"potential": {}, "fit": {"maxiter": 8, "fit_cycles": 2}})
    assert take(_fit_until(work, 0, 5), cycles) is None


def test_a_segment_continues_the_numbers_of_the_fit(work: Path, take: Any) -> None:
    """Started in iteration 3 of step 1, its iteration 2 is the fifth; earlier rows come first."""
    files = _fit_until(work, 0, 2)
    files.history.mkdir()
    header, *rows = (RUN / "metrics.txt").read_text().splitlines(keepends=True)
    (files.history / "metrics.txt").write_text(header + "".join(rows[:13]))
    snapshot = take(files, HALF)
    assert snapshot.position == FitPosition(
        ladder_step=1, iteration=5, step_done=False, last_step=False
    )
    places = [(row.ladder_step, row.iter_num) for row in _rows(snapshot)]
    assert places == [(0, n) for n in range(9)] + [(1, n) for n in range(6)]
    assert snapshot.iterations == 13


def _rows(snapshot: Snapshot) -> Any:
    return read_table(snapshot.files["metrics/metrics.txt"]).rows


@pytest.mark.parametrize("touched", ["metrics", "potential"])
def test_files_that_change_during_the_copy_are_ignored(
    work: Path, take: Any, monkeypatch: pytest.MonkeyPatch, touched: str
) -> None:
    """Pacemaker does not wait."""
    files = _fit_until(work, 0, 5)
    copyfile = shutil.copyfile

    def copy_slowly(source: Path, target: Path) -> None:
        copyfile(source, target)
        path = files.table("metrics") if touched == "metrics" else files.interim_potential
        path.write_bytes(path.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", copy_slowly)
    assert take(files, SINGLE) is None


def test_a_potential_of_another_size_is_ignored(work: Path, take: Any) -> None:
    """It is of another step than the row, or was truncated between two functions."""
    files = _fit_until(work, 0, 5)
    files.interim_potential.write_bytes(_potential(1))
    _write_order(files.table("metrics"), files.interim_potential)
    assert take(files, SINGLE) is None
    files.interim_potential.write_bytes(_potential(0).rpartition(b"      - {")[0])
    assert take(files, SINGLE) is None


def test_a_diverged_fit_is_not_saved(work: Path, take: Any) -> None:
    files = _fit_until(work, 0, 5)
    lines = files.table("metrics").read_text().splitlines()
    fields = lines[-1].split()
    fields[3] = "nan"
    files.table("metrics").write_text("\n".join([*lines[:-1], " ".join(fields)]) + "\n")
    _write_order(files.table("metrics"), files.interim_potential)
    assert take(files, SINGLE) is None


_WHOLE = _potential(0)


def _snapshot_of(potential: bytes, metrics: bytes | None = None) -> Snapshot | None:
    """Take a snapshot of a damaged work directory; check that copied files are complete."""
    with tempfile.TemporaryDirectory() as directory:
        (work := Path(directory, "work")).mkdir()
        (target := Path(directory, "target")).mkdir()
        files = _fit_until(work, 0, 5)
        files.interim_potential.write_bytes(potential)
        if metrics is not None:
            files.table("metrics").write_bytes(metrics)
        _write_order(files.table("metrics"), files.interim_potential)
        snapshot = take_snapshot(files, SINGLE, ("Cu",), target)
        if snapshot is not None:
            content = read_potential(snapshot.files[POTENTIAL])
            assert count_functions(content) == 5
            assert all(block["speciesblock"] == "Cu" for block in content["species"])
            rows = _rows(snapshot)
            assert len(rows) <= snapshot.position.iteration + 1
        return snapshot


@given(st.integers(0, len(_WHOLE)))
def test_a_truncated_potential_is_complete_or_ignored(length: int) -> None:
    """A kill, or a copy during a write, may leave any part of it."""
    snapshot = _snapshot_of(_WHOLE[:length])
    assert (snapshot is not None) == (length >= len(_WHOLE.rstrip()))


@pytest.mark.parametrize("value", [None, 3, "text", [1], {"a": 1}, [[]], [None], ""], ids=repr)
@pytest.mark.parametrize("key", ["species", "speciesblock", "nbody"])
def test_yaml_that_is_no_potential_is_ignored(key: str, value: object) -> None:
    content = yaml.safe_load(_WHOLE)
    part = content if key in content else content["species"][0]
    part[key] = value
    assert _snapshot_of(yaml.safe_dump(content).encode()) is None


_METRICS = b"".join((RUN / "metrics.txt").read_bytes().splitlines(keepends=True)[:7])


@given(st.integers(0, len(_METRICS)), st.binary(max_size=12))
def test_a_damaged_table_is_no_crash(length: int, garbage: bytes) -> None:
    """Truncated anywhere, with garbage in place of the rest."""
    _snapshot_of(_WHOLE, _METRICS[:length] + garbage)


def test_the_best_potential_so_far_is_copied_too(work: Path, take: Any) -> None:
    """With its record, which names it; the next attempt may find no better one."""
    files = _fit_until(work, 0, 5)
    row = {"iter_num": "4", "loss": "1.0"}
    kept = {"potential": "best_potential_0_0_4.yaml", "ladder_step": 0, "cycle": 0}
    kept |= {"iteration": 4, "loss": 1.0, "train": row, "validation": row}
    files.best.write_text(json.dumps(kept))
    (work / "best_potential_0_0_4.yaml").write_bytes(_potential(0))
    snapshot = take(files, SINGLE)
    assert {"best.json", "best_potential_0_0_4.yaml"} <= set(snapshot.files)
    assert snapshot.files["best_potential_0_0_4.yaml"].read_bytes() == _potential(0)
    assert json.loads(snapshot.files["best.json"].read_text()) == kept


COLUMNS = (
    "ladder_step", "cycle_step", "iter_num", "loss", "e_loss_contrib", "f_loss_contrib",
    "rmse_epa", "rmse_f_comp",
)  # fmt: skip


class _Potential:
    """A potential as passed to callbacks by pacemaker."""

    def __init__(self, text: str) -> None:
        self._text = text

    def save(self, name: str) -> None:
        with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123 - as pacemaker does
            file.write(self._text)


@dataclass
class _Fit:
    """Acts like pacemaker around a callback, with the current directory as work directory."""

    files: PacemakerFiles
    display_step: int = 2

    def start(self, segment: Segment, patience: int = 1000) -> None:
        for name in TABLES:
            self.files.table(name).write_text(" ".join(COLUMNS) + "\n")
        configure_callback(self.files, segment, patience)

    def measure(self, table: str, place: Sequence[int], loss: float) -> None:
        # Regularisation is 1: only without it are the losses conclusive.
        figures = (*place, loss + 1, loss, 0.0, loss, loss)
        with self.files.table(table).open("a") as file:
            file.write(" ".join(map(str, figures)) + "\n")

    def run(self, losses: Sequence[float], step: int = 0, restart_at: int | None = None) -> int:
        began = 0
        for iteration, loss in enumerate(losses):
            if iteration == restart_at:
                began = iteration - 1
                self.measure("metrics", (step, 0, 0), losses[began])
                self.measure("test_metrics", (step, 0, 0), losses[began])
            number = iteration - began
            self.measure("metrics", (step, 0, number), loss / 2)
            if number % self.display_step == 0:
                self.measure("test_metrics", (step, 0, number), loss)
            if iteration == 0:
                continue
            try:
                keep_best(
                    basis_config=_Potential(f"iteration {iteration} of step {step}"),
                    current_fit_iteration=iteration - 1,
                    current_fit_cycle=0,
                    current_ladder_step=step,
                )
            except StopIteration:
                return iteration
        return len(losses) - 1


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Fit:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.yaml").write_text("the start")
    (tmp_path / "current_extended_potential.yaml").write_text("the step's start")
    return _Fit(PacemakerFiles(tmp_path))


FROM_FILE = Segment({"potential": "start.yaml", "fit": {}})
FROM_NOTHING = Segment({"potential": {"functions": {}}, "fit": {}})


def _best(files: PacemakerFiles) -> tuple[int, str]:
    kept = read_best(files.best)
    assert kept is not None
    assert len(list(files.directory.glob("best_potential_*"))) == 1
    return kept.iteration, kept.potential.read_text()


@pytest.mark.parametrize(
    ("start", "losses", "best"),
    [
        (FROM_FILE, [9, 8, 7, 1, 4, 3, 5, 6, 8], (4, "iteration 4 of step 0")),
        (FROM_FILE, [1, 2, 3, 2, 2], (0, "the start")),
        (FROM_NOTHING, [1, 2, 3, 2, 2], (4, "iteration 4 of step 0")),
    ],
    ids=["every second one is measured", "the start may be the best", "but not if it is zero"],
)
def test_the_smallest_loss_is_kept(
    fit: _Fit, start: Segment, losses: list[float], best: tuple[int, str]
) -> None:
    """Neither the training loss nor the last iteration decides."""
    fit.start(start)
    fit.run(losses)
    assert _best(fit.files) == best


def test_each_step_of_a_ladder_has_its_own_best_potential(fit: _Fit) -> None:
    """The previous step lacks functions, however small its loss."""
    fit.start(FROM_NOTHING)
    fit.run([9, 8, 1, 1, 2])
    fit.run([5, 5, 6, 6, 7], step=1)
    assert _best(fit.files) == (0, "the step's start")
    fit.run([5, 5, 6, 6, 4], step=2)
    assert _best(fit.files) == (4, "iteration 4 of step 2")


def test_early_stopping_after_no_improvement(fit: _Fit, caplog: pytest.LogCaptureFixture) -> None:
    """The patience counts from the best iteration; the message is pacemaker's."""
    fit.start(FROM_FILE, 4)
    with caplog.at_level("INFO"):
        assert fit.run([9, 8, 7, 6, 5, 6, 6, 6, 6, 6, 6, 6]) == 8
    assert "EARLY STOPPING: " in caplog.text
    assert "since iteration 4" in caplog.text


def test_the_last_gain_is_the_last_smaller_loss() -> None:
    losses = [(0, 1.0), (10, 0.5), (20, 0.499), (30, 0.6)]
    assert last_gain(losses) == 20
    assert last_gain([(0, float("nan")), (10, 3.0), (20, float("nan"))]) == 10


def test_a_resumed_fit_continues_unchanged(fit: _Fit) -> None:
    """The best potential, its iteration and the patience survive."""
    fit.start(FROM_FILE, 6)
    fit.run([9, 8, 3, 4, 5])
    history = fit.files.history
    history.mkdir()
    for name in ("metrics", "test_metrics"):
        fit.files.table(name).rename(history / f"{name}.txt")
    fit.start(
        Segment({"potential": "start.yaml", "fit": {}}, Offset(0, 4)),
        6,
    )
    assert fit.run([5, 5, 6, 6, 7, 7, 8]) == 4
    assert _best(fit.files) == (2, "iteration 2 of step 0")


def test_iterations_count_on_where_pacemaker_starts_a_step_again(fit: _Fit) -> None:
    """After running out of GPU memory it counts from 0 again."""
    fit.start(FROM_FILE)
    fit.run([9, 8, 7, 6, 5, 4, 3], restart_at=5)
    assert _best(fit.files) == (6, "iteration 6 of step 0")
    rows = [{"iter_num": n, "e_loss_contrib": "1", "f_loss_contrib": "0"} for n in "02402"]
    assert [n for n, _ in numbered_losses(rows, 10)] == [10, 12, 14, 14, 16]


def test_a_truncated_line_is_skipped(fit: _Fit) -> None:
    fit.start(FROM_FILE)
    fit.run([9, 8, 7])
    with fit.files.table("test_metrics").open("a") as file:
        file.write("0 0")
    fit.measure("metrics", (0, 0, 3), 1.0)
    keep_best(
        basis_config=_Potential("3"),
        current_fit_iteration=2,
        current_fit_cycle=0,
        current_ladder_step=0,
    )
    assert _best(fit.files)[0] == 2


# -- selection of the result -----------------------------------------------------------------------


def _chosen(fit: _Fit, last: float, status: int = 1) -> Any:
    for name in ("cycle_metrics", "test_cycle_metrics"):
        fit.measure(name, (0, 0, 0), last)
    state = LogState(optimiser_results=[OptimiserResult(status == 0, status, "")])
    tables = {name: read_table(fit.files.table(name)) for name in TABLES}
    return better_than_last(read_best(fit.files.best), state, tables)


@pytest.mark.parametrize(
    ("last", "status", "chosen"),
    [(5.0, 1, True), (2.0, 1, False), (5.0, 2, True), (2.0, 2, True), (5.0, 99, True)],
)
def test_the_last_potential_competes(fit: _Fit, last: float, status: int, chosen: bool) -> None:
    """Unless the optimiser gave up, so that the last measurement is of another one."""
    fit.start(FROM_FILE)
    fit.run([9, 8, 3, 4, 5, 5])
    best = _chosen(fit, last, status)
    assert (best is not None) == chosen
    if best is not None:
        assert (best.iteration, best.loss) == (2, 3.0)
        assert best.last_loss == (None if status == 2 else last)


def test_the_last_potential_needs_no_choice_if_it_is_the_best(fit: _Fit) -> None:
    """Or if the best one is of an earlier step of the ladder."""
    fit.start(FROM_FILE)
    fit.run([9, 8, 7, 6, 5])
    assert _chosen(fit, 5.0) is None
    assert _chosen(fit, 5.0, status=2) is None
    fit.run([9, 8, 3, 6, 5])
    fit.measure("metrics", (1, 0, 0), 5.0)
    assert _chosen(fit, 5.0) is None


def _write(path: Path, coefficient: float, **core: Any) -> None:
    block = {"speciesblock": "Cu", "r_in": 0, "delta_in": 0, "inner_cutoff_type": "distance"}
    functions = [{"type": "B", "c": [coefficient]}]
    content = {"metadata": {"kept": "x"}, "species": [{**block, **core, "nbody": functions}]}
    write_potential(content, path)


def test_it_gets_the_cores_of_the_last_one(fit: _Fit) -> None:
    """Pacemaker adds them to its final potential only."""
    fit.start(FROM_FILE)
    fit.run([9, 8, 3, 4, 5])
    kept = read_best(fit.files.best)
    assert kept is not None
    _write(kept.potential, 1.5)
    _write(fit.files.output_potential, 2.5, r_in=2.1, delta_in=0.1, inner_cutoff_type="zbl")
    make_final(kept, fit.files.output_potential)
    (block,) = read_potential(fit.files.output_potential)["species"]
    assert block["nbody"][0]["c"] == [1.5]
    assert (block["r_in"], block["delta_in"], block["inner_cutoff_type"]) == (2.1, 0.1, "zbl")
    metadata = read_potential(fit.files.output_potential)["metadata"]
    assert metadata == {"kept": "x", "_loss": 2.5}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"potential": 3}'])
def test_a_damaged_record_is_an_error(tmp_path: Path, text: str) -> None:
    """It would decide which potential is published."""
    with suppress(FileNotFoundError):
        assert read_best(tmp_path / "best.json") is None
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(TrainingError, match=r"best\.json can't be read"):
        read_best(tmp_path / "best.json")


def test_a_record_names_no_file_elsewhere(fit: _Fit) -> None:
    fit.start(FROM_FILE)
    fit.run([9, 8, 3])
    content = json.loads(fit.files.best.read_text())
    content["potential"] = "../../elsewhere/potential.yaml"
    fit.files.best.write_text(json.dumps(content))
    kept = read_best(fit.files.best)
    assert kept is not None
    assert kept.potential == fit.files.directory / "potential.yaml"
