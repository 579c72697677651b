"""Reports of generations: their content, and the pages, figures and tables made of them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlip_job.cli.generations import show_generations, show_manifest
from mlip_job.config import JobConfig, TrainingConfig
from mlip_job.evaluation.results import DimerCheck, EnergyVolumeCheck
from mlip_job.models import Errors
from mlip_job.registry import (
    Committee,
    CommitteeMember,
    GenerationSummary,
    Headline,
    Manifest,
)
from mlip_job.registry.manifest import Artefact
from mlip_job.report.figures import QUANTITIES, learning_curves, learning_figures, physics_figures
from mlip_job.report.model import Facts, TrainingReport, loss_definition
from mlip_job.report.page import (
    comparison_document,
    figures_table,
    learning_caption,
    render_comparison,
    render_report,
    steps_table,
    summary,
    verdict,
)
from mlip_job.report.tables import (
    agreement_table,
    attempts_table,
    config_type_table,
    physics_table,
    time_table,
    worst_tables,
)
from mlip_job.report.texts import (
    count,
    describe_change,
    duration,
    fit_settings,
    fixed,
    gate_word,
    percent,
    settings_table,
    significant,
)
from mlip_job.training.pacemaker.outcome import summarise_run
from mlip_job.training.summary import CurvePoint, FitCycle
from tests.evaluations import make_dynamics, make_evaluation, make_physics
from tests.manifests import make_manifest
from tests.reports import changed, make_facts, make_report

if TYPE_CHECKING:
    from markupsafe import Markup

DATA = Path(__file__).parent.parent / "data" / "pacemaker"
CHECKS = make_physics(3, hole=True)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@cache
def page_of(report: bytes) -> str:
    """Return the page of a report, as text without tags; cached, since drawing takes a while."""
    page = render_report(make_facts(TrainingReport.from_json(report)), make_report(1))
    return " ".join(
        re.sub(r"<svg.*?</svg>|<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split()
    )


def shown(report: TrainingReport) -> str:
    """Return the texts on the page of a report."""
    return page_of(report.to_json())


def texts(svg: Markup, variable: str) -> list[str]:
    """Return the texts of a colour in a figure."""
    found = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")  # noqa: S314 - ours
    return [text.text or "" for text in found if f"var(--{variable})" in text.attrib["style"]]


# -- report.json ---------------------------------------------------------------------------------


def _definition(directory: Path, **training: Any) -> tuple[float, float, float]:
    loss = loss_definition(TrainingConfig(**training), summarise_run(directory))
    return loss.kappa, loss.energy_weight, loss.force_weight


@pytest.mark.parametrize("case", ["b_single_test", "c_ladder", "f_earlystop_pyace"])
def test_the_loss_is_that_of_the_log(case: str) -> None:
    """Whatever the weights of the configuration: pacemaker was given κ = 0.3."""
    found = _definition(DATA / case, energy_weight=1, force_weight=100)
    assert found == pytest.approx((0.3, 0.7 * 101, 0.3 * 101))
    found = _definition(DATA / case, energy_weight=7, force_weight=3)
    assert found == (0.3, 7, 3)


@pytest.mark.parametrize(
    ("printed", "kappa"),
    [("0.0003127", 3.127e-4), ("np.float64(9.2e-05)", 9.2e-5), ("1", 1.0), ("0", 0.0)],
)
def test_kappa_chosen_by_pacemaker_is_reported(tmp_path: Path, printed: str, kappa: float) -> None:
    """`auto` prints three digits of it, and later all of them; an override may be an integer."""
    shutil.copytree(DATA / "b_single_test", tmp_path / "run")
    log = tmp_path / "run" / "train.log"
    log.write_text(log.read_text().replace("(kappa=0.3,", f"(kappa={printed},"))
    overrides = {"fit": {"loss": {"kappa": "auto"}}}
    found = _definition(tmp_path / "run", linear_start=False, max_iter=1, overrides=overrides)
    assert found == pytest.approx((kappa, (1 - kappa) * 10_100, kappa * 10_100))


@pytest.mark.parametrize("kappa", [1, 0, 0.25])
def test_a_linear_fit_has_the_kappa_of_its_overrides(kappa: float) -> None:
    """It has no log; an integer is a number as well."""
    summary = changed(summarise_run(DATA / "b_single_test"), kappa=None)
    training = TrainingConfig(overrides={"fit": {"loss": {"kappa": kappa}}})
    assert loss_definition(training, summary).kappa == kappa
    assert loss_definition(TrainingConfig(), summary).kappa == pytest.approx(1 / 101)


def test_the_weights_of_grace_are_shown_without_kappa() -> None:
    """Gracemaker has weights of energy, force and stress, and no κ."""
    training = TrainingConfig(trainer="grace-fs", max_iter=1, stress_weight=50.0)
    fit = changed(make_report(2).fit, kappa=None)
    loss = loss_definition(training, fit)
    assert (loss.energy_weight, loss.force_weight, loss.stress_weight) == (1000, 100, 50)
    assert loss.kappa is None
    facts = make_facts(make_report(2, loss=loss, fit=fit))
    grace = replace(facts, manifest=changed(facts.manifest, trainer="grace-fs"))
    page = render_report(grace, None)
    assert "energy 1000, force 100, stress 50<" in page
    assert "κ" not in page
    # Version 1 reported pacemaker's κ for any trainer.
    old = changed(grace.report, loss__kappa=1 / 101)
    assert "κ" not in render_report(replace(grace, report=old), None)


def test_failed_checks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """By `show`, `run` and `list`, although the generation is accepted."""
    failed = make_dynamics(verdict="failed", message="the energy drifts by 9 meV/atom per ps")
    passed = changed(failed, verdict="passed", message="it is conserved")
    report = make_report(2, evaluation=make_evaluation(2, physics=(failed, passed)))
    assert report.headline().failed_checks == (failed.message,)
    manifest = changed(make_manifest(2), headline=report.headline())
    show_manifest(manifest)
    assert f"failed check   {failed.message}" in capsys.readouterr().out
    show_generations("cu-ni", [GenerationSummary.of(manifest)], 2)
    assert f"gen_02 failed a physics check: {failed.message}" in capsys.readouterr().out


def test_missing_checks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """In the verdict, `show`, `list` and the page; `accepted` alone would be misleading."""
    reason = "energy over volume not possible: no bulk structure in the data"
    report = changed(make_report(2), evaluation__gate__unchecked=(reason,))
    manifest = changed(make_manifest(2), headline=report.headline())
    assert report.headline().verdict == "accepted, stability not checked"
    show_manifest(manifest)
    assert f"not checked    {reason}" in capsys.readouterr().out
    show_generations("cu-ni", [GenerationSummary.of(manifest)], 2)
    shown = capsys.readouterr().out
    assert f"gen_02 is not fully checked: {reason}" in shown
    assert "~ accepted" in shown
    found = verdict(report.evaluation)
    assert (found.css, found.word) == ("skipped", "Accepted, stability not checked")
    assert found.reasons == (f"Physics check {reason}",)


def test_report_without_a_test_side_says_so() -> None:
    """Errors of the training set alone, and that nothing was held out."""
    alone = changed(make_report(1), evaluation__test=None, dataset__test=0)
    assert alone.headline().test.rmse_energy_mev_per_atom is None
    assert "nothing was held out" in summary(alone)
    page = shown(alone)
    assert "Energy RMSE, test – meV/atom train 6.09 nothing was held out" in page
    assert "Worst train structures" in page
    assert "Worst test structures" not in page
    assert "gen_01" in render_comparison([alone, make_report(2)])


# -- texts and tables ----------------------------------------------------------------------------


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
    """With a true minus, significant digits only, and a dash for unknown values."""
    assert text == expected


def test_trends_in_a_few_characters() -> None:
    """Arrows for changes, a dash for unknown values."""
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
def test_the_gate_has_a_verdict(accepted: bool, limits_set: bool | None, word: str) -> None:
    """With a sign before the verdict, to scan a column quickly."""
    unknown = Errors()
    headline = Headline(
        train=unknown,
        test=unknown,
        iterations=1,
        functions=None,
        accepted=accepted,
        limits_set=limits_set,
    )
    assert gate_word(headline) == word


def test_the_verdict_comes_first() -> None:
    """With the reasons, or that no limits were set."""
    rejected = verdict(make_evaluation(3, accepted=False))
    assert (rejected.css, rejected.word) == ("failed", "Rejected")
    assert rejected.reasons[1] == "the dimer Au–Au is attractive below 1.1 Å"
    assert verdict(make_evaluation(3)).word == "Accepted"
    free = changed(make_evaluation(3), gate__limits_set=False)
    assert verdict(free).word == "Published, no gate set"
    assert verdict(free).css == "skipped"
    assert verdict(None).word == "Not evaluated"


def test_the_summary_names_what_was_fitted() -> None:
    """In one sentence."""
    assert summary(make_report(1)) == (
        "15 basis functions for Au, Cu, fitted from nothing to 960 structures in 15 iterations; "
        "tested on 96 structures that the fit did not see."
    )


def test_tables_have_units_and_all_groups() -> None:
    """Config types of either side, a label for those without; worst structures by row id."""
    evaluation = make_evaluation(2, config_types=("", "rattled"))
    table = config_type_table(evaluation)
    assert table is not None
    assert [row[0] for row in table.rows] == ["(none)", "rattled"]
    assert "E test (meV/atom)" in [column.heading for column in table.columns]
    assert config_type_table(make_evaluation(2, config_types=("rattled",))) is None
    (worst, _) = worst_tables(evaluation)
    assert evaluation.test is not None
    assert [row[0] for row in worst.rows] == [str(w.row_id) for w in evaluation.test.worst]
    assert worst.columns[-1].name == "grade"


def test_stresses_are_reported_like_energies_and_forces(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the page, in tables and comparisons, in the manifest's headline and by `show`."""
    report = make_report(2)
    evaluation = report.evaluation
    assert evaluation is not None
    kinds, agreed, steps = (
        config_type_table(evaluation),
        agreement_table(evaluation),
        steps_table([make_report(1), report]),
    )
    assert kinds is not None
    assert agreed is not None
    assert steps is not None
    assert [column.heading for column in kinds.columns[-3:-1]] == [
        "stress train (GPa)",
        "stress test (GPa)",
    ]
    assert [str(cell) for cell in agreed.rows[0][-3:-1]] == ["0.060", "0.060"]
    assert [str(cell) for cell in steps.rows[0][-3:]] == ["0.200", "0.105", "−48\u202f%"]
    page = shown(report)
    assert "gen_01 0.200 → 0.105 on the same 90 structures better than gen_01 (−48 %)" in page
    for text in ("Stress, predicted against reference", "Stress errors", "stress component (GPa)"):
        assert text in page
    headline = report.headline()
    assert evaluation.test is not None
    assert headline.test.rmse_stress_gpa == evaluation.test.rmse_stress_gpa
    show_manifest(changed(make_manifest(2), headline=headline))
    output = capsys.readouterr().out
    assert f"{significant(headline.test.rmse_stress_gpa)} test" in output
    assert "↑ 1%" not in output
    assert "↓ 49%, ↓ 49%, ↓ 48% since gen_01" in output
    assert "(κ = 0.990099); no stress is fitted" in page


