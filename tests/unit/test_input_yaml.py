"""input.yaml says to pacemaker what the TrainingConfig says to us."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlip_job.training.pacemaker.input import (
    StartPotential,
    TrainingData,
    build_input,
    dump_input,
    kappa,
)
from tests.trainings import sized

if TYPE_CHECKING:
    from mlip_job.config import TrainingConfig

REVIEWED = Path(__file__).parents[1] / "data" / "pacemaker"
ACCEPT = os.environ.get("MLIP_JOB_TEST_ACCEPT")

DATA = TrainingData(
    elements=("Cu", "Ni"),
    train=("dataset/train.pckl.gzip",),
    test=("dataset/test.pckl.gzip",),
    reference_energies={"Cu": -3.72, "Ni": -5.57},
)


def _written(training: TrainingConfig, start: StartPotential | None = None) -> dict[str, object]:
    """Return what a YAML reader finds in the written file."""
    content = yaml.safe_load(dump_input(build_input(training, DATA, start)))
    assert isinstance(content, dict)
    return content


PARENT, GROWN = (StartPotential("parent_potential.yaml", same_basis=same) for same in (True, False))

EVERYTHING = {
    "functions_per_element": 700,
    "seed": 3,
    "cutoff": 6.0,
    "energy_weight": 5.0,
    "force_weight": 10.0,
    "max_iter": 500,
    "ladder_step": (100, 0.1),
    "ladder_type": "power_order",
    "zbl": True,
    "batch_size": 17,
    "display_step": 20,
    "ndensity": 2,
    "nradmax_by_orders": {"UNARY": (10, 5), "ALL": (8, 4)},
    "lmax_by_orders": {"UNARY": (0, 3), "ALL": (0, 2)},
    "l1_coeffs": 1e-8,
    "l2_coeffs": 3e-7,
    "w0_rad": 1e-9,
    "w1_rad": 2e-9,
    "w2_rad": 3e-9,
    "weighting": {"energy_based": {"DEup": 5.0}},
    "min_relative_train_loss_per_iter": 1e-5,
    "early_stopping_patience": 50,
    "overrides": {
        "fit": {"optimizer": "L-BFGS-B", "loss": {"L1_coeffs": 0.5}, "callbacks": ["other.one"]},
        "potential": {"deltaSplineBins": 0.01, "bonds": {"ALL": {"radbase": "ChebExpCos"}}},
        "backend": {"gpu_config": {"gpu_ind": 1}},
    },
}


@pytest.mark.parametrize(
    ("name", "training", "start", "validation"),
    [
        ("minimal", {}, None, False),
        ("validated", {}, StartPotential("linear_start.yaml", same_basis=True), True),
        ("everything", EVERYTHING, None, True),
        ("continued", {"start_noise": 0.1, "ladder_step": 0.2}, PARENT, False),
        ("grown", {"start_noise": 0.1, "ladder_step": 50}, GROWN, False),
    ],
)
def test_input_is_the_reviewed_one(
    name: str, training: dict[str, object], start: StartPotential | None, validation: bool
) -> None:
    """A change shows as a difference here; MLIP_JOB_TEST_ACCEPT=1 accepts it."""
    data = replace(DATA, keep_best=validation)
    text = dump_input(build_input(sized(**training), data, start))
    path = REVIEWED / f"input-{name}.yaml"
    if ACCEPT:
        path.write_text(text, encoding="utf-8")
    reviewed = path.read_text(encoding="utf-8")
    lines = difflib.unified_diff(reviewed.splitlines(), text.splitlines(), "reviewed", "now")
    difference = "\n".join(lines)
    assert not difference, f"{path} (MLIP_JOB_TEST_ACCEPT=1 accepts this):\n{difference}"


def test_cutoff_is_written_where_every_version_of_pacemaker_looks() -> None:
    """Both the bonds' (0.4) and the top-level one (older)."""
    content = _written(sized(cutoff=6.0))
    assert content["cutoff"] == 6.0
    assert content["potential"]["bonds"]["ALL"]["rcut"] == 6.0


def test_data_section_names_both_sides_and_the_reference_energies() -> None:
    """Pacemaker neither splits at random nor fits reference energies by itself."""
    assert _written(sized())["data"] == {
        "filename": "dataset/train.pckl.gzip",
        "test_filename": "dataset/test.pckl.gzip",
        "reference_energy": {"Cu": -3.72, "Ni": -5.57},
    }


def test_without_a_test_set_pacemaker_is_told_of_none() -> None:
    """An empty list would be an error of its own."""
    data = TrainingData(("Cu",), ("dataset/train.pckl.gzip",), (), {"Cu": -3.72})
    assert "test_filename" not in build_input(sized(), data)["data"]


def test_shards_are_given_as_a_list() -> None:
    """A dataset of several frames is named in full."""
    data = TrainingData(DATA.elements, ("a.pckl.gzip", "b.pckl.gzip"), DATA.test, {})
    assert build_input(sized(), data)["data"]["filename"] == ["a.pckl.gzip", "b.pckl.gzip"]


@pytest.mark.parametrize(
    ("energy", "force", "expected"), [(1, 100, 100 / 101), (1, 1, 0.5), (1, 0, 0), (0, 1, 1)]
)
def test_kappa_of_the_two_weights(energy: float, force: float, expected: float) -> None:
    """κ = b / (a + b)."""
    assert kappa(energy, force) == pytest.approx(expected, rel=1e-15)
    fit = _written(sized(energy_weight=energy, force_weight=force))["fit"]
    assert fit["loss"]["kappa"] == pytest.approx(expected, rel=1e-15)


