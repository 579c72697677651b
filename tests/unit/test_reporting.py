"""Pages and tables about generations: what they say, as pure functions of their reports."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.evaluation.results import EnergyVolumeCheck, ErrorPair
from mlip_job.registry import AttemptPart, ErrorFigures, Headline
from mlip_job.report import provenance
from mlip_job.report.chart import Axis, Chart
from mlip_job.report.comparison import comparison_document, figures_table, steps_table
from mlip_job.report.error_tables import agreement_table, config_type_table, worst_table
from mlip_job.report.facts import Facts, predecessor
from mlip_job.report.headline import cards, summary, verdict
from mlip_job.report.learning import curves, learning_caption
from mlip_job.report.numbers import count, duration, fixed, percent, significant
from mlip_job.report.page import render_comparison, render_report
from mlip_job.report.physics import physics_table
from mlip_job.report.scales import linear_scale, log_scale, signed_log_scale
from mlip_job.report.trend import describe_change, gate_word
from mlip_job.training.summary import CurvePoint, FitCycle
from tests.evaluations import make_evaluation, make_physics
from tests.reports import make_facts, make_report

if TYPE_CHECKING:
    from mlip_job.report.model import TrainingReport

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def _texts(svg: str, css: str) -> list[str]:
    texts = (e for e in ET.fromstring(svg).iter("text") if css in e.attrib["class"].split())  # noqa: S314 - ours
    return [text.text or "" for text in texts]


def _cards(*arguments: object) -> dict[str, str]:
    return {
        card.title: " | ".join([f"{card.value} {card.unit}", *(d.text for d in card.details)])
        for card in cards(*arguments)  # type: ignore[arg-type]
    }


def test_report_without_a_test_side_says_so() -> None:
    """Errors of the training set alone, and that nothing was held out."""
    report = make_report(1)
    assert report.evaluation is not None
    alone = report.model_copy(
        update={
            "evaluation": report.evaluation.model_copy(update={"test": None}),
            "dataset": report.dataset.model_copy(update={"test": 0}),
        }
    )
    assert alone.headline().test.rmse_energy_mev_per_atom is None
    assert "nothing was held out" in summary(alone)
    shown = _cards(alone, None)
    assert shown["Energy RMSE, test"].startswith("–")
    assert "nothing was held out" in shown["Energy RMSE, test"]
    page = render_report(make_facts(alone), None)
    assert "Worst train structures" in page
    assert "Worst test structures" not in page
    assert "gen_01" in render_comparison([alone, make_report(2)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fixed(1234567.891, 1), "1\u202f234\u202f567.9"),
        (fixed(-0.04, 1), "0.0"),
        (fixed(-2.5, 0), "−2"),
        (fixed(None), "–"),
        (fixed(math.nan), "–"),
        (fixed(-math.inf), "−∞"),
        (significant(0.0706), "0.0706"),
        (significant(7.4), "7.40"),
        (significant(1234.5), "1\u202f230"),
        (significant(-0.00042), "−4.20·10⁻⁴"),
        (significant(0.0), "0"),
        (percent(-0.494), "−49\u202f%"),
        (percent(0.07), "+7\u202f%"),
        (duration(4.24), "4.2 s"),
        (duration(5321), "88.7 min"),
        (duration(86400), "24.0 h"),
        (count(1, "structure"), "1 structure"),
        (count(None, "function"), "– functions"),
    ],
)
def test_numbers_as_people_write_them(text: str, expected: str) -> None:
    """With a true minus, without false digits, and a dash for what is not known."""
    assert text == expected


@given(st.lists(NUMBERS, max_size=20))
def test_every_scale_takes_any_numbers(values: list[float]) -> None:
    """One value, none, infinite ones: ends differ, labels lie between them and are few."""
    for scale in (linear_scale(values), log_scale(values), signed_log_scale(values)):
        assert scale.low < scale.high
        places = [scale.fraction(tick.value) for tick in scale.ticks]
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
        assert places == sorted(places)
        assert len(places) <= 14


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.0, 24.0), ["0", "5", "10", "15", "20"]),
        ((-0.3, 0.3), ["−0.2", "0.0", "0.2"]),
    ],
)
def test_linear_labels_are_round(values: tuple[float, float], labels: list[str]) -> None:
    """Steps of 1, 2 or 5."""
    found = [tick.label.replace("0.0", "0") for tick in linear_scale(values).ticks]
    assert found == [label.replace("0.0", "0") for label in labels]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((1e-6, 1e3), ["10⁻⁶", "0.0001", "0.01", "1", "100"]),
        ((0.9, 1100.0), ["1", "10", "100", "1000"]),
        ((12.0, 55.0), ["20", "30", "40", "60"]),
        ((100.0, 104.0), ["100", "110"]),
    ],
)
def test_logarithmic_labels_are_enough(values: tuple[float, float], labels: list[str]) -> None:
    """Decades where there are some, else more of each."""
    assert [tick.label for tick in log_scale(values).ticks] == labels


def test_labels_about_zero_do_not_touch() -> None:
    """Zero stays, and those far from it."""
    labels = [tick.label for tick in signed_log_scale([-2.0, 5000.0], linear_within=0.3).ticks]
    assert labels == ["−1", "0", "1", "100"]


def test_texts_in_charts_are_escaped() -> None:
    """Whatever a structure is called."""
    axis = Axis("<b>&", linear_scale([0, 1]))
    chart = Chart('"><script>', axis, axis)
    chart.mark(0.5, "data", "</svg>")
    svg = chart.svg()
    assert "<script" not in svg
    assert svg.count("</svg>") == 2
    assert _texts(svg, "label") == ["<b>&", "<b>&"]


def test_a_long_curve_is_thinned_but_keeps_its_extremes() -> None:
    """A ladder of thousands of iterations makes no megabytes; a spike is still seen."""
    points = [(float(x), 100.0 if x == 31_234 else x % 7) for x in range(50_000)]
    chart = Chart(
        "", Axis("", linear_scale(x for x, _ in points)), Axis("", linear_scale([0, 100]))
    )
    chart.line(points, "train")
    svg = chart.svg()
    assert len(svg) < 30_000
    path = re.search(r'class="line train" d="([^"]+)"', svg)
    assert path is not None
    heights = [float(pair.split()[1]) for pair in path[1].removeprefix("M").split("L")]
    assert min(heights) == 0.0
    assert sorted(heights)[1] > 150


def test_what_is_no_number_is_not_drawn() -> None:
    """A potential may yield anything; the curve goes on behind it."""
    axis = Axis("", linear_scale([0, 1]))
    chart = Chart("", axis, axis)
    chart.line([(0.0, 0.0), (0.5, math.nan), (1.0, 1.0)], "test")
    chart.line([(0.0, math.inf)], "train")
    svg = chart.svg()
    assert "nan" not in svg
    assert "inf" not in svg
    assert 'class="line train" d=""' in svg


def _curve_report(**changes: object) -> object:
    """Return a report whose fit had two ladder steps of three iterations, in two attempts."""
    report = make_report(2)
    points = tuple(
        CurvePoint(
            ladder_step=step,
            cycle=0,
            iteration=iteration,
            loss=10.0 - 4 * step - iteration,
            rmse_energy_mev_per_atom=None if iteration == 1 else 5.0,
            rmse_force_mev_per_angstrom=0.0,
        )
        for step in (0, 1)
        for iteration in range(4)
    )
    cycles = tuple(
        FitCycle(ladder_step=step, cycle=0, functions=5 * step + 5, iterations=3, final_loss=1.0)
        for step in (0, 1)
    )
    last = points[-1].model_copy(update={"iteration": 4})
    fit = report.fit.model_copy(
        update={"train_curve": points, "test_curve": (last,), "cycles": cycles, "iterations": 6}
    )
    return report.model_copy(update={"fit": fit, **changes})


def test_the_learning_curve_runs_through_all_steps() -> None:
    """Iterations go on counting; what is not known or has no logarithm is left out."""
    report = _curve_report()
    loss = curves(report, "loss")  # type: ignore[arg-type]
    assert [x for x, _ in loss["train"]] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert loss["test"] == [(6, 3.0)]
    energy = curves(report, "rmse_energy_mev_per_atom")  # type: ignore[arg-type]
    assert [x for x, _ in energy["train"]] == [0, 2, 3, 3, 5, 6]
    assert curves(report, "rmse_force_mev_per_angstrom")["train"] == []  # type: ignore[arg-type]


def test_steps_and_attempts_are_marked() -> None:
    """With the numbers of functions, and where an attempt took over."""
    report = _curve_report()
    page = render_report(make_facts(report), None)  # type: ignore[arg-type]
    (loss,) = re.findall(r'<svg viewBox[^>]+aria-label="Loss.*?</svg></svg>', page)
    assert _texts(loss, "centred") == ["5", "10"]
    assert _texts(loss, "attempt") == ["attempt 2"]
    assert learning_caption(report) == (  # type: ignore[arg-type]
        "2 ladder steps or cycles, begun at the dotted lines, with so many functions as stands "
        "above; 2 attempts, begun at the dashed lines"
    )
    (part, _) = make_report(2).attempts
    plain = make_report(1, attempts=(part,))
    assert learning_caption(plain) == ""


def test_the_verdict_comes_first() -> None:
    """With the reasons, or that nobody judged."""
    rejected = verdict(make_evaluation(3, accepted=False))
    assert (rejected.css, rejected.word) == ("failed", "Rejected")
    assert rejected.reasons[1] == "the dimer Au–Au is attractive below 1.1 Å"
    assert verdict(make_evaluation(3)).word == "Accepted"
    found = make_evaluation(3)
    free = found.model_copy(update={"gate": found.gate.model_copy(update={"limits_set": False})})
    assert verdict(free).word == "Published, no gate set"
    assert verdict(free).css == "skipped"
    assert verdict(None).word == "Not evaluated"


def test_figures_stand_beside_the_parents_on_the_same_structures() -> None:
    """Better and worse in words, by how much, on how many."""
    report = make_report(2)
    assert report.evaluation is not None
    assert report.evaluation.parent is not None
    worse = report.evaluation.parent.model_copy(
        update={
            "energy_mev_per_atom": ErrorPair(old=10.0, new=12.5, change=0.25),
            "force_mev_per_angstrom": ErrorPair(old=10.0, new=10.1, change=0.01),
        }
    )
    report = report.model_copy(
        update={"evaluation": report.evaluation.model_copy(update={"parent": worse})}
    )
    found = _cards(report, make_report(1))
    assert found["Energy RMSE, test"].endswith(
        "gen_01 10.0 → 12.5 on the same 90 structures | worse than gen_01 (+25\u202f%)"
    )
    assert found["Force RMSE, test"].endswith("as good as gen_01 (+1\u202f%)")
    assert found["Physics checks passed"] == "7 of 7  | 1 skipped"
    assert "of 96 test structures above 1" in found["Largest extrapolation grade"]
    failed = make_report(3, evaluation=make_evaluation(3, accepted=False))
    assert _cards(failed, None)["Physics checks passed"] == (
        "6 of 7  | failed: dimer Au–Au | 1 skipped"
    )


def test_without_an_evaluation_pacemakers_figures_are_shown() -> None:
    """And the parent's are said to be of its own test set."""
    old = make_report(1, evaluation=None)
    report = make_report(2, evaluation=None)
    assert report.fit.test is not None
    assert old.fit.test is not None
    energy = _cards(report, old)["Energy RMSE, test"]
    assert energy.startswith(significant(report.fit.test.rmse_energy_mev_per_atom))
    own = significant(old.fit.test.rmse_energy_mev_per_atom)
    assert energy.endswith(f"gen_01 {own}, on its own test set")
    assert list(_cards(report, None)) == ["Energy RMSE, test", "Force RMSE, test"]