def test_an_unknown_error_of_stresses_has_no_key() -> None:
    """The records of fits without stress are as before."""
    point = CurvePoint(ladder_step=0, cycle=0, iteration=1, loss=1.0)
    assert "rmse_stress_gpa" not in json.loads(point.model_dump_json())


def test_the_conversion_is_described_in_a_note() -> None:
    """The difference between the published potential and its source; nothing if unknown."""
    evaluation = make_evaluation(2)
    table = agreement_table(evaluation)
    assert table is not None
    assert table.note.endswith(
        "On 956 structures potential.yace and potential.yaml differ by no more than "
        "3.10·10⁻⁹ meV/atom and 0 meV/Å."
    )
    silent = agreement_table(changed(evaluation, conversion=None))
    assert silent is not None
    assert silent.note.endswith("in the trainer.")


def test_every_check_has_its_number() -> None:
    """Subject, verdict, and the number with its unit."""
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


def test_a_comparison_holds_what_is_known() -> None:
    """A column for each, comparisons on the same structures, numbers for programs."""
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
        == reports[1].evaluation.test.max_force_mev_per_angstrom
    )
    assert document["on_the_same_structures"][0]["energy_mev_per_atom"]["old"] == 6.8


def test_building_graphs_is_a_stage_of_its_own() -> None:
    """Pacemaker's phases are shown separately from the overhead of the fit."""
    report = make_report(
        1,
        timings_s={"export": 20.0, "fit": 170.0, "evaluate": 10.0},
        phases_s={"building_graph": 60.0, "fitting": 100.0},
    )
    assert [[str(cell) for cell in row] for row in time_table(report).rows] == [
        ["export", "20 s", "10\u202f%", "█" * 3],
        ["fit: building graph", "60 s", "30\u202f%", "█" * 10],
        ["fit: fitting", "1.7 min", "50\u202f%", "█" * 16],
        ["fit: checkpoints and the rest", "10 s", "5\u202f%", "█" * 2],
        ["evaluate", "10 s", "5\u202f%", "█" * 2],
    ]
    older = changed(report, phases_s={})
    assert [row[0] for row in time_table(older).rows] == ["export", "fit", "evaluate"]


