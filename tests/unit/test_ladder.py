"""How many steps a ladder has, and when it is said that they build graphs for too long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.cli.check import _configuration
from mlip_job.cli.options import Settings
from mlip_job.config import TrainingConfig
from mlip_job.naming import WorkFiles
from mlip_job.training.basis import potential_section
from mlip_job.training.ladder import LadderWatch, advice_beforehand, count_steps
from mlip_job.training.process import Progress
from tests.trainings import sized

if TYPE_CHECKING:
    from mlip_job.training.ladder import LadderStep

RUN = Path(__file__).parents[1] / "data" / "pacemaker" / "c_ladder"


@pytest.mark.parametrize(
    ("step", "sizes", "steps"),
    [
        (5, [15], 3),  # c_ladder: 5, 10, 15 functions
        (4, [15], 4),
        ((100, 0.1), [300], 3),
        ((100, 0.1), [2000], 18),  # 100 each up to 1000, then 1100, 1210, 1331, 1464, 1610, …
        (0.5, [8], 6),  # 1, 2, 3, 5, 7, 8: halves are rounded to even
        (10, [20, 5, 5], 2),  # each block grows by so many
        (10, [10], 1),
    ],
)
def test_steps_are_counted_as_pacemaker_takes_them(
    step: LadderStep, sizes: list[int], steps: int
) -> None:
    """A number, a fraction of what is there, or the larger of both; in every block."""
    target = {f"block {number}": size for number, size in enumerate(sizes)}
    assert count_steps(step, target, {}) == steps


@pytest.mark.pacemaker
@pytest.mark.parametrize("step", [3, 0.4, (4, 0.3)])
@pytest.mark.parametrize("elements", [("Cu",), ("Au", "Cu")])
def test_steps_are_as_many_as_pyace_makes(step: LadderStep, elements: tuple[str, ...]) -> None:
    """Its own functions, on a real basis of ours."""
    from pyace.basisextension import construct_bbasisconfiguration, get_actual_ladder_step
    from pyace.multispecies_basisextension import extend_multispecies_basis

    training = TrainingConfig(functions_per_element=12)
    target = construct_bbasisconfiguration(potential_section(training, elements))
    now = target.copy()
    now.funcspecs_blocks = []
    sizes = {block.block_name: len(block.funcspecs) for block in target.funcspecs_blocks}
    steps, total = 0, target.total_number_of_functions
    asked = list(step) if isinstance(step, tuple) else step
    while True:
        size = get_actual_ladder_step(asked, now.total_number_of_functions, total)
        now, extended = extend_multispecies_basis(now, target, "body_order", size, True)
        if not extended:
            break
        steps += 1
    assert count_steps(step, sizes, {}) == steps > 1


def test_a_ladder_on_top_of_a_potential_has_fewer() -> None:
    """What the parent has is not built again."""
    assert count_steps(5, {"Cu": 15}, {"Cu": 6}) == 2
    assert count_steps(5, {"Cu": 15}, {"Cu": 15}) == 0


@pytest.fixture
def files(tmp_path: Path) -> WorkFiles:
    """Return a work directory as it is in the second of three steps."""
    files = WorkFiles(tmp_path)
    for path in (files.ladder_potential(0), files.target_potential):
        path.write_bytes((RUN / path.name).read_bytes())
    return files


def _heard(files: WorkFiles, timings: dict[str, float], step: LadderStep | None = 5) -> list[str]:
    heard: list[str] = []
    watch = LadderWatch(files, step, heard.append)
    for phase in ("fitting", "building_graph", "building_graph"):
        watch.observe(Progress(phase, 1.0, timings_s=timings))
    return heard


def test_a_ladder_that_will_mostly_build_graphs_is_told_once(files: WorkFiles) -> None:
    """With what it takes, and what to change."""
    timings = {"building_graph": 21.0, "building_test_graph": 8.0, "fitting": 4.0}
    assert _heard(files, timings) == [
        "note: the first of 3 ladder steps took 29 s to build its graphs and 4 s to fit, and each "
        "step builds them anew, 87 s or more in all: training.ladder_step: null, or larger steps, "
        "builds fewer; training.validation_fraction: 0 spares those of the validation part"
    ]
    (without,) = _heard(files, {"building_graph": 21.0, "fitting": 4.0})
    assert without.endswith("builds fewer")


@pytest.mark.parametrize(
    "timings",
    [
        {"building_graph": 21.0, "fitting": 22.0},  # the fit takes longer
        {"building_graph": 10.0, "fitting": 1.0},  # half a minute in all
    ],
)
def test_where_it_does_not_matter_nothing_is_said(
    files: WorkFiles, timings: dict[str, float]
) -> None:
    """Nor where there is no ladder, or its files can't be read."""
    assert _heard(files, timings) == []
    slow = {"building_graph": 100.0, "fitting": 1.0}
    assert _heard(files, slow, step=None) == []
    files.target_potential.write_text("species: [")
    assert _heard(files, slow) == []


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("null", "(family cu)"),
        ("[100, 0.1]", "a ladder of up to 3 steps, of which"),
        ("300", "(family cu)"),
    ],
)
def test_check_says_how_many_steps_there_may_be(tmp_path: Path, step: str, expected: str) -> None:
    """Before anything is computed; a ladder of one step is none."""
    (tmp_path / "mlip-job.yaml").write_text(
        "family: cu\nstorage: {url: store}\n"
        "training: {linear_start: false, functions_per_element: 300, max_iter: 9, "
        f"ladder_step: {step}}}\n"
    )
    settings = Settings(config_path=tmp_path / "mlip-job.yaml")
    text = _configuration(settings, settings.config())
    assert expected in text
    assert ("ladder" in text) == ("ladder" in expected)


NOTHING_TO_SAY = None
FROM_ZERO: dict[str, Any] = {"linear_start": False, "ladder_step": (100, 0.1)}
SAID = (
    "gen_01 is fitted by a ladder of up to 3 steps, of which each builds its graphs anew: "
    "training.ladder_step: null, or larger steps, builds fewer"
)


@pytest.mark.parametrize(
    ("settings", "generation", "expected"),
    [
        (FROM_ZERO, 1, SAID),
        (FROM_ZERO | {"ladder_step": None}, 1, NOTHING_TO_SAY),
        (FROM_ZERO | {"ladder_step": 300}, 1, NOTHING_TO_SAY),
        (FROM_ZERO | {"functions_per_element": "auto"}, 1, NOTHING_TO_SAY),  # not known by then
        ({}, 1, NOTHING_TO_SAY),  # a linear fit replaces the ladder
        (FROM_ZERO, 2, NOTHING_TO_SAY),  # it starts from its parent's basis, or grows that
        (FROM_ZERO | {"start_from": 1}, 2, NOTHING_TO_SAY),
        (FROM_ZERO | {"start_from": "none"}, 2, SAID.replace("gen_01", "gen_02")),
    ],
)
def test_what_is_said_before_a_fit_is_submitted(
    settings: dict[str, Any], generation: int, expected: str | None
) -> None:
    """Only of one from nothing: what a parent leaves to be done is not known by then."""
    assert advice_beforehand(sized(**settings), generation) == expected
