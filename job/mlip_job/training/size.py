"""The size of the basis: what was asked for, and what the data can determine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from mlip_job.training.pacemaker.basis import smallest_budget

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


class BasisSize(BaseModel):
    """How many functions per element a fit has.

    Attributes
    ----------
    functions_per_element
        As pacemaker is told.
    chosen
        By the configuration, from the data, or taken over from the parent.
    because
        In words.
    warning
        Where the data can't determine so many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    functions_per_element: int
    chosen: Literal["configured", "automatic", "inherited"]
    because: str
    warning: str | None = None

    def __str__(self) -> str:
        """Say what was chosen, and why."""
        return f"{self.functions_per_element} functions per element, {self.chosen}: {self.because}"


@dataclass(frozen=True)
class DataSize:
    """What a fit is determined by.

    Attributes
    ----------
    energies, forces
        Numbers of energies, and of force components that do not vanish, of the training set.
    elements
        Their number.
    """

    energies: int
    forces: int
    elements: int

    def __str__(self) -> str:
        """Say what there is."""
        elements = "1 element" if self.elements == 1 else f"{self.elements} elements"
        return f"{self.energies:,} energies and {self.forces:,} force components of {elements}"

    def scaled(self, factor: float) -> DataSize:
        """Return what there is in all where this is of a sample."""
        energies, forces = round(factor * self.energies), round(factor * self.forces)
        return DataSize(energies, forces, self.elements)

    @property
    def values(self) -> int:
        """Their number in all."""
        return self.energies + self.forces

    def functions_per_element(self, training: TrainingConfig) -> int:
        """Return what the data can determine and what is worth its cost.

        With few values the best basis has a function for every four or five of them; with many
        it grows more slowly, until more functions cost more than they gain.
        """
        wanted = min(
            self.values // (_VALUES_PER_FUNCTION * self.elements),
            int(_FACTOR * self.values**_POWER),
            _LARGEST_IN_ALL // self.elements,
            _LARGEST,
        )
        return max(wanted, smallest_budget(training, self.elements))

    def can_determine(self, functions_per_element: int) -> bool:
        """Tell whether there are enough values for a basis."""
        functions = functions_per_element * self.elements
        return functions * _FEWEST_VALUES_PER_FUNCTION <= self.values


def choose_size(training: TrainingConfig, data: DataSize, parent: int | None) -> BasisSize:
    """Decide how many functions per element a fit has.

    Parameters
    ----------
    training
        What is asked for.
    data
        What it is fitted to.
    parent
        Functions per element of the potential that the fit starts from; kept until the data
        determine clearly more.
    """
    if training.functions_per_element != "auto":
        return BasisSize(
            functions_per_element=training.functions_per_element,
            chosen="configured",
            because="training.functions_per_element",
            warning=too_large(training, data),
        )
    fitting = data.functions_per_element(training)
    if parent is not None and fitting < _WORTH_GROWING * parent:
        return BasisSize(
            functions_per_element=parent,
            chosen="inherited",
            because=f"{data} would have {fitting}",
        )
    return BasisSize(functions_per_element=fitting, chosen="automatic", because=str(data))


def with_size(training: TrainingConfig, size: BasisSize | None) -> TrainingConfig:
    """Return the configuration with the number of functions in place of ``auto``."""
    if size is None:
        return training
    return training.model_copy(update={"functions_per_element": size.functions_per_element})


def too_large(training: TrainingConfig, data: DataSize) -> str | None:
    """Return a warning where more functions are asked for than the data can determine."""
    asked = training.functions_per_element
    if asked == "auto" or data.can_determine(asked):
        return None
    return (
        f"training.functions_per_element is {asked}: more than {data} can determine; "
        f"{data.functions_per_element(training)} would fit (functions_per_element: auto)"
    )