def test_attempts_show_how_long_pacemaker_had_to_wait() -> None:
    """An attempt from before times were recorded has a dash."""
    rows = attempts_table(make_report(1)).rows
    assert [row[4:] for row in rows] == [("6.5 s", "20.2 min"), ("–", "–")]


# -- figures -------------------------------------------------------------------------------------


def _curve_report() -> TrainingReport:
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
    last = changed(points[-1], iteration=4)
    curves = {"train_curve": points, "test_curve": (last,)}
    fit = changed(report.fit, cycles=cycles, iterations=6, **curves)
    return changed(report, fit=fit)


def test_the_learning_curve_runs_through_all_steps() -> None:
    """Iterations are numbered continuously; values that are unknown or ≤ 0 are omitted."""
    fit = _curve_report().fit
    curves = [learning_curves(fit, quantity.value_of) for quantity in QUANTITIES]
    loss, energy, forces, stress = curves
    assert stress == ([], [])
    assert [x for x, _ in loss[0]] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert loss[1] == [(6, 3.0)]
    assert [x for x, _ in energy[0]] == [0, 2, 3, 3, 5, 6]
    assert forces[0] == []


def test_steps_and_attempts_are_marked() -> None:
    """With the numbers of functions, and the start of each attempt."""
    report = _curve_report()
    loss, energy = learning_figures(report)  # zero forces have no logarithm
    assert loss.legend == {"train": "train", "test": "test"}
    assert energy.title == "Energy"
    assert texts(loss.svg, "attempt") == ["attempt 2"]
    assert {"5", "10"} <= set(texts(loss.svg, "quiet"))
    assert texts(loss.svg, "text") == ["iteration", "loss"]
    assert learning_caption(report) == (
        "2 ladder steps or cycles, started at the dotted lines, with their numbers of functions "
        "above; 2 attempts, started at the dashed lines"
    )
    assert learning_caption(make_report(1, attempts=report.attempts[:1])) == ""


