"""Progress is told from what pacemaker has written, and only where somebody listens."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlip_job.cli.options import Settings
from mlip_job.cli.output import Reporter, live_line
from mlip_job.training.process import IterationClock
from mlip_job.training.summary import CurvePoint
from mlip_job.training.trainer import Progress


def _row(iteration: int, step: int = 0) -> CurvePoint:
    return CurvePoint(
        ladder_step=step,
        cycle=0,
        iteration=iteration,
        loss=0.5,
        rmse_energy_mev_per_atom=12.3,
        rmse_force_mev_per_angstrom=45.6,
    )


def test_clock_starts_after_the_graph_of_the_test_set() -> None:
    """Between the rows 0 and 1 lie minutes that say nothing about an iteration."""
    clock = IterationClock()
    clock.add([_row(0)], 0.0)
    clock.add([_row(1)], 300.0)
    assert clock.seconds_per_iteration is None
    clock.add([_row(2), _row(3)], 304.0)
    assert clock.seconds_per_iteration == pytest.approx(2.0)


def test_clock_starts_anew_in_every_ladder_step() -> None:
    """Later steps have larger bases and slower iterations."""
    clock = IterationClock()
    clock.add([_row(0), _row(1)], 0.0)
    clock.add([_row(9)], 8.0)
    clock.add([_row(0, step=1)], 100.0)
    assert clock.seconds_per_iteration is None
    assert clock.last == _row(0, step=1)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_line_keeps_its_elapsed_time(width: int) -> None:
    """The description gives way, however long it is."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    line = live_line(console, total=100)
    line.update(line.task_ids[0], description="fitting · iteration 20/100 · " + 30 * "long ")
    with console.capture() as captured:
        console.print(line.get_renderable())
    (shown,) = captured.get().rstrip("\n").split("\n")
    assert "-:--:--" in shown or "0:00:00" in shown
    assert "fitting" in shown
    assert len(shown) <= width


def test_a_line_per_phase_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, as in a batch job: not a line for every look at the tables."""
    reporter = Reporter(Settings(), max_iter=100)
    reporter.progress(Progress("building_graph", 1.0))
    for _ in range(50):
        reporter.progress(Progress("fitting", 2.0, _row(20), 0.5))
    assert capsys.readouterr().err == (
        "[     1 s] building graph\n"
        "[     2 s] fitting · iteration 20/100 · loss 0.5 · RMSE 12.3 meV/atom, 45.6 meV/Å · "
        "at most 0:40 left in this step\n"
    )


def test_the_test_set_is_shown_where_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever measures it."""
    progress = Progress("fitting", 2.0, _row(20), test_point=_row(18))
    Reporter(Settings()).progress(progress)
    assert " · test 12.3 meV/atom, 45.6 meV/Å\n" in capsys.readouterr().err


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    """-q says nothing; -v shows what pacemaker prints."""
    quiet = Reporter(Settings(quiet=True))
    quiet.message("hello")
    quiet.progress(Progress("fitting", 2.0))
    quiet.trainer_line("a line")
    assert capsys.readouterr() == ("", "")
    Reporter(Settings(verbose=True)).trainer_line("a line")
    assert capsys.readouterr() == ("", "  | a line\n")