def test_the_predecessor_is_the_one_compared_with() -> None:
    """Else the one that the fit started from, else none."""
    report = make_report(4)
    assert report.evaluation is not None
    assert predecessor(report) == 3
    other = make_evaluation(3)
    assert predecessor(report.model_copy(update={"evaluation": other})) == 2
    assert predecessor(make_report(4, evaluation=None)) == 3
    assert predecessor(make_report(1, evaluation=None)) is None


def test_the_summary_names_what_was_fitted() -> None:
    """In one sentence."""
    assert summary(make_report(1)) == (
        "15 basis functions for Au, Cu, fitted from nothing to 960 structures in 15 iterations; "
        "tested on 96 structures that the fit did not see."
    )


def test_tables_have_units_and_all_groups() -> None:
    """Config types of either side, a name for those without; worst structures by row id."""
    evaluation = make_evaluation(2, config_types=("", "rattled"))
    table = config_type_table(evaluation)
    assert table is not None
    assert [row[0] for row in table.rows] == ["(none)", "rattled"]
    assert "E test (meV/atom)" in [column.heading for column in table.columns]
    assert config_type_table(make_evaluation(2, config_types=("rattled",))) is None
    worst = worst_table("test", evaluation.test)
    assert [row[0] for row in worst.rows] == [str(w.row_id) for w in evaluation.test.worst]
    assert worst.columns[-1].name == "grade"