def _figure_of(check: DimerCheck, **changes: Any) -> Markup:
    (figure,) = physics_figures((changed(check, **changes),))
    return figure.svg


DIMER = next(check for check in CHECKS if isinstance(check, DimerCheck))


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_figure_takes_any_numbers(values: list[float]) -> None:
    """A potential may predict anything; what is no number is not drawn."""
    places = tuple(float(place) for place in range(len(values)))
    svg = _figure_of(DIMER, distances_angstrom=places, energies_ev=tuple(values))
    assert not re.search("nan|inf", re.sub("aria-label=.*?>", "", svg))
    assert texts(svg, "quiet")


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_learning_curve_takes_any_numbers(values: list[float]) -> None:
    """A fit may diverge, and a loss may be as small as numbers get."""
    report = _curve_report()
    (point, *_) = report.fit.train_curve
    curve = tuple(
        changed(point, iteration=number, loss=value) for number, value in enumerate(values)
    )
    for figure in learning_figures(changed(report, fit__train_curve=curve, fit__test_curve=())):
        assert len(texts(figure.svg, "quiet")) < 20


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1e-6, 1e3, ["10⁻⁶", "0.0001", "0.01", "1", "100"]),
        (0.9, 1100.0, ["1", "10", "100", "1000"]),
        (12.0, 55.0, ["20", "50"]),
    ],
)
def test_logarithmic_labels_are_enough(low: float, high: float, labels: list[str]) -> None:
    """Decades if there are some, else more per decade."""
    report = _curve_report()
    curve = report.fit.train_curve
    ends = (changed(curve[0], loss=low), changed(curve[1], loss=high))
    fit = changed(report.fit, train_curve=ends, test_curve=(), cycles=())
    (loss, *_) = learning_figures(changed(report, fit=fit))
    assert texts(loss.svg, "quiet")[-len(labels) :] == labels


