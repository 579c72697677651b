"""A fit starts from an earlier generation only if its basis is a part of the new one."""

from __future__ import annotations

from typing import Any

import pytest

from mlip_job.config import JobConfig, TrainingConfig
from mlip_job.errors import ConfigError
from mlip_job.generation.ensemble import require_different_members
from mlip_job.generation.lineage import find_lineage
from mlip_job.registry import Manifest
from mlip_job.training.pacemaker.input import potential_section, start_mode
from tests.manifests import make_manifest
from tests.trainings import sized


class _Published:
    """The two methods of a registry that lineage uses."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = list(numbers)

    def numbers(self) -> list[int]:
        return self._numbers

    def get(self, generation: int) -> Manifest:
        return make_manifest(generation)


def _lineage(generation: int, published: tuple[int, ...], **training: Any) -> tuple[Any, Any]:
    lineage = find_lineage(_Published(*published), sized(**training), generation)  # type: ignore[arg-type]
    return tuple(m.generation if m else None for m in (lineage.dataset, lineage.potential))


@pytest.mark.parametrize(
    ("generation", "published", "training", "inherited"),
    [
        (1, (), {}, (None, None)),
        (3, (1, 2, 5), {}, (2, 2)),
        (3, (1, 2), {"start_from": "none"}, (2, None)),  # test structures stay test structures
        (3, (1, 2), {"start_from": 1}, (2, 1)),
    ],
)
def test_data_and_potential_are_inherited(
    generation: int,
    published: tuple[int, ...],
    training: dict[str, Any],
    inherited: Any,
) -> None:
    assert _lineage(generation, published, **training) == inherited


@pytest.mark.parametrize(
    ("start_from", "message"),
    [
        ("previous", "gen_03, which is not published"),
        (3, "gen_03, which is not published"),
        (4, "can only start from an earlier generation"),
        (5, "can only start from an earlier generation"),
    ],
)
def test_a_parent_is_published_and_earlier(start_from: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _lineage(4, (1, 2), start_from=start_from)
    assert "gen_01, gen_02" in str(caught.value) or start_from in (4, 5)


def _mode(elements: list[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    basis = potential_section(sized(**old), ["Cu", "Ni"])
    return start_mode(sized(**new), elements, basis, "gen_01")


def test_same_basis_is_continued() -> None:
    assert _mode(["Cu", "Ni"], {"max_iter": 5}, {"max_iter": 9, "force_weight": 1}) == "continue"


@pytest.mark.parametrize(
    ("elements", "new"),
    [(["Cu", "Ni"], {"functions_per_element": 400}), (["Cu", "Ni", "Zn"], {})],
)
def test_larger_basis_is_an_extension(elements: list[str], new: dict[str, Any]) -> None:
    """More functions or more elements extend the old potential."""
    assert _mode(elements, {}, new) == "extend"


@pytest.mark.parametrize(
    ("elements", "new", "reason"),
    [
        (["Cu", "Ni"], {"cutoff": 6.0}, "the cutoff is 6 Å instead of 5.5 Å"),
        (["Cu", "Ni"], {"functions_per_element": 200}, "functions_per_element is 200, less than"),
        (["Cu", "Ni"], {"ndensity": 1}, "ndensity"),
        (["Cu"], {}, "no longer has Ni"),
        (
            ["Cu", "Ni"],
            {"overrides": {"potential": {"bonds": {"ALL": {"dcut": 0.5}}}}},
            "potential.bonds",
        ),
    ],
)
def test_other_bases_are_rejected_with_the_difference(
    elements: list[str], new: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _mode(elements, {}, new)
    assert reason in str(caught.value)
    assert "start_from: none" in str(caught.value)


def test_growing_into_new_elements_needs_functions_for_them() -> None:
    """With too few, TensorFlow fails deep in the fit: observed with 6 functions, not with 8."""
    basis = potential_section(TrainingConfig(functions_per_element=6), ["Cu"])
    with pytest.raises(ConfigError, match="smallest that works is 8"):
        start_mode(TrainingConfig(functions_per_element=6), ["Au", "Cu"], basis, "gen_01")
    assert (
        start_mode(TrainingConfig(functions_per_element=8), ["Au", "Cu"], basis, "gen_01")
        == "extend"
    )


def test_a_trainer_starts_from_its_own_potentials() -> None:
    grace = {"trainer": "grace-fs", "zbl": False, "linear_start": False}
    with pytest.raises(ConfigError, match="is a potential of pacemaker, from which grace-fs"):
        _lineage(2, (1,), **grace)
    assert _lineage(2, (1,), **grace, start_from="none") == (1, None)


def test_an_ensemble_of_gracemaker_starts_from_nothing() -> None:
    """From a parent all members would be equal."""

    def config(**training: Any) -> JobConfig:
        values = {"family": "cu", "database": {"url": "a.db"}, "storage": {"url": "store"}}
        return JobConfig.model_validate(values | {"training": training})

    require_different_members(config(trainer="grace-fs"), 1)
    require_different_members(config(trainer="grace-fs", start_from="none"), 2)
    require_different_members(config(), 2)
    with pytest.raises(ConfigError, match="would start from the same coefficients"):
        require_different_members(config(trainer="grace-fs"), 2)
