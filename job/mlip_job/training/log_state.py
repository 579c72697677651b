"""What a log of pacemaker's has said so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Phase(StrEnum):
    """What pacemaker is doing."""

    STARTING = "starting"
    LOADING_DATA = "loading_data"
    BUILDING_GRAPH = "building_graph"
    BUILDING_TEST_GRAPH = "building_test_graph"
    FITTING = "fitting"
    PREDICTING = "predicting"
    FINISHED = "finished"


@dataclass
class StatisticsBlock:
    """One block of statistics; the errors are in eV/atom and eV/Å.

    Attributes
    ----------
    title
        Pacemaker's, e.g. ``FIT STATS`` or ``TEST Cycle last iteration:``.
    errors
        By ``rmse``, ``mae`` and ``max``: of energies per atom, the same for low-energy structures,
        of force components, the same for low-energy structures.
    """

    title: str
    errors: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)


@dataclass
class DatasetSizes:
    """Structures of one set as it is loaded: in the files, and after neighbour lists were made."""

    found: int | None = None
    kept: int | None = None


@dataclass(frozen=True)
class OptimiserResult:
    """How scipy's minimiser ended; status 1 (too many iterations) is the normal ending."""

    success: bool
    status: int
    message: str
    evaluations: int


@dataclass
class LogState:
    """All that a log has said of one run so far."""

    phases: list[tuple[Phase, datetime]] = field(default_factory=list)
    last_time: datetime | None = None
    versions: dict[str, str] = field(default_factory=dict)
    datasets: list[DatasetSizes] = field(default_factory=list)
    fitted_train: int | None = None
    fitted_test: int | None = None
    functions: int | None = None
    parameters: int | None = None
    kappa: float | None = None
    starting_potential: str | None = None
    ladder: bool = False
    iterations_seen: int = 0
    optimiser_results: list[OptimiserResult] = field(default_factory=list)
    early_stopping: str | None = None
    best_cycle: int = 0
    batch_sizes: list[tuple[int, int]] = field(default_factory=list)
    weighting: list[str] = field(default_factory=list)
    extreme_energies: bool = False
    potential_saved: bool = False
    out_of_memory: bool = False
    exception: str | None = None
    blocks: list[StatisticsBlock] = field(default_factory=list)