def test_a_long_curve_is_thinned_but_keeps_its_extremes() -> None:
    """Thousands of iterations do not make a large file; a spike is still visible."""
    places = np.linspace(1, 5, 50_000)
    energies = np.where(np.arange(50_000) == 31_234, 100.0, np.arange(50_000) % 7)
    svg = _figure_of(
        DIMER, distances_angstrom=tuple(places.tolist()), energies_ev=tuple(energies.tolist())
    )
    assert len(svg) < 150_000
    path = re.search(r'<g class="line">\s*<path d="([^"]+)"', svg)
    assert path is not None
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path[1])]
    assert min(heights) < 40
    assert sorted(heights)[1] > 60


def test_labels_stay_within_the_figure() -> None:
    """A label at the right end of the axis is left of its line."""
    svg = _figure_of(DIMER, shortest_in_data_angstrom=4.9)
    (label,) = re.findall(r"<text[^>]*>shortest in the data", svg)
    assert "text-anchor: end" in label


def test_texts_in_figures_are_escaped() -> None:
    """Any name of a structure."""
    svg = _figure_of(DIMER, elements=('"><script>', "</svg>"))
    assert "<script" not in svg
    assert svg.count("</svg>") == 1
    ET.fromstring(svg)  # noqa: S314 - ours


