"""The size of the basis: from the data, from the parent, or as configured."""

from __future__ import annotations

import pytest

from mlip_job.config import TrainingConfig
from mlip_job.training.pacemaker.basis import check_basis_budget
from mlip_job.training.size import DataSize, choose_size, with_size

AUTO = TrainingConfig()
MANY = DataSize(energies=10_000, forces=1_000_000, elements=1)


def _auto(energies: int, forces: int, elements: int = 1) -> int:
    return choose_size(AUTO, DataSize(energies, forces, elements), None).functions_per_element


def test_few_values_determine_few_functions() -> None:
    """105 strained copper structures, whose forces mostly vanish: 300 functions overfit."""
    assert _auto(energies=94, forces=88) == 45


def test_many_values_are_limited_by_the_cost() -> None:
    """A million atoms get hardly more than the 14,000 of germanium."""
    assert _auto(MANY.energies, MANY.forces) == 1000


def test_more_values_never_give_fewer_functions() -> None:
    """From one structure to millions."""
    sizes = [_auto(10**n, 3 * 10**n) for n in range(7)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("structures", [1, 20, 1000, 100_000])
def test_every_combination_of_elements_has_a_function(elements: int, structures: int) -> None:
    """Pacemaker fails deep in the fit otherwise; and all functions together stay affordable."""
    functions = _auto(structures, 60 * structures, elements)
    check_basis_budget(TrainingConfig(functions_per_element=functions), elements)
    assert functions * elements <= 2400


def test_a_parent_is_kept_until_the_data_determine_clearly_more() -> None:
    """A slightly larger basis would cost the start from the parent's own."""
    data = DataSize(energies=100, forces=2400, elements=1)
    fresh = choose_size(AUTO, data, None)
    assert (fresh.functions_per_element, fresh.chosen) == (218, "automatic")
    kept = choose_size(AUTO, data, 200)
    assert (kept.functions_per_element, kept.chosen) == (200, "inherited")
    grown = choose_size(AUTO, data, 145)
    assert (grown.functions_per_element, grown.chosen) == (218, "automatic")
    larger = choose_size(AUTO, data, 400)
    assert larger.functions_per_element == 400


def test_a_number_is_taken_as_it_is() -> None:
    """A parent or other data make no difference."""
    size = choose_size(TrainingConfig(functions_per_element=77), MANY, 300)
    assert (size.functions_per_element, size.chosen, size.warning) == (77, "configured", None)


def test_a_number_that_the_data_can_not_determine_is_warned_of() -> None:
    """With the number that fits."""
    asked = TrainingConfig(functions_per_element=300)
    size = choose_size(asked, DataSize(energies=94, forces=88, elements=1), None)
    assert size.functions_per_element == 300
    assert size.warning is not None
    assert "300: more than 94 energies and 88 force components of 1 element" in size.warning
    assert "45 would fit" in size.warning


def test_the_configuration_is_used_with_the_number() -> None:
    """Wherever a basis is made; configurations of older checkpoints have theirs already."""
    size = choose_size(AUTO, DataSize(energies=94, forces=88, elements=1), None)
    assert with_size(AUTO, size).functions_per_element == 45
    old = TrainingConfig(functions_per_element=300)
    assert with_size(old, None) is old
