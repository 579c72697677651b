"""The input files of pacemaker: the basis, its size, the whole fit and its continuation."""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlip_job.config import TrainingConfig
from mlip_job.errors import ConfigError
from mlip_job.training.pacemaker.input import (
    Segment,
    StartPotential,
    build_input,
    check_basis_budget,
    potential_section,
    remaining_segments,
)
from mlip_job.training.pacemaker.tables import Offset
from mlip_job.training.size import DataSize, choose_size, with_size
from mlip_job.training.summary import kappa
from mlip_job.training.trainer import FitData, FitPosition, dump_input
from tests.trainings import sized

ELEMENTS = ("Al", "Cu", "Fe", "Ni", "Zn")
SMALLEST = {1: 1, 2: 2, 3: 4, 4: 8, 5: 16}


def _functions_that_pacemaker_builds(training: TrainingConfig, n_elements: int) -> int:
    from pyace.basisextension import construct_bbasisconfiguration

    logging.getLogger("pyace").setLevel(logging.ERROR)
    section = potential_section(training, ELEMENTS[:n_elements])
    return int(construct_bbasisconfiguration(section).total_number_of_functions)


@pytest.mark.parametrize("n_elements", [1, 2, 3, 4, 5])
def test_smallest_basis_is_accepted_and_gives_every_block_a_function(n_elements: int) -> None:
    """Compared with pacemaker's own construction of the smallest accepted basis."""
    training = TrainingConfig(functions_per_element=SMALLEST[n_elements])
    blocks = n_elements * 2 ** (n_elements - 1)
    assert _functions_that_pacemaker_builds(training, n_elements) == blocks


@pytest.mark.parametrize("n_elements", [2, 3, 4, 5])
def test_smaller_basis_is_rejected_with_the_smallest_that_works(n_elements: int) -> None:
    """Below it pacemaker would build no function at all and fail deep in the fit."""
    training = TrainingConfig(functions_per_element=SMALLEST[n_elements] - 1)
    with pytest.raises(ConfigError, match=f"smallest that works is {SMALLEST[n_elements]}"):
        potential_section(training, ELEMENTS[:n_elements])


def test_blocks_that_are_not_described_need_no_functions() -> None:
    """With UNARY and BINARY orders alone, three elements have 9 blocks instead of 12."""
    orders = {"UNARY": (3,), "BINARY": (2,)}
    zeros = {"UNARY": (0,), "BINARY": (0,)}
    training = TrainingConfig(
        functions_per_element=3, nradmax_by_orders=orders, lmax_by_orders=zeros
    )
    check_basis_budget(training, 3)
    assert _functions_that_pacemaker_builds(training, 3) == 9
    with pytest.raises(ConfigError, match="smallest that works is 3"):
        check_basis_budget(training.model_copy(update={"functions_per_element": 2}), 3)


def test_section_describes_as_many_elements_as_there_are() -> None:
    """From unary to quinary: later arities appear when they can occur."""
    training = sized()

    def arities(n: int) -> set[str]:
        functions = potential_section(training, ELEMENTS[:n])["functions"]
        return set(functions) - {"number_of_functions_per_element"}

    assert arities(1) == {"UNARY"}
    assert arities(2) == {"UNARY", "BINARY"}
    assert arities(3) == {"UNARY", "BINARY", "TERNARY"}
    assert arities(4) == arities(5) == {"UNARY", "BINARY", "TERNARY", "ALL"}


def test_overrides_of_the_potential_are_part_of_the_basis() -> None:
    """A later generation compares its basis with this one, overrides included."""
    training = sized(overrides={"potential": {"bonds": {"ALL": {"dcut": 0.02}}}})
    bonds = potential_section(training, ["Cu"])["bonds"]["ALL"]
    assert bonds["dcut"] == 0.02
    assert bonds["rcut"] == 5.5


AUTO = TrainingConfig()
MANY = DataSize(energies=10_000, forces=1_000_000, elements=1)


