"""Tables on stdout fit 80 columns, for any content."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlip_job.cli.generations import show_comparison, show_generations
from mlip_job.cli.output import WIDTH, print_table
from mlip_job.registry import GenerationSummary, PredecessorChange
from tests.evaluations import make_evaluation
from tests.manifests import make_manifest
from tests.reports import make_report


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
