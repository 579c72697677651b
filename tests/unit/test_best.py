"""The best potential is kept while pacemaker runs, ends the fit in time, and becomes the result."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.errors import TrainingError
from mlip_job.naming import WorkFiles
from mlip_job.training.pacemaker.best import (
    EarlyStopping,
    copy_kept,
    prepare,
    read_kept,
    take,
)
from mlip_job.training.pacemaker.callbacks.mlip_job_callbacks import (
    keep_best,
    last_gain,
    numbered_losses,
)
from mlip_job.training.pacemaker.input import Leg
from mlip_job.training.pacemaker.log import LogState, OptimiserResult
from mlip_job.training.pacemaker.potential_file import read_potential, write_potential
from mlip_job.training.pacemaker.results import better_than_last
from mlip_job.training.pacemaker.tables import Offset, read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS = (
    "ladder_step", "cycle_step", "iter_num", "loss", "e_loss_contrib", "f_loss_contrib",
    "rmse_epa", "rmse_f_comp",
)  # fmt: skip


class _Potential:
    """A potential as pacemaker hands it to a callback."""

    def __init__(self, text: str) -> None:
        self._text = text

    def save(self, name: str) -> None:
        with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123 - as pacemaker does
            file.write(self._text)


@dataclass
class _Fit:
    """Does what pacemaker does around a callback; the directory at hand is its work directory."""

    files: WorkFiles
    display_step: int = 2

    def start(self, leg: Leg, stopping: EarlyStopping) -> None:
        for name in WorkFiles.TABLES:
            self.files.table(name).write_text(" ".join(COLUMNS) + "\n")
        prepare(self.files, leg, stopping)

    def measure(self, table: str, place: Sequence[int], loss: float) -> None:
        # Regularisation is 1: only without it do the losses tell anything.
        figures = (*place, loss + 1, loss, 0.0, loss, loss)
        with self.files.table(table).open("a") as file:
            file.write(" ".join(map(str, figures)) + "\n")

    def run(self, losses: Sequence[float], step: int = 0, restart_at: int | None = None) -> int:
        """Run through validation losses, the first of them of the start; return the last one's."""
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
    """Return a fit in the directory at hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.yaml").write_text("the start")
    (tmp_path / "current_extended_potential.yaml").write_text("the step's start")
    return _Fit(WorkFiles(tmp_path))


FROM_FILE = Leg({"potential": "start.yaml", "fit": {}})
FROM_NOTHING = Leg({"potential": {"functions": {}}, "fit": {}})
NEVER = EarlyStopping(patience=1000, least_fall=0.0)


def _best(files: WorkFiles) -> tuple[int, str]:
    kept = read_kept(files.best)
    assert kept is not None
    assert len(list(files.directory.glob("best_potential_*"))) == 1
    return kept.iteration, kept.potential.read_text()


def test_the_smallest_loss_is_kept(fit: _Fit) -> None:
    """Of the iterations at which it was measured; neither the training loss nor the last counts."""
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 7, 1, 4, 3, 5, 6, 8])
    assert _best(fit.files) == (4, "iteration 4 of step 0")


def test_the_start_may_be_the_best(fit: _Fit) -> None:
    """A linear fit, or a parent: iterations can only improve on it."""
    fit.start(FROM_FILE, NEVER)
    fit.run([1, 2, 3, 2, 2])
    assert _best(fit.files) == (0, "the start")


def test_a_start_from_nothing_is_none(fit: _Fit) -> None:
    """All its coefficients are zero."""
    fit.start(FROM_NOTHING, NEVER)
    fit.run([1, 2, 3, 2, 2])
    assert _best(fit.files) == (4, "iteration 4 of step 0")


def test_each_step_of_a_ladder_has_its_own(fit: _Fit) -> None:
    """The one before lacks functions, however small its loss."""
    fit.start(FROM_NOTHING, NEVER)
    fit.run([9, 8, 1, 1, 2])
    fit.run([5, 5, 6, 6, 7], step=1)
    assert _best(fit.files) == (0, "the step's start")
    fit.run([5, 5, 6, 6, 4], step=2)
    assert _best(fit.files) == (4, "iteration 4 of step 2")


def test_it_ends_where_nothing_better_comes(fit: _Fit, caplog: pytest.LogCaptureFixture) -> None:
    """The patience counts from the best iteration; it says so as pacemaker would."""
    fit.start(FROM_FILE, EarlyStopping(patience=4, least_fall=0.0))
    with caplog.at_level("INFO"):
        assert fit.run([9, 8, 7, 6, 5, 6, 6, 6, 6, 6, 6, 6]) == 8
    assert "EARLY STOPPING: " in caplog.text
    assert "since iteration 4" in caplog.text


def test_a_slow_fall_counts_as_none() -> None:
    """Relative, and per iteration since the fall before."""
    losses = [(0, 1.0), (10, 0.5), (20, 0.499), (30, 0.498), (40, 0.3)]
    assert last_gain(losses, 0.0) == 40
    assert last_gain(losses[:-1], 0.0) == 30
    assert last_gain(losses[:-1], 1e-3) == 10
    assert last_gain(losses, 1e-3) == 40
    assert last_gain([(0, float("nan")), (10, 3.0), (20, float("nan"))], 0.0) == 10


def test_a_resumed_fit_goes_on_as_if_it_had_not_stopped(fit: _Fit) -> None:
    """The best potential, its iteration and the patience survive."""
    fit.start(FROM_FILE, EarlyStopping(patience=6, least_fall=0.0))
    fit.run([9, 8, 3, 4, 5])
    history = fit.files.history
    history.mkdir()
    for name in ("metrics", "test_metrics"):
        fit.files.table(name).rename(history / f"{name}.txt")
    fit.start(
        Leg({"potential": "start.yaml", "fit": {}}, Offset(0, 4)),
        EarlyStopping(patience=6, least_fall=0.0),
    )
    assert fit.run([5, 5, 6, 6, 7, 7, 8]) == 4
    assert _best(fit.files) == (2, "iteration 2 of step 0")


def test_iterations_count_on_where_pacemaker_starts_a_step_again(fit: _Fit) -> None:
    """Out of GPU memory it counts from 0 once more."""
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 7, 6, 5, 4, 3], restart_at=5)
    assert _best(fit.files) == (6, "iteration 6 of step 0")
    rows = [{"iter_num": n, "e_loss_contrib": "1", "f_loss_contrib": "0"} for n in "02402"]
    assert [n for n, _ in numbered_losses(rows, 10)] == [10, 12, 14, 14, 16]


def test_a_line_cut_short_does_no_harm(fit: _Fit) -> None:
    """It is left out, as everywhere."""
    fit.start(FROM_FILE, NEVER)
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


# -- what becomes the result -----------------------------------------------------------------------


def _chosen(fit: _Fit, last: float, status: int = 1) -> Any:
    for name in ("cycle_metrics", "test_cycle_metrics"):
        fit.measure(name, (0, 0, 0), last)
    state = LogState(optimiser_results=[OptimiserResult(status == 0, status, "", 9)])
    tables = {name: read_table(fit.files.table(name)) for name in WorkFiles.TABLES}
    return better_than_last(read_kept(fit.files.best), state, tables)


@pytest.mark.parametrize(
    ("last", "status", "chosen"),
    [(5.0, 1, True), (2.0, 1, False), (5.0, 2, True), (2.0, 2, True), (5.0, 99, True)],
)
def test_the_last_potential_competes(fit: _Fit, last: float, status: int, chosen: bool) -> None:
    """Unless the optimiser gave up, so that what was measured last is another one."""
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 3, 4, 5, 5])
    best = _chosen(fit, last, status)
    assert (best is not None) == chosen
    if best is not None:
        assert (best.iteration, best.loss) == (2, 3.0)
        assert best.last_loss == (None if status == 2 else last)


def test_the_last_iteration_needs_no_choice(fit: _Fit) -> None:
    """It is the best one itself."""
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 7, 6, 5])
    assert _chosen(fit, 5.0) is None
    assert _chosen(fit, 5.0, status=2) is None


def test_an_earlier_step_is_no_choice(fit: _Fit) -> None:
    """A ladder that ended in a step without iterations has its last potential."""
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 3, 6, 5])
    fit.measure("metrics", (1, 0, 0), 5.0)
    assert _chosen(fit, 5.0) is None


def _write(path: Path, coefficient: float, **core: Any) -> None:
    block = {"speciesblock": "Cu", "r_in": 0, "delta_in": 0, "inner_cutoff_type": "distance"}
    functions = [{"type": "B", "c": [coefficient]}]
    content = {"metadata": {"kept": "x"}, "species": [{**block, **core, "nbody": functions}]}
    write_potential(content, path)


def test_it_gets_the_cores_of_the_last_one(fit: _Fit) -> None:
    """Pacemaker puts them on what it ends with only."""
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 3, 4, 5])
    kept = read_kept(fit.files.best)
    assert kept is not None
    _write(kept.potential, 1.5)
    _write(fit.files.output_potential, 2.5, r_in=2.1, delta_in=0.1, inner_cutoff_type="zbl")
    take(kept, fit.files.output_potential)
    (block,) = read_potential(fit.files.output_potential)["species"]
    assert block["nbody"][0]["c"] == [1.5]
    assert (block["r_in"], block["delta_in"], block["inner_cutoff_type"]) == (2.1, 0.1, "zbl")
    metadata = read_potential(fit.files.output_potential)["metadata"]
    assert metadata == {"kept": "x", "_loss": 2.5}


def test_a_copy_is_of_one_piece(fit: _Fit, tmp_path: Path) -> None:
    """The record and the potential that it names."""
    (tmp_path / "copy").mkdir()
    assert copy_kept(fit.files, tmp_path / "copy") == {}
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 3])
    names = {"best.json", "best_potential_0_0_2.yaml"}
    assert set(copy_kept(fit.files, tmp_path / "copy")) == names
    kept = read_kept(tmp_path / "copy" / "best.json")
    assert kept is not None
    assert kept.potential.read_text() == "iteration 2 of step 0"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"potential": 3}'])
def test_a_damaged_record_is_said(tmp_path: Path, text: str) -> None:
    """It would decide what is published."""
    with suppress(FileNotFoundError):
        assert read_kept(tmp_path / "best.json") is None
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(TrainingError, match=r"best\.json can't be read"):
        read_kept(tmp_path / "best.json")


def test_a_record_names_no_file_elsewhere(fit: _Fit) -> None:
    """It comes from the store."""
    fit.start(FROM_FILE, NEVER)
    fit.run([9, 8, 3])
    content = json.loads(fit.files.best.read_text())
    content["potential"] = "../../elsewhere/potential.yaml"
    fit.files.best.write_text(json.dumps(content))
    kept = read_kept(fit.files.best)
    assert kept is not None
    assert kept.potential == fit.files.directory / "potential.yaml"