def _auto(energies: int, forces: int, elements: int = 1) -> int:
    return choose_size(AUTO, DataSize(energies, forces, elements), None).functions_per_element


@pytest.mark.parametrize(
    ("energies", "forces", "functions"),
    [
        (94, 88, 45),  # strained copper, whose forces mostly vanish: 300 functions overfit
        (10_000, 1_000_000, 1000),  # limited by the cost: more improve hardly anything
    ],
)
def test_the_data_determine_the_size_of_the_basis(
    energies: int, forces: int, functions: int
) -> None:
    size = choose_size(AUTO, DataSize(energies, forces, elements=1), None)
    assert with_size(AUTO, size).functions_per_element == functions
    old = TrainingConfig(functions_per_element=300)
    assert with_size(old, None) is old


def test_more_values_never_give_fewer_functions() -> None:
    sizes = [_auto(10**n, 3 * 10**n) for n in range(7)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("structures", [1, 20, 1000, 100_000])
def test_every_combination_of_elements_has_a_function(elements: int, structures: int) -> None:
    """Otherwise pacemaker fails deep in the fit; the total cost stays limited."""
    functions = _auto(structures, 60 * structures, elements)
    check_basis_budget(TrainingConfig(functions_per_element=functions), elements)
    assert functions * elements <= 2400


def test_a_parent_is_kept_until_the_data_determine_clearly_more() -> None:
    """A slightly larger basis would lose the start from the parent's own."""
    data = DataSize(energies=100, forces=2400, elements=1)
    fresh = choose_size(AUTO, data, None)
    assert (fresh.functions_per_element, fresh.chosen) == (218, "automatic")
    kept = choose_size(AUTO, data, 200)
    assert (kept.functions_per_element, kept.chosen) == (200, "inherited")
    grown = choose_size(AUTO, data, 145)
    assert (grown.functions_per_element, grown.chosen) == (218, "automatic")
    larger = choose_size(AUTO, data, 400)
    assert larger.functions_per_element == 400


def test_a_configured_number_is_used_unchanged() -> None:
    size = choose_size(TrainingConfig(functions_per_element=77), MANY, 300)
    assert (size.functions_per_element, size.chosen, size.warning) == (77, "configured", None)


def test_a_number_that_the_data_do_not_determine_causes_a_warning() -> None:
    asked = TrainingConfig(functions_per_element=300)
    size = choose_size(asked, DataSize(energies=94, forces=88, elements=1), None)
    assert size.functions_per_element == 300
    assert size.warning is not None
    assert "300: more than 94 energies and 88 force components of 1 element" in size.warning
    assert "45 would fit" in size.warning


REVIEWED = Path(__file__).parents[1] / "data" / "pacemaker"
ACCEPT = os.environ.get("MLIP_JOB_TEST_ACCEPT")


def _data(
    elements: tuple[str, ...],
    train: tuple[str, ...],
    second: tuple[str, ...],
    reference_energies: dict[str, float],
) -> FitData:
    return FitData(elements, reference_energies, 9, 99, train, second)


DATA = _data(
    elements=("Cu", "Ni"),
    train=("dataset/train.pckl.gzip",),
    second=("dataset/test.pckl.gzip",),
    reference_energies={"Cu": -3.72, "Ni": -5.57},
)


def _written(training: TrainingConfig, start: StartPotential | None = None) -> dict[str, object]:
    content = yaml.safe_load(dump_input(build_input(training, DATA, start)))
    assert isinstance(content, dict)
    return content


PARENT, GROWN = (StartPotential("parent_potential.yaml", same_basis=same) for same in (True, False))

CONTINUED = {
    "start_noise": 0.1,
    "ladder_step": 0.2,
    "zbl": False,
    "overrides": {"fit": {"min_relative_train_loss_per_iter": None}},
}

EVERYTHING = {
    "functions_per_element": 700,
    "seed": 3,
    "cutoff": 6.0,
    "energy_weight": 5.0,
    "force_weight": 10.0,
    "max_iter": 500,
    "ladder_step": (100, 0.1),
    "zbl": True,
    "batch_size": 17,
    "ndensity": 2,
    "nradmax_by_orders": {"UNARY": (10, 5), "ALL": (8, 4)},
    "lmax_by_orders": {"UNARY": (0, 3), "ALL": (0, 2)},
    "weighting": {"energy_based": {"DEup": 5.0}},
    "early_stopping_patience": 50,
    "overrides": {
        "fit": {
            "optimizer": "L-BFGS-B",
            "ladder_type": "power_order",
            "loss": {
                "L1_coeffs": 0.5,
                "L2_coeffs": 3e-7,
                "w0_rad": 1e-9,
                "w1_rad": 2e-9,
                "w2_rad": 3e-9,
            },
            "weighting": {"wlow": 0.5},
            "callbacks": ["other.one"],
        },
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
        ("continued", CONTINUED, PARENT, False),
        ("grown", {"start_noise": 0.1, "ladder_step": 50}, GROWN, False),
    ],
)
def test_input_is_the_reviewed_one(
    name: str, training: dict[str, object], start: StartPotential | None, validation: bool
) -> None:
    """Compare with the reviewed file; MLIP_JOB_TEST_ACCEPT=1 accepts a change."""
    data = replace(DATA, validation=frozenset({3} if validation else ()))
    text = dump_input(build_input(sized(**training), data, start))
    path = REVIEWED / f"input-{name}.yaml"
    if ACCEPT:
        path.write_text(text, encoding="utf-8")
    reviewed = path.read_text(encoding="utf-8")
    lines = difflib.unified_diff(reviewed.splitlines(), text.splitlines(), "reviewed", "now")
    difference = "\n".join(lines)
    assert not difference, f"{path} (MLIP_JOB_TEST_ACCEPT=1 accepts this):\n{difference}"


def test_the_input_names_all_files() -> None:
    """An empty list for an absent test set would be an error."""
    data = _data(("Cu",), ("a.pckl.gzip", "b.pckl.gzip"), (), {"Cu": -3.72})
    files = build_input(sized(), data)["data"]
    assert files["filename"] == ["a.pckl.gzip", "b.pckl.gzip"]
    assert "test_filename" not in files


@pytest.mark.parametrize(
    ("energy", "force", "expected"), [(1, 100, 100 / 101), (1, 1, 0.5), (1, 0, 0), (0, 1, 1)]
)
def test_kappa_of_the_two_weights(energy: float, force: float, expected: float) -> None:
    assert kappa(energy, force) == pytest.approx(expected, rel=1e-15)
    fit = _written(sized(energy_weight=energy, force_weight=force))["fit"]
    assert fit["loss"]["kappa"] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("step", "written"), [((100, 0.1), [100, 0.1]), (5, 5), (0.2, 0.2), ((0.1,), [0.1])]
)
def test_ladder_steps_keep_their_form(step: object, written: object) -> None:
    """Counts are written as integers: pacemaker accepts 100.0 for neither kind."""
    fit = _written(sized(ladder_step=step))["fit"]
    assert fit["ladder_step"] == written
    assert repr(fit["ladder_step"]) == repr(written)
    assert fit["ladder_type"] == "body_order"