def test_the_conversion_is_told_in_a_sentence() -> None:
    """How far the published potential is from what it was made from; nothing if not known."""
    evaluation = make_evaluation(2)
    table = agreement_table(evaluation)
    assert table is not None
    assert table.note.endswith(
        "On 956 structures potential.yace and potential.yaml differ by no more than "
        "3.10·10⁻⁹ meV/atom and 0 meV/Å."
    )
    silent = agreement_table(evaluation.model_copy(update={"conversion": None}))
    assert silent is not None
    assert silent.note.endswith("in the trainer.")


def test_every_check_has_its_number() -> None:
    """What was looked at, the verdict, the number with its unit."""
    rows = {str(row[0]): [str(cell) for cell in row] for row in physics_table(CHECKS).rows}
    assert rows["dimer Au–Au"][1:3] == ["failed", "–"]
    assert rows["dimer Cu–Cu"][2] == "repulsive below 2.30 Å"
    assert rows["energy over volume, Au: Au fcc"][2] == "V₀ = 17.1 Å³/atom, B = 172 GPa"
    assert rows["dimer Au–Au"][3] == "attractive below 1.1 Å"
    assert rows["dimer Cu–Cu"][3] == ""
    assert [c.name for c in physics_table(CHECKS[:1]).columns] == ["check", "verdict", "number"]
    dynamics = "1.00 ps of dynamics at 600 K, Cu fcc, 108 atoms"
    assert rows[dynamics][2] == "drift 0.0213 meV/atom/ps"
    assert rows["smoothness at the cutoff, Cu–Cu"][2] == "jump 4.00·10⁻⁴ meV/Å at 5.00 Å"
    assert rows["smoothness at the ZBL switch, Cu–Cu"][1:3] == ["skipped", "–"]


