"""Output for people: tables of 80 columns, progress of a fit and of transfers."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from rich.console import Console

from mlip_job.cli.generations import show_comparison, show_generations
from mlip_job.cli.options import Settings
from mlip_job.cli.output import WIDTH, Reporter, TransferLine, live_line, print_table
from mlip_job.registry import GenerationSummary, PredecessorChange
from mlip_job.training.trainer import Progress
from tests.evaluations import make_evaluation
from tests.manifests import make_manifest
from tests.reports import make_report
from tests.trainings import make_point


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_small_table_has_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [("a", "1"), ("b", "10")])
    assert _lines(capsys) == ["name    n", "─────────", "a       1", "b      10", ""]


def test_long_headings_and_texts_take_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        ("generation", "RMSE of the energy (meV/atom)", "what it does"),
        [("gen_01", "123456.789", "it " + "waits for the queue " * 8)],
    )
    lines = _lines(capsys)
    assert max(map(len, lines)) <= WIDTH
    assert sum("123456.789" in line for line in lines) == 1
    assert "".join(lines).count("queue") == 8


def test_too_many_columns_are_continued_below(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("", *map(str, range(9))), [("a row", *("1234567.890" for _ in range(9)))])
    lines = _lines(capsys)
    assert max(map(len, lines)) <= WIDTH
    assert "\n".join(lines).count("1234567.890") == 9
    assert sum(line.startswith("a row") for line in lines) > 1


def _summary(generation: int, change: PredecessorChange | None) -> GenerationSummary:
    manifest = make_manifest(generation)
    dataset = manifest.dataset.model_copy(update={"train": 123456, "test": 12345})
    headline = manifest.headline.model_copy(update={"change": change})
    return GenerationSummary.of(
        manifest.model_copy(
            update={
                "dataset": dataset,
                "headline": headline,
                "ended": manifest.ended + timedelta(days=generation),
            }
        )
    )


def test_a_list_compares_on_common_structures_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a measurement on the same structures, neither change nor trend is shown."""
    change = PredecessorChange(generation=1, structures=6, energy=-0.47, force=1.09)
    show_generations("cu", [_summary(1, None), _summary(2, change), _summary(3, None)], 3)
    lines = _lines(capsys)
    assert max(map(len, lines)) <= WIDTH
    first, second, third = (line for line in lines if line.startswith("gen_"))
    assert "↓ 47%, ↑ 109%" in second
    assert "no gate set" in second
    for line in (first, third):
        assert line.endswith("–")
    assert not set("▁▂▃▄▅▆▇█") & set("".join(lines))


@pytest.mark.parametrize("count", [2, 6])
def test_a_comparison_fits(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [make_report(n, evaluation=make_evaluation(n)) for n in range(1, count + 1)]
    show_comparison(reports, None, None)
    assert max(map(len, _lines(capsys))) <= WIDTH


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_line_keeps_its_elapsed_time(width: int) -> None:
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
    """Without a terminal, as in a batch job: not one line per poll of the tables."""
    reporter = Reporter(Settings(), max_iter=100)
    reporter.progress(Progress("building_graph", 1.0))
    for _ in range(50):
        reporter.progress(Progress("fitting", 2.0, make_point(20), 0.5))
    assert capsys.readouterr().err == (
        "[     1 s] building graph\n"
        "[     2 s] fitting · iteration 20/100 · loss 0.5 · RMSE 12.3 meV/atom, 45.6 meV/Å · "
        "at most 40 s left in this step\n"
    )


def test_the_test_set_is_shown_where_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("fitting", 2.0, make_point(20), test_point=make_point(18))
    Reporter(Settings()).progress(progress)
    assert " · test 12.3 meV/atom, 45.6 meV/Å\n" in capsys.readouterr().err
    fitted = make_point(21).model_copy(update={"rmse_stress_gpa": 1.234})
    Reporter(Settings()).progress(Progress("fitting", 3.0, fitted))
    assert "RMSE 12.3 meV/atom, 45.6 meV/Å, 1.23 GPa\n" in capsys.readouterr().err


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    """-q prints nothing; -v shows pacemaker's output."""
    quiet = Reporter(Settings(quiet=True))
    quiet.message("hello")
    quiet.progress(Progress("fitting", 2.0))
    quiet.trainer_line("a line")
    assert capsys.readouterr() == ("", "")
    Reporter(Settings(verbose=True)).trainer_line("a line")
    assert capsys.readouterr() == ("", "  | a line\n")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("mlip_job.cli.output.time.monotonic", lambda: now[0])
    return now


def move(seconds: list[float], line: TransferLine, step: float) -> None:
    for part in range(1, 11):
        seconds[0] += step
        line("datasets/1234/train.xyz", 10_000_000 * part, 100_000_000)


def test_a_long_transfer_has_a_temporary_line(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a second, a few times per second, with name, fraction and speed."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    move(seconds, TransferLine(quiet=False), 0.5)
    shown = capsys.readouterr().err.split("\r")
    assert shown[1].startswith("train.xyz: 30 % of 100 MB, 30.0 MB/s")
    assert len(shown) == 10
    assert shown[-2:] == [" " * len(shown[-3]), ""]


@pytest.mark.parametrize(
    ("terminal", "quiet", "step"), [(True, False, 0.05), (False, False, 1.0), (True, True, 1.0)]
)
def test_otherwise_nothing_is_shown(
    seconds: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    quiet: bool,
    step: float,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    move(seconds, TransferLine(quiet=quiet), step)
    assert capsys.readouterr().err == ""