def test_elements_that_look_like_yaml_words_stay_elements() -> None:
    data = _data(("N", "No", "Y"), DATA.train, DATA.second, {"N": 1.0, "No": 2.0, "Y": 3.0})
    content = yaml.safe_load(dump_input(build_input(sized(), data)))
    assert content["potential"]["elements"] == ["N", "No", "Y"]
    assert content["data"]["reference_energy"] == {"N": 1.0, "No": 2.0, "Y": 3.0}


DATA_OF_COPPER = _data(("Cu",), ("train.gz",), ("test.gz",), {"Cu": -3.7})
SECTION = potential_section(sized(), ["Cu"])


def _input(start: StartPotential | None = None, **training: Any) -> dict[str, Any]:
    return build_input(sized(**training), DATA_OF_COPPER, start)


def _segments(content: dict[str, Any], **position: Any) -> tuple[Segment, ...]:
    place = FitPosition(**{"ladder_step": 0, "step_done": False, "last_step": True} | position)
    return remaining_segments(place, content, SECTION, "checkpoint.yaml")


def test_a_single_shot_fit_does_the_remaining_iterations() -> None:
    """From the checkpoint, with only the number of iterations changed."""
    content = _input(ladder_step=None)
    (segment,) = _segments(content, iteration=40)
    fit = content["fit"] | {"maxiter": 60}
    assert segment.content == content | {"potential": "checkpoint.yaml", "fit": fit}
    assert segment.offset == Offset(0, 40)
    assert not segment.partial
    assert not segment.is_ladder