def test_pages_depend_on_the_report_only(tmp_path: Path) -> None:
    """Not on dates, earlier drawings, the user's settings of matplotlib, TensorFlow or pyace."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: true\naxes.linewidth: 7\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "for name in ('tensorflow', 'pyace', 'tensorpotential'):\n"
        "    sys.modules[name] = None\n"
        "from tests.reports import make_facts, make_report\n"
        "from mlip_job.report.page import render_report\n"
        "sys.stdout.write(render_report(make_facts(make_report(2)), make_report(1)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, Path(__file__).parents[2]],
        env=os.environ | {"MATPLOTLIBRC": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.stdout == render_report(make_facts(make_report(2)), make_report(1))
    assert "<metadata" not in done.stdout


# -- pages ------------------------------------------------------------------------------------


def test_figures_are_compared_with_the_parents_on_the_same_structures() -> None:
    """Better or worse, by how much, and on how many structures."""
    old = Errors(rmse_energy_mev_per_atom=10.0, rmse_force_mev_per_angstrom=10.0)
    new = Errors(rmse_energy_mev_per_atom=12.5, rmse_force_mev_per_angstrom=10.1)
    parents = {"evaluation__parent__old": old, "evaluation__parent__new": new}
    page = shown(changed(make_report(2), **parents))
    assert (
        "gen_01 10.0 → 12.5 on the same 90 structures worse than gen_01 (+25 %) Force RMSE, test"
    ) in page
    assert "as good as gen_01 (+1 %)" in page
    assert "Physics checks passed 7 of 7 1 not possible" in page
    assert "of 96 test structures above 1" in page
    failed = make_report(3, evaluation=make_evaluation(3, accepted=False))
    assert "Physics checks passed 6 of 7 failed: dimer Au–Au 1 not possible" in shown(failed)


def test_without_an_evaluation_pacemakers_figures_are_shown() -> None:
    """The page says that the parent's are on its own test set."""
    old = make_report(1)
    report = make_report(2, evaluation=None)
    assert report.fit.test is not None
    assert report.fit.train is not None
    test, train, own = (
        significant(errors.rmse_energy_mev_per_atom)
        for errors in (report.fit.test, report.fit.train, old.errors("test"))
    )
    page = shown(report)
    assert (
        f"Energy RMSE, test {test} meV/atom train {train} gen_01 {own}, on its own test set" in page
    )
    assert "Accuracy" not in page
    unknown = changed(report, fit__second_set="validation")
    assert unknown.errors("test").rmse_energy_mev_per_atom is None


def test_the_predecessor_is_the_one_compared_with() -> None:
    """Else the one that the fit started from, else none."""
    assert make_report(4).predecessor() == 3
    assert make_report(4, evaluation=make_evaluation(3)).predecessor() == 2
    assert make_report(4, evaluation=None).predecessor() == 3
    assert make_report(1, evaluation=None).predecessor() is None


def test_checks_without_curves_are_no_obstacle() -> None:
    """A crystal that could not be made has no points; both pages work."""
    message = "no reference structure"
    empty = EnergyVolumeCheck(verdict="skipped", message=message, element="Cu", structure="Cu")
    report = make_report(2, evaluation=make_evaluation(2, physics=(empty,)))
    assert "no reference structure" in shown(report)
    assert "Energy over volume" not in shown(report)
    comparison = render_comparison([make_report(1), report])
    assert comparison.count("Energy over volume, Cu") == 1
    silent = make_report(2, evaluation=make_evaluation(2, physics=()))
    assert "Physics" not in shown(silent)


def test_the_final_loss_is_shown_by_its_terms() -> None:
    """On the page, and in the headline in the manifest, with the warnings."""
    report = make_report(2)
    page = shown(report)
    assert "energy 18.7 %, forces 81.3 %, l1_coeffs 3.6e-05 %" in page
    headline = report.headline()
    assert headline.loss_shares == report.fit.loss_shares is not None
    assert headline.warnings == report.warnings != ()


def test_the_cost_of_the_potential_is_shown() -> None:
    """With the machine of the measurement; an older report has none."""
    report = make_report(2)
    assert "84.2 µs per atom on one core, Example CPU" in shown(report)
    older = changed(report, evaluation__speed=None)
    assert "µs per atom" not in shown(older)
    assert older.headline().evaluator_us_per_atom is None


def test_the_key_of_a_split_is_shown() -> None:
    """The key determines the split, not the seed."""
    report = make_report(2)
    by_seed = make_facts(report)
    assert "split by" not in shown(report)
    assert "split 42" in shown(report)
    by_key = Facts(
        changed(report, dataset__split_key="side"),
        by_seed.manifest,
        changed(by_seed.dataset, split__key="side"),
    )
    page = render_report(by_key, None)
    assert "the key side" in page
    assert "split 42" not in page