CHECKS = make_physics(3, hole=True)


def test_checks_without_curves_are_no_obstacle() -> None:
    """A crystal that could not be made has no points; neither page minds."""
    empty = EnergyVolumeCheck(
        verdict="skipped",
        message="no reference structure",
        element="Cu",
        structure="Cu",
        volumes_angstrom3_per_atom=(),
        energies_ev_per_atom=(),
        minimum_angstrom3_per_atom=None,
        bulk_modulus_gpa=None,
    )
    report = make_report(2, evaluation=make_evaluation(2, physics=(empty,)))
    page = render_report(make_facts(report), None)
    assert "no reference structure" in page
    assert "Energy over volume" not in page
    comparison = render_comparison([make_report(1), report])
    assert comparison.count("Energy over volume, Cu") == 1
    silent = make_report(2, evaluation=make_evaluation(2, physics=()))
    assert 'id="physics"' not in render_report(make_facts(silent), None)


def test_a_comparison_holds_what_is_known() -> None:
    """A column for each, the comparisons on the same structures, numbers for programs."""
    reports = [make_report(1, evaluation=None), make_report(2), make_report(3)]
    table = figures_table(reports)
    rows = {str(row[0]): [str(cell) for cell in row[1:]] for row in table.rows}
    assert rows["verdict"] == ["not evaluated", "accepted", "accepted"]
    assert rows["started from"] == ["nothing", "gen_01", "gen_02"]
    assert rows["physics checks passed"] == ["–", "7", "7"]
    assert rows["RMSE stress test (GPa)"][0] == "–"
    steps = steps_table(reports)
    assert steps is not None
    assert [str(row[0]) for row in steps.rows] == ["gen_01 → gen_02", "gen_02 → gen_03"]
    assert steps_table(reports[::2]) is None
    document = comparison_document(reports)
    first, second, _ = document["generations"]
    assert first["accepted"] is None
    assert reports[0].fit.test is not None
    assert first["rmse_test_energy_mev_per_atom"] == reports[0].fit.test.rmse_energy_mev_per_atom
    assert reports[1].evaluation is not None
    assert (
        second["max_test_force_mev_per_angstrom"]
        == reports[1].evaluation.test.force_mev_per_angstrom.max
    )
    assert document["on_the_same_structures"][0]["energy_mev_per_atom"]["old"] == 6.8