def test_a_finished_single_shot_fit_still_runs_its_last_stage() -> None:
    """Pacemaker evaluates and adds the ZBL core; reducing max_iter is no error."""
    for iteration in (100, 300):
        (segment,) = _segments(_input(ladder_step=None), iteration=iteration)
        assert segment.content["fit"]["maxiter"] == 0
        assert segment.content["fit"]["repulsion"] == "auto"


def test_between_two_steps_the_ladder_resumes() -> None:
    """One segment, whose first step is the next one of the fit."""
    content = _input(ladder_step=20)
    (climb,) = _segments(content, ladder_step=2, iteration=100, step_done=True, last_step=False)
    start = {**SECTION, "initial_potential": "checkpoint.yaml"}
    assert climb.content == content | {"potential": start}
    assert climb.offset == Offset(3)
    assert climb.is_ladder
    assert not climb.partial


def test_an_interrupted_step_is_finished_before_the_ladder_resumes() -> None:
    """Pacemaker starts a ladder only between steps; the ZBL core is added in the last one."""
    content = _input(ladder_step=20)
    finish, climb = _segments(content, ladder_step=2, iteration=30, last_step=False)
    assert finish.content["potential"] == "checkpoint.yaml"
    assert finish.content["fit"]["maxiter"] == 70
    assert not {"ladder_step", "ladder_type", "repulsion"} & finish.content["fit"].keys()
    assert finish.offset == Offset(2, 30)
    assert finish.partial
    assert not finish.is_ladder
    assert climb.content["potential"]["initial_potential"] == "checkpoint.yaml"
    assert climb.content["fit"] == content["fit"]
    assert climb.offset == Offset(3)


@pytest.mark.parametrize("done", [False, True])
def test_the_last_step_of_a_ladder_is_a_single_shot_fit(done: bool) -> None:
    """With all functions there, a ladder would stop before its first iteration."""
    (segment,) = _segments(_input(ladder_step=20), ladder_step=4, iteration=30, step_done=done)
    assert segment.content["potential"] == "checkpoint.yaml"
    assert segment.content["fit"]["maxiter"] == (0 if done else 70)
    assert segment.content["fit"]["repulsion"] == "auto"
    assert "ladder_step" not in segment.content["fit"]
    assert segment.offset == Offset(4, 30)
    assert not segment.partial


def test_a_fit_that_grows_a_parent_is_a_ladder() -> None:
    """Also without configured steps: pacemaker grows the basis from the parent to the new one."""
    parent = StartPotential("parent.yaml", same_basis=False)
    assert Segment(_input(parent, ladder_step=None)).is_ladder
    assert not Segment(_input(StartPotential("parent.yaml", same_basis=True))).is_ladder


def test_cycles_are_not_resumable() -> None:
    """The best of them is only known to the process that did them all."""
    assert Segment(_input()).resumable
    assert Segment(_input(overrides={"fit": {"fit_cycles": 1}})).resumable
    assert not Segment(_input(overrides={"fit": {"fit_cycles": 3}})).resumable
