"""The size of the basis: configured, inherited, or chosen from the amount of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlip_job.models import Frozen
from mlip_job.training.grace.input import LARGEST, SMALLEST
from mlip_job.training.pacemaker.input import smallest_budget

if TYPE_CHECKING:
    from mlip_job.config import TrainingConfig

# docs/performance.md has the measurements behind these.
_VALUES_PER_FUNCTION = 4
_FACTOR, _POWER = 2.0, 0.6
_LARGEST = 1000
_LARGEST_IN_ALL = 2400
"""Of all elements together: the normal equations grow with the square, graphs with the number."""
_FEWEST_VALUES_PER_FUNCTION = 2
_WORTH_GROWING = 1.5


class BasisSize(Frozen):
    """The number of functions per element, and the reason for it.

    The warning says that the data can't determine so many.
    """

    functions_per_element: int
    chosen: Literal["configured", "automatic", "inherited"]
    because: str
    warning: str | None = None

    def __str__(self) -> str:
        """Return number and reason."""
        return f"{self.functions_per_element} functions per element, {self.chosen}: {self.because}"


@dataclass(frozen=True)
class DataSize:
    """The amount of training data: energies, force components that do not vanish, elements."""

    energies: int
    forces: int
    elements: int

    def __str__(self) -> str:
        """Return the numbers as text."""
        elements = "1 element" if self.elements == 1 else f"{self.elements} elements"
        return f"{self.energies:,} energies and {self.forces:,} force components of {elements}"

    def scaled(self, factor: float) -> DataSize:
        """Return the size of the whole of which this is a sample."""
        energies, forces = round(factor * self.energies), round(factor * self.forces)
        return DataSize(energies, forces, self.elements)

    @property
    def values(self) -> int:
        """Number of energies and force components."""
        return self.energies + self.forces

    def functions_per_element(self, training: TrainingConfig) -> int:
        """Return the number of functions that the data determine at a reasonable cost.

        With few values the best basis has a function for every four or five of them; with many
        values it grows more slowly.
        """
        wanted = min(
            self.values // (_VALUES_PER_FUNCTION * self.elements),
            int(_FACTOR * self.values**_POWER),
            _LARGEST_IN_ALL // self.elements,
            _LARGEST,
        )
        if training.trainer == "grace-fs":
            return max(min(wanted, LARGEST), SMALLEST)
        return max(wanted, smallest_budget(training, self.elements))

    def can_determine(self, functions_per_element: int) -> bool:
        """Return whether there are enough values for a basis."""
        functions = functions_per_element * self.elements
        return functions * _FEWEST_VALUES_PER_FUNCTION <= self.values


def choose_size(training: TrainingConfig, data: DataSize, parent: int | None) -> BasisSize:
    """Choose the number of functions per element.

    The number of the parent, from whose potential the fit starts, is kept until the data determine
    clearly more; always by gracemaker, which can't enlarge a basis.
    """
    if training.functions_per_element != "auto":
        return BasisSize(
            functions_per_element=training.functions_per_element,
            chosen="configured",
            because="training.functions_per_element",
            warning=too_large(training, data),
        )
    fitting = data.functions_per_element(training)
    can_grow = training.trainer == "pacemaker"
    if parent is not None and not (can_grow and fitting >= _WORTH_GROWING * parent):
        return BasisSize(
            functions_per_element=parent, chosen="inherited", because=f"{data} would have {fitting}"
        )
    return BasisSize(functions_per_element=fitting, chosen="automatic", because=str(data))


def with_size(training: TrainingConfig, size: BasisSize | None) -> TrainingConfig:
    """Return the configuration with a number in place of ``auto``."""
    if size is None:
        return training
    return training.model_copy(update={"functions_per_element": size.functions_per_element})


def too_large(training: TrainingConfig, data: DataSize) -> str | None:
    """Return a warning if the data can't determine the configured number of functions."""
    asked = training.functions_per_element
    if asked == "auto" or data.can_determine(asked):
        return None
    return (
        f"training.functions_per_element is {asked}: more than {data} can determine; "
        f"{data.functions_per_element(training)} would fit (functions_per_element: auto)"
    )