def test_pages_need_no_trainer() -> None:
    """Whoever reads reports has neither TensorFlow nor pyace; matplotlib only comes with ASE."""
    program = (
        "import sys\n"
        "for name in ('tensorflow', 'pyace', 'matplotlib', 'tensorpotential'):\n"
        "    sys.modules[name] = None\n"
        "from tests.reports import make_facts, make_report\n"
        "from mlip_job.report.page import render_comparison, render_report\n"
        "assert 'gen_02' in render_report(make_facts(make_report(2)), make_report(1))\n"
        "assert 'gen_02' in render_comparison([make_report(1), make_report(2)])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_trends_in_a_few_characters() -> None:
    """Arrows for what changed, a dash for what is not known."""
    changes = [-0.5, 0.3, 0.02, None]
    assert [describe_change(change) for change in changes] == ["↓ 50%", "↑ 30%", "=", "–"]


@pytest.mark.parametrize(
    ("accepted", "limits_set", "word"),
    [
        (True, True, "✓ accepted"),
        (True, False, "no gate set"),
        (True, None, "published"),
        (False, False, "✗ rejected"),
    ],
)
def test_the_gate_has_a_word(accepted: bool, limits_set: bool | None, word: str) -> None:
    """With a sign before a verdict, for the eye that runs down a column."""
    unknown = ErrorFigures(rmse_energy_mev_per_atom=None, rmse_force_mev_per_angstrom=None)
    headline = Headline(
        train=unknown,
        test=unknown,
        iterations=1,
        functions=None,
        accepted=accepted,
        limits_set=limits_set,
    )
    assert gate_word(headline) == word


def test_attempts_are_listed() -> None:
    """Each with its own iterations."""
    (first, *_) = make_report(2).attempts
    assert isinstance(first, AttemptPart)
    page = render_report(make_facts(make_report(2)), None)
    assert first.attempt in page


def test_the_final_loss_is_shown_by_its_terms() -> None:
    """On the page, and in the headline that the manifest keeps, with the warnings."""
    report = make_report(2)
    page = render_report(make_facts(report), None)
    assert "energy 18.7 %, forces 81.3 %, l1_coeffs 3.6e-05 %" in page
    headline = report.headline()
    assert headline.loss_shares == report.fit.loss_shares is not None
    assert headline.warnings == report.warnings != ()


def test_the_cost_of_the_potential_is_shown() -> None:
    """With the machine that it was measured on; an older report has none."""
    report = make_report(2)
    assert "84.2 µs per atom on one core, Example CPU" in render_report(make_facts(report), None)
    assert report.evaluation is not None
    older = report.model_copy(
        update={"evaluation": report.evaluation.model_copy(update={"speed": None})}
    )
    assert "µs per atom" not in render_report(make_facts(older), None)
    assert older.headline().evaluator_us_per_atom is None


def test_the_key_of_a_split_is_shown() -> None:
    """It was the key that decided, not the seed."""
    report = make_report(2)
    by_seed = make_facts(report)
    assert "split by" not in render_report(by_seed, None)
    assert "split 42" in render_report(by_seed, None)
    split = by_seed.dataset.split.model_copy(update={"key": "side"})
    by_key = Facts(
        report.model_copy(
            update={"dataset": report.dataset.model_copy(update={"split_key": "side"})}
        ),
        by_seed.manifest,
        by_seed.dataset.model_copy(update={"split": split}),
    )
    page = render_report(by_key, None)
    assert "the key side" in page
    assert "split 42" not in page


def _timing_rows(report: TrainingReport) -> dict[str, list[list[str]]]:
    tables = provenance.timings(report)
    return {table.title: [[str(cell) for cell in row] for row in table.rows] for table in tables}


def test_building_graphs_is_a_stage_of_its_own() -> None:
    """The fit is shown by what pacemaker did, and what is left of it was ours."""
    report = make_report(
        1,
        timings_s={"export": 20.0, "fit": 170.0, "evaluate": 10.0},
        phases_s={"building_graph": 60.0, "fitting": 100.0},
    )
    assert _timing_rows(report) == {
        "Where the time went": [
            ["export", "20 s", "10\u202f%", "█" * 3],
            ["fit: building graph", "60 s", "30\u202f%", "█" * 10],
            ["fit: fitting", "1.7 min", "50\u202f%", "█" * 16],
            ["fit: checkpoints and the rest", "10 s", "5\u202f%", "█" * 2],
            ["evaluate", "10 s", "5\u202f%", "█" * 2],
        ]
    }
    assert "Where the time went" in render_report(make_facts(report), None)


def test_older_reports_show_the_times_that_they_have() -> None:
    """Those of the last attempt, and of pacemaker's last start."""
    report = make_report(1, phases_s={}, timings_s={"export": 4.0, "fit": 50.0})
    shown = _timing_rows(report)
    assert list(shown) == ["Stages of the last attempt", "Phases of pacemaker's last start"]
    assert [row[0] for row in shown["Stages of the last attempt"]] == ["export", "fit"]


def test_attempts_show_how_long_pacemaker_had_to_wait() -> None:
    """An attempt of before there were times has a dash."""
    rows = provenance.attempts(make_report(1)).rows
    assert [row[4:] for row in rows] == [("6.5 s", "20.2 min"), ("–", "–")]
