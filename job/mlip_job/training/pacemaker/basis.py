"""The ACE basis of a TrainingConfig: pacemaker's ``potential`` section."""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING, Any, Literal

from mlip_job.config.training import deep_merge
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.config import TrainingConfig

ARITIES = ("UNARY", "BINARY", "TERNARY", "QUATERNARY", "QUINARY")


# Those of pacemaker's own template (`pacemaker -t`, pyace/data/input_template.yaml), but for one
# more angular momentum and radial function of single elements: better for semiconductors
# (docs/performance.md).
DEFAULT_NRADMAX: Mapping[str, tuple[int, ...]] = {
    "UNARY": (15, 7, 5, 3, 2, 2),
    "BINARY": (15, 6, 3, 2, 2, 1),
    "TERNARY": (15, 3, 3, 2, 1),
    "ALL": (15, 3, 2, 1, 1),
}

DEFAULT_LMAX: Mapping[str, tuple[int, ...]] = {
    "UNARY": (0, 4, 4, 3, 2, 1),
    "BINARY": (0, 3, 2, 1, 1, 0),
    "TERNARY": (0, 2, 2, 1, 1),
    "ALL": (0, 2, 2, 1, 1),
}


# Of the densities: pacemaker's template for one and two, published inputs for eight.
_POWERS = (1, 0.5, 0.75, 0.25, 0.125, 0.375, 0.875, 2)
_FUNCTIONS_UP_TO_THREE_BODIES = 4


def potential_section(training: TrainingConfig, elements: Sequence[str]) -> dict[str, Any]:
    """Return the ``potential`` section of input.yaml for a fit from scratch, with overrides.

    Raises
    ------
    ConfigError
        If the basis is too small for the number of elements.
    """
    check_basis_budget(training, len(elements))
    section = {
        "deltaSplineBins": 0.001,
        "elements": sorted(elements),
        "embeddings": {"ALL": _embedding(training.ndensity)},
        "bonds": {
            "ALL": {
                "radbase": "SBessel",
                "radparameters": [5.25],
                "rcut": training.cutoff,
                "dcut": 0.01,
                "NameOfCutoffFunction": "cos",
            }
        },
        "functions": {
            "number_of_functions_per_element": _functions(training),
            **_orders(training, len(elements)),
        },
    }
    return deep_merge(section, training.overrides.get("potential", {}))


def start_mode(
    training: TrainingConfig,
    elements: Sequence[str],
    parent_basis: Mapping[str, Any],
    parent: str,
) -> Literal["continue", "extend"]:
    """Decide how a fit can start from a potential: with the same basis, or growing it.

    Raises
    ------
    ConfigError
        If the parent's basis is not a subset of the new one; the message names each difference.
    """
    basis = potential_section(training, elements)
    if basis == parent_basis:
        return "continue"
    obstacles = list(_obstacles(basis, parent_basis))
    if obstacles:
        raise ConfigError(
            f"the fit can't start from {parent}, whose basis is no part of the new one: "
            + "; ".join(obstacles),
            hint="undo that, or set training.start_from: none",
        )
    if set(basis["elements"]) != set(parent_basis["elements"]):
        check_growth_budget(training, len(basis["elements"]))
    return "extend"


def _obstacles(basis: Mapping[str, Any], parent: Mapping[str, Any]) -> Iterator[str]:
    """Name the settings that prevent a basis from extending its parent's."""
    if lost := sorted(set(parent["elements"]) - set(basis["elements"])):
        yield f"the data no longer has {', '.join(lost)}"
    old, new = (b["bonds"]["ALL"]["rcut"] for b in (parent, basis))
    if old != new:
        yield f"the cutoff is {new:g} Å instead of {old:g} Å"
    elif basis["bonds"] != parent["bonds"]:
        yield "the radial basis (potential.bonds) differs"
    if basis["embeddings"] != parent["embeddings"]:
        yield "the embedding (training.ndensity) differs"
    old, new = (b["functions"]["number_of_functions_per_element"] for b in (parent, basis))
    if new < old:
        yield f"functions_per_element is {new}, less than {old}"


def check_basis_budget(training: TrainingConfig, n_elements: int) -> None:
    """Reject a basis without functions for some combination of elements.

    Pacemaker gives each of the B blocks (one per central atom and set of neighbour elements)
    ``functions_per_element * n_elements // B`` functions
    (`pyace.multispecies_basisextension.create_multispecies_basis_config`); with none it fails
    deep in the fit.
    """
    smallest = smallest_budget(training, n_elements)
    if (functions := _functions(training)) < smallest:
        blocks = _number_of_blocks(training, n_elements)
        raise ConfigError(
            f"training.functions_per_element is {functions}: too small for "
            f"{n_elements} elements, whose {blocks} combinations need a function each",
            hint=f"the smallest that works is {smallest}; useful potentials have hundreds",
        )


def smallest_budget(training: TrainingConfig, n_elements: int) -> int:
    """Return the smallest number of functions per element that gives every block one."""
    return -(-_number_of_blocks(training, n_elements) // n_elements)


def check_growth_budget(training: TrainingConfig, n_elements: int) -> None:
    """Reject too few functions to grow a potential into new elements.

    The TensorFlow evaluator needs a function of three bodies for every element if any has one. The
    elements of the parent do; in the order in which pacemaker fills a block (``power_order``) it is
    the fourth function.
    """
    functions, blocks = _functions(training), _number_of_blocks(training, n_elements)
    if functions * n_elements // blocks < _FUNCTIONS_UP_TO_THREE_BODIES:
        smallest = -(-_FUNCTIONS_UP_TO_THREE_BODIES * blocks // n_elements)
        raise ConfigError(
            f"training.functions_per_element is {functions}: too small to "
            f"grow the potential to {n_elements} elements",
            hint=f"the smallest that works is {smallest}; or set training.start_from: none",
        )


def _functions(training: TrainingConfig) -> int:
    if training.functions_per_element == "auto":
        raise ValueError("functions_per_element is still auto: see training.size")
    return training.functions_per_element


def _embedding(ndensity: int) -> dict[str, Any]:
    """Return the embedding: a sum over the densities, each with its power."""
    return {
        "npot": "FinnisSinclairShiftedScaled",
        # Pairs of prefactor and exponent.
        "fs_parameters": [value for power in _POWERS[:ndensity] for value in (1, power)],
        "ndensity": ndensity,
    }


def _orders(training: TrainingConfig, n_elements: int) -> dict[str, dict[str, list[int]]]:
    """Return radial and angular limits by number of elements in a block."""
    nradmax: Mapping[str, tuple[int, ...]] = training.nradmax_by_orders or DEFAULT_NRADMAX  # type: ignore[assignment]
    lmax: Mapping[str, tuple[int, ...]] = training.lmax_by_orders or DEFAULT_LMAX  # type: ignore[assignment]
    possible = set(ARITIES[:n_elements])
    needed = possible & set(nradmax)
    if possible - set(nradmax) and "ALL" in nradmax:
        needed.add("ALL")
    return {
        arity: {
            "nradmax_by_orders": list(nradmax[arity]),
            "lmax_by_orders": list(lmax[arity]),
        }
        for arity in (*ARITIES, "ALL")
        if arity in needed
    }


def _number_of_blocks(training: TrainingConfig, n_elements: int) -> int:
    """Count the blocks: for r elements, n central ones times the sets of r - 1 others."""
    orders = _orders(training, n_elements)
    return sum(
        n_elements * comb(n_elements - 1, r - 1)
        for r, arity in enumerate(ARITIES[:n_elements], start=1)
        if arity in orders or "ALL" in orders
    )