def _manifest(generation: int, **training: Any) -> Manifest:
    config = JobConfig.model_validate({"family": "cu", "training": training})
    return changed(make_manifest(generation), config=config.model_dump(mode="json"))


def test_show_names_the_settings_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """Cutoff, basis, ladder, weights, regularisation and test fraction; no gate was set."""
    show_manifest(_manifest(1, cutoff=6.5, ladder_step=[100, 0.1], linear_start=False, max_iter=5))
    lines = capsys.readouterr().out.splitlines()
    shown = {line[:14].strip(): line[15:] for line in lines}
    assert shown["verdict"] == "published, no gate set"
    assert shown["cutoff"] == "6.5 Å"
    assert shown["basis size"] == "auto functions per element asked for, ndensity 2"
    assert shown["ladder"] == "ladder_step [100.0, 0.1], ladder_type body_order"
    assert shown["weights"] == "energy 10000, force 100, weighting uniform"
    grace = TrainingConfig(trainer="grace-fs", stress_weight=50).model_dump(mode="json")
    settings = fit_settings(changed(make_manifest(1), config={"training": grace}))
    assert settings["fitted by"] == "grace-fs"
    assert settings["weights"].endswith(", stress 50, weighting uniform")
    assert not {"ladder", "regularisation"} & settings.keys()
    assert shown["regularisation"].startswith("L1_coeffs 1e-10, L2_coeffs 1e-10, w0_rad 1e-10")
    assert shown["test fraction"] == "0.1"


def test_a_manifest_of_an_older_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Missing values have a dash; its gate is that of its configuration."""
    gate = {"max_energy_rmse_mev": 5.0}
    config = {"family": "cu", "training": {"cutoff": 5.0}, "evaluation": {"gate": gate}}
    text = changed(make_manifest(1), headline__limits_set=None, config=config).to_json()
    show_manifest(Manifest.from_json(text, key="k"))
    out = capsys.readouterr().out
    assert "verdict        accepted\n" in out
    assert "test fraction  –\n" in out


def test_the_settings_that_differ_are_listed() -> None:
    """Including nested ones, and no others; a dash is an unknown setting, null is a value."""
    by_group = {"by_group": {"surface": {"energy": 2, "forces": 1}}}
    changed = _manifest(2, cutoff=6.0, weighting=by_group)
    table = settings_table([_manifest(1), changed])
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["training.cutoff"] == ("5.5", "6")
    assert rows["training.weighting.by_group.surface.energy"] == ("–", "2")
    assert "training.seed" not in rows
    assert "A dash: " in table.note
    assert settings_table([_manifest(1), _manifest(2)]) is None
    table = settings_table([_manifest(1, ladder_step=None), _manifest(2, ladder_step=5)])
    assert table is not None
    assert {row[0]: row[1:] for row in table.rows}["training.ladder_step"] == ("null", "5")
    assert table.note == ""
    page = shown(make_report(2))
    for name in ("cutoff", "basis size", "ladder", "regularisation", "test fraction"):
        assert name in page
    comparison = render_comparison([make_report(1), make_report(2)], [_manifest(1), changed])
    assert "training.cutoff" in comparison


def test_losses_of_members_are_on_the_scale_of_curves(capsys: pytest.CaptureFixture[str]) -> None:
    """(1-κ)·MSE(E/atom) + κ·mean|ΔF|², not a·MSE(E/atom) + b·mean|ΔF|²."""
    manifest = _manifest(1, energy_weight=300.0, force_weight=100.0)
    member = CommitteeMember(
        number=1,
        seed=42,
        attempt="a1",
        manifest=Artefact(key="k", sha256="0" * 64, size=1),
        test_loss=8.0,
        headline=manifest.headline,
    )
    ensemble = Committee(members=(member,), best=1, spread=None)
    show_manifest(changed(manifest, ensemble=ensemble))
    assert "seed 42, test loss 0.02, RMSE" in capsys.readouterr().out
