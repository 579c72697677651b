"""The basis that is asked for is the basis that pacemaker builds."""

from __future__ import annotations

import logging

import pytest

from mlip_job.config import TrainingConfig
from mlip_job.errors import ConfigError
from mlip_job.training.pacemaker.basis import check_basis_budget, potential_section
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
    """Pacemaker itself is asked what the smallest accepted budget yields."""
    training = TrainingConfig(functions_per_element=SMALLEST[n_elements])
    blocks = n_elements * 2 ** (n_elements - 1)
    assert _functions_that_pacemaker_builds(training, n_elements) == blocks


@pytest.mark.parametrize("n_elements", [2, 3, 4, 5])
def test_smaller_basis_is_refused_with_the_smallest_that_works(n_elements: int) -> None:
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
