"""What the report says of a fit is what was fitted, and what went wrong is shown everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mlip_job.cli.tables import show_generations, show_manifest
from mlip_job.config import TrainingConfig
from mlip_job.evaluation.results import DynamicsCheck
from mlip_job.registry import GenerationSummary
from mlip_job.report.model import loss_definition
from mlip_job.training.pacemaker.results import summarise_run
from tests.evaluations import make_evaluation
from tests.manifests import make_manifest
from tests.reports import make_report

DATA = Path(__file__).parent.parent / "data" / "pacemaker"


def _definition(directory: Path, **training: Any) -> tuple[float, float, float]:
    loss = loss_definition(TrainingConfig(**training), summarise_run(directory))
    return loss.kappa, loss.energy_weight, loss.force_weight


@pytest.mark.parametrize("case", ["b_single_test", "c_ladder", "f_earlystop_pyace"])
def test_the_loss_is_that_of_the_log(case: str) -> None:
    """Whatever the weights of the configuration are: pacemaker was given κ = 0.3."""
    found = _definition(DATA / case, energy_weight=1, force_weight=100)
    assert found == pytest.approx((0.3, 0.7 * 101, 0.3 * 101))
    found = _definition(DATA / case, energy_weight=7, force_weight=3)
    assert found == (0.3, 7, 3)


@pytest.mark.parametrize(
    ("printed", "kappa"),
    [("0.0003127", 3.127e-4), ("np.float64(9.2e-05)", 9.2e-5), ("1", 1.0), ("0", 0.0)],
)
def test_a_kappa_that_pacemaker_chose_is_known(tmp_path: Path, printed: str, kappa: float) -> None:
    """`auto` prints three digits of it, and then all of them; an override may be an integer."""
    shutil.copytree(DATA / "b_single_test", tmp_path / "run")
    log = tmp_path / "run" / "train.log"
    log.write_text(log.read_text().replace("(kappa=0.3,", f"(kappa={printed},"))
    overrides = {"fit": {"loss": {"kappa": "auto"}}}
    found = _definition(tmp_path / "run", linear_start=False, max_iter=1, overrides=overrides)
    assert found == pytest.approx((kappa, (1 - kappa) * 10_100, kappa * 10_100))


@pytest.mark.parametrize("kappa", [1, 0, 0.25])
def test_a_linear_fit_has_the_kappa_of_its_overrides(kappa: float) -> None:
    """It has no log; an integer is a number as well."""
    summary = summarise_run(DATA / "b_single_test").model_copy(update={"kappa": None})
    training = TrainingConfig(overrides={"fit": {"loss": {"kappa": kappa}}})
    assert loss_definition(training, summary).kappa == kappa
    assert loss_definition(TrainingConfig(), summary).kappa == pytest.approx(1 / 101)


def test_failed_checks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """By `show`, `run` and `list`, although the generation is accepted."""
    failed = DynamicsCheck(
        verdict="failed",
        message="the energy drifts by 9 meV/atom per ps",
        structure="row 1",
        atoms=32,
        steps=10,
        timestep_fs=1.0,
        temperature_k=300.0,
        drift_mev_per_atom_per_ps=9.0,
    )
    passed = failed.model_copy(update={"verdict": "passed", "message": "it is conserved"})
    report = make_report(2, evaluation=make_evaluation(2, physics=(failed, passed)))
    assert report.headline().failed_checks == (failed.message,)
    manifest = make_manifest(2).model_copy(update={"headline": report.headline()})
    show_manifest(manifest)
    assert f"failed check   {failed.message}" in capsys.readouterr().out
    show_generations("cu-ni", [GenerationSummary.of(manifest)], 2)
    assert f"gen_02 failed a physics check: {failed.message}" in capsys.readouterr().out
