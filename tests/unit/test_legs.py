"""What pacemaker is started with to go on from any point of a fit."""

from __future__ import annotations

from typing import Any

import pytest

from mlip_job.training.checkpoint import FitPosition
from mlip_job.training.pacemaker.basis import potential_section
from mlip_job.training.pacemaker.input import (
    Leg,
    StartPotential,
    TrainingData,
    build_input,
    legs_from,
)
from mlip_job.training.pacemaker.tables import Offset
from tests.trainings import sized

DATA = TrainingData(("Cu",), ("train.gz",), ("test.gz",), {"Cu": -3.7})
SECTION = potential_section(sized(), ["Cu"])


def _input(start: StartPotential | None = None, **training: Any) -> dict[str, Any]:
    return build_input(sized(**training), DATA, start)


def _legs(content: dict[str, Any], **position: Any) -> tuple[Leg, ...]:
    place = FitPosition(**{"ladder_step": 0, "step_done": False, "last_step": True} | position)
    return legs_from(place, content, SECTION, "checkpoint.yaml")


def test_a_single_shot_fit_does_what_is_left() -> None:
    """From the checkpoint, with the same everything but the number of iterations."""
    content = _input(ladder_step=None)
    (leg,) = _legs(content, iteration=40)
    fit = content["fit"] | {"maxiter": 60}
    assert leg.content == content | {"potential": "checkpoint.yaml", "fit": fit}
    assert leg.offset == Offset(0, 40)
    assert not leg.partial
    assert not leg.is_ladder


def test_a_single_shot_fit_that_is_through_still_ends() -> None:
    """Pacemaker evaluates and puts the ZBL core on; a lower max_iter than before is no error."""
    for iteration in (100, 300):
        (leg,) = _legs(_input(ladder_step=None), iteration=iteration)
        assert leg.content["fit"]["maxiter"] == 0
        assert leg.content["fit"]["repulsion"] == "auto"


def test_between_two_steps_the_ladder_is_climbed_on() -> None:
    """One leg, whose first step is the next one of the fit."""
    content = _input(ladder_step=20)
    (climb,) = _legs(content, ladder_step=2, iteration=100, step_done=True, last_step=False)
    start = {**SECTION, "initial_potential": "checkpoint.yaml"}
    assert climb.content == content | {"potential": start}
    assert climb.offset == Offset(3)
    assert climb.is_ladder
    assert not climb.partial


def test_within_a_step_it_is_finished_before_the_ladder_goes_on() -> None:
    """Pacemaker starts a ladder only between steps; the ZBL core belongs on the last of them."""
    content = _input(ladder_step=20)
    finish, climb = _legs(content, ladder_step=2, iteration=30, last_step=False)
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
    (leg,) = _legs(_input(ladder_step=20), ladder_step=4, iteration=30, step_done=done)
    assert leg.content["potential"] == "checkpoint.yaml"
    assert leg.content["fit"]["maxiter"] == (0 if done else 70)
    assert leg.content["fit"]["repulsion"] == "auto"
    assert "ladder_step" not in leg.content["fit"]
    assert leg.offset == Offset(4, 30)
    assert not leg.partial


def test_a_fit_that_grows_a_parent_is_a_ladder() -> None:
    """Also without a step of its own: pacemaker climbs from the parent to the new basis."""
    parent = StartPotential("parent.yaml", same_basis=False)
    assert Leg(_input(parent, ladder_step=None)).is_ladder
    assert not Leg(_input(StartPotential("parent.yaml", same_basis=True))).is_ladder


def test_cycles_are_not_resumable() -> None:
    """The best of them is only known to the start that did them all."""
    assert Leg(_input()).resumable
    assert Leg(_input(overrides={"fit": {"fit_cycles": 1}})).resumable
    assert not Leg(_input(overrides={"fit": {"fit_cycles": 3}})).resumable
