"""Costs of the design matrix of a linear fit, step by step: CPU time on one core."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.db import connect

from benchmarks.tables import table
from mlip_job.config import TrainingConfig
from mlip_job.demo import write_demo_database
from mlip_job.training.pacemaker.input import potential_section

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_FUNCTIONS = (100, 300)
_MOST_ATOMS = 500


def show_design_costs(directory: Path, databases: Sequence[str]) -> None:
    """Measure the demo's copper data and other databases."""
    demo = directory / "design-demo.db"
    write_demo_database(demo, ("Cu",))
    rows = []
    for number, url in enumerate((str(demo), *databases)):
        title = "the demo's copper" if url == str(demo) else f"database {number}"
        structures = list(_structures(url))
        rows += [(title, *_costs(structures, functions)) for functions in _FUNCTIONS]
    table(
        "Design matrix, ms of CPU per atom and 100 functions",
        ("data", "functions", "neighbour lists", "gradients", "as lists", "as arrays", "products",
         "products by dsyrk"),
        rows,
    )  # fmt: skip


def _structures(url: str) -> Iterator[Any]:
    atoms = 0
    for row in connect(url).select("status=completed"):
        structure = row.toatoms()
        if atoms + len(structure) <= _MOST_ATOMS and len(structure) > 1:
            atoms += len(structure)
            yield structure


def _costs(structures: Sequence[Any], functions: int) -> tuple[str, ...]:
    # Times are in seconds; logging is set up late because pyace changes it.
    from pyace import ACEBBasisSet, ACEBEvaluator, ACECalculator  # noqa: PLC0415
    from pyace.atomicenvironment import aseatoms_to_atomicenvironment  # noqa: PLC0415
    from pyace.basisextension import construct_bbasisconfiguration  # noqa: PLC0415
    from scipy.linalg.blas import dsyrk  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    elements = sorted({symbol for atoms in structures for symbol in atoms.get_chemical_symbols()})
    training = TrainingConfig(functions_per_element=functions, ndensity=1)
    section = potential_section(training, elements)
    basis = ACEBBasisSet(construct_bbasisconfiguration(section))
    evaluator = ACEBEvaluator(basis)
    calculator = ACECalculator(evaluator)
    clock = _Clock()
    blocks = []
    for atoms in structures:
        with clock.measuring("lists"):
            environment = aseatoms_to_atomicenvironment(
                atoms, basis.cutoffmax, basis.elements_to_index_map
            )
        with clock.measuring("gradients"):
            calculator.compute(environment, compute_projections=True, compute_b_grad=True)
        with clock.measuring("conversion"):
            nested = calculator.forces_bfuncs
        with clock.measuring("arrays"):
            array = np.array(nested)
            blocks.append(array.transpose(0, 2, 1).reshape(-1, array.shape[1]))
    design = np.concatenate(blocks)
    with threadpool_limits(1):
        with clock.measuring("product"):
            _ = design.T @ design
        with clock.measuring("dsyrk"):
            dsyrk(1.0, design.T)
    unit = 1e5 / sum(map(len, structures)) / design.shape[1]
    names = ("lists", "gradients", "conversion", "arrays", "product", "dsyrk")
    return str(design.shape[1]), *(f"{unit * clock.seconds[name]:.3f}" for name in names)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Add the CPU time of the block."""
        begun = time.process_time()
        yield
        self.seconds[name] += time.process_time() - begun