@given(st.floats(1e-6, 1e6), st.floats(0, 1e6), st.floats(1e-3, 1e3))
def test_kappa_depends_on_the_ratio_of_the_weights(a: float, b: float, scale: float) -> None:
    """Scaling both weights changes nothing, and κ stays between 0 and 1."""
    assert 0 <= kappa(a, b) <= 1
    assert kappa(scale * a, scale * b) == pytest.approx(kappa(a, b))


@pytest.mark.parametrize(
    ("step", "written"), [((100, 0.1), [100, 0.1]), (5, 5), (0.2, 0.2), ((0.1,), [0.1])]
)
def test_ladder_steps_keep_their_form(step: object, written: object) -> None:
    """Counts are written as whole numbers: pacemaker takes 100.0 for neither kind."""
    fit = _written(sized(ladder_step=step))["fit"]
    assert fit["ladder_step"] == written
    assert repr(fit["ladder_step"]) == repr(written)
    assert fit["ladder_type"] == "body_order"


def test_no_ladder_is_no_key() -> None:
    """Null fits the whole basis at once."""
    assert "ladder_step" not in _written(sized(ladder_step=None))["fit"]


def test_zbl_is_pacemakers_automatic_repulsion_or_nothing() -> None:
    """Off means the key is absent; pacemaker has no value for off."""
    assert _written(sized(zbl=True))["fit"]["repulsion"] == "auto"
    assert "repulsion" not in _written(sized(zbl=False))["fit"]


def test_same_basis_continues_the_potential_itself_without_ladder() -> None:
    """As initial_potential it would add no function, and with a ladder start from nothing."""
    start = StartPotential("parent_potential.yaml", same_basis=True)
    content = _written(sized(ladder_step=(100, 0.1)), start)
    assert content["potential"] == "parent_potential.yaml"
    assert "ladder_step" not in content["fit"]


def test_larger_basis_grows_from_the_potential() -> None:
    """The new basis is described in full and the old potential is its beginning."""
    start = StartPotential("parent_potential.yaml", same_basis=False)
    content = _written(sized(ladder_step=(100, 0.1)), start)
    assert content["potential"]["initial_potential"] == "parent_potential.yaml"
    assert content["potential"]["elements"] == ["Cu", "Ni"]
    assert content["fit"]["ladder_step"] == [100, 0.1]


def test_energy_based_weighting_is_pacemakers_policy() -> None:
    """With the seed of the fit, so that it drops the same structures again."""
    training = sized(weighting={"energy_based": {"DEup": 5.0}}, seed=3)
    weighting = _written(training)["fit"]["weighting"]
    assert weighting["type"] == "EnergyBasedWeightingPolicy"
    assert weighting["DEup"] == 5.0
    assert weighting["seed"] == 3


def test_early_stopping_comes_with_its_patience_only() -> None:
    """Patience alone means nothing to pacemaker, so it isn't written alone."""
    never = sized(min_relative_train_loss_per_iter=None)
    assert "early_stopping_patience" not in _written(never)["fit"]
    fit = _written(sized(min_relative_train_loss_per_iter=1e-5))["fit"]
    assert fit["min_relative_train_loss_per_iter"] == 1e-5
    assert fit["early_stopping_patience"] == 100


def test_pacemaker_never_stops_by_its_test_loss() -> None:
    """It raises where that has not fallen in the evaluation after the minimiser has ended."""
    fit = _written(sized(min_relative_test_loss_per_iter=1e-5))["fit"]
    assert "min_relative_test_loss_per_iter" not in fit


def test_overrides_are_merged_deeply_and_last() -> None:
    """One key changes, its neighbours stay."""
    overrides = {"fit": {"optimizer": "L-BFGS-B", "loss": {"L1_coeffs": 0.5}}}
    fit = _written(sized(overrides=overrides, max_iter=1000))["fit"]
    assert fit["optimizer"] == "L-BFGS-B"
    assert fit["loss"]["L1_coeffs"] == 0.5
    assert fit["loss"]["L2_coeffs"] == 1e-10
    assert fit["maxiter"] == 1000


def test_numbers_survive_the_yaml() -> None:
    """A dump that writes 1e-08 would be read as text by YAML 1.1 readers."""
    loss = _written(sized(l1_coeffs=1e-8, w0_rad=3e-12))["fit"]["loss"]
    assert loss["L1_coeffs"] == 1e-8
    assert loss["w0_rad"] == 3e-12


def test_elements_that_look_like_yaml_words_stay_elements() -> None:
    """Y, N and No are elements, not booleans."""
    data = TrainingData(("N", "No", "Y"), DATA.train, DATA.test, {"N": 1.0, "No": 2.0, "Y": 3.0})
    content = yaml.safe_load(dump_input(build_input(sized(), data)))
    assert content["potential"]["elements"] == ["N", "No", "Y"]
    assert content["data"]["reference_energy"] == {"N": 1.0, "No": 2.0, "Y": 3.0}


def test_noise_makes_a_fit_depend_on_its_seed() -> None:
    """Pacemaker starts from zero otherwise, whatever the seed."""
    for noise, found in ((0.0, {None}), (0.1, {"random"})):
        potential = _written(sized(start_noise=noise))["potential"]
        assert isinstance(potential, dict)
        blocks = [b for b in potential["functions"].values() if isinstance(b, dict)]
        assert {block.get("coefs_init") for block in blocks} == found
