"""What a generation takes over from earlier ones: the split, reference energies, a potential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlip_job.errors import ConfigError
from mlip_job.naming import generation_name
from mlip_job.training.pacemaker.basis import check_growth_budget, potential_section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.config import TrainingConfig
    from mlip_job.registry import Manifest, Registry


@dataclass(frozen=True)
class Lineage:
    """The published generations that a new one builds upon.

    Attributes
    ----------
    dataset
        The nearest earlier one: its split and reference energies are inherited, so that test
        structures stay test structures even where the fit starts from nothing.
    potential
        The one whose potential the fit starts from; none where it is a linear fit, which is made
        anew on all data.
    """

    dataset: Manifest | None
    potential: Manifest | None


def find_lineage(registry: Registry, training: TrainingConfig, generation: int) -> Lineage:
    """Return what `generation` builds upon.

    Raises
    ------
    ConfigError
        If the generation to start from is not published, or does not come before.
    """
    earlier = [n for n in registry.numbers() if n < generation]
    start = None if training.is_linear else _start_number(training.start_from, generation)
    if start is not None and start >= generation:
        raise ConfigError(
            f"training.start_from is {start}: {generation_name(generation)} can only start from "
            "an earlier generation"
        )
    if start is not None and start not in earlier:
        known = ", ".join(map(generation_name, earlier)) or "none"
        raise ConfigError(
            f"{generation_name(generation)} is to start from {generation_name(start)}, which is "
            f"not published (published before it: {known})",
            hint="publish that one first, or set training.start_from to one that is, or to none",
        )
    return Lineage(
        dataset=registry.get(earlier[-1]) if earlier else None,
        potential=registry.get(start) if start is not None else None,
    )


def start_mode(
    training: TrainingConfig, elements: Sequence[str], parent: Manifest
) -> Literal["continue", "extend"]:
    """Decide how a fit can start from a potential: with the same basis, or growing it.

    Raises
    ------
    ConfigError
        If the parent's basis is no part of the new one; each difference is named.
    """
    basis = potential_section(training, elements)
    if basis == parent.basis:
        return "continue"
    obstacles = _obstacles(basis, parent.basis)
    if obstacles:
        raise ConfigError(
            f"the fit can't start from {generation_name(parent.generation)}, whose basis is no "
            f"part of the new one: {'; '.join(obstacles)}",
            hint="undo that, or set training.start_from: none",
        )
    if set(basis["elements"]) != set(parent.basis["elements"]):
        check_growth_budget(training, len(basis["elements"]))
    return "extend"


def functions_of(parent: Manifest | None) -> int | None:
    """Return the functions per element of a parent's basis."""
    if parent is None:
        return None
    return int(parent.basis["functions"]["number_of_functions_per_element"])


def _start_number(start_from: str | int, generation: int) -> int | None:
    if start_from == "none" or (start_from == "previous" and generation == 1):
        return None
    return generation - 1 if start_from == "previous" else int(start_from)


def _obstacles(basis: Mapping[str, Any], parent: Mapping[str, Any]) -> list[str]:
    """Name what keeps a basis from being an extension of its parent's."""
    obstacles = []
    if lost := sorted(set(parent["elements"]) - set(basis["elements"])):
        obstacles.append(f"the data no longer has {', '.join(lost)}")
    old, new = (b["bonds"]["ALL"]["rcut"] for b in (parent, basis))
    if old != new:
        obstacles.append(f"the cutoff is {new:g} Å instead of {old:g} Å")
    elif basis["bonds"] != parent["bonds"]:
        obstacles.append("the radial basis (potential.bonds) is another")
    if basis["embeddings"] != parent["embeddings"]:
        obstacles.append("the embedding (training.ndensity) is another")
    old, new = (b["functions"]["number_of_functions_per_element"] for b in (parent, basis))
    if new < old:
        obstacles.append(f"functions_per_element is {new}, less than {old}")
    return obstacles
