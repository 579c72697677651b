"""Lineage of a generation: the published ones that it builds on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from mlip_job.config import TrainingConfig
    from mlip_job.registry import Manifest, Registry


@dataclass(frozen=True)
class Lineage:
    """The published generations that a new one builds on.

    Attributes
    ----------
    dataset
        The nearest earlier generation. Its split and reference energies are inherited, so that
        test structures stay in the test set even if the fit starts from scratch.
    potential
        The parent, whose potential the fit starts from; None for a linear fit.
    """

    dataset: Manifest | None
    potential: Manifest | None

    @property
    def functions(self) -> int | None:
        """Functions per element of the parent's potential."""
        if self.potential is None:
            return None
        return int(self.potential.basis["functions"]["number_of_functions_per_element"])


def find_lineage(registry: Registry, training: TrainingConfig, generation: int) -> Lineage:
    """Return the lineage of `generation`.

    Raises
    ------
    ConfigError
        If the parent is not published or not an earlier generation.
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
    parent = registry.get(start) if start is not None else None
    if parent is not None and parent.trainer != training.trainer:
        raise ConfigError(
            f"{generation_name(parent.generation)} is a potential of {parent.trainer}, from which "
            f"{training.trainer} can't start",
            hint="set training.start_from: none; split and reference energies are inherited",
        )
    return Lineage(dataset=registry.get(earlier[-1]) if earlier else None, potential=parent)


def _start_number(start_from: str | int, generation: int) -> int | None:
    if start_from == "none" or (start_from == "previous" and generation == 1):
        return None
    return generation - 1 if start_from == "previous" else int(start_from)
