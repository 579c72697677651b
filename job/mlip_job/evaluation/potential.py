"""Potential files: prediction, cost, active set and ZBL cores.

Only this module knows the kinds of potential files.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from mlip_job.dataset.xyz import parse, read_blocks, row_id
from mlip_job.errors import ConfigError, TrainingError
from mlip_job.evaluation.results import Speed
from mlip_job.runtime.environment import cpu_model
from mlip_job.training.grace.potential_file import is_grace
from mlip_job.training.pacemaker.potential_file import read_potential, write_potential

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from mlip_job.dataset.rows import FloatArray

Pair = tuple[str, str]
"""Two elements, sorted."""


@dataclass(frozen=True)
class Prediction:
    """Energy (eV, without the reference energies), forces (eV/Å) and stress (eV/Å³, Voigt order).

    The stress is None if the structure is not periodic. The grade is the largest extrapolation
    grade of the atoms, None without an active set.
    """

    energy: float
    forces: FloatArray
    stress: FloatArray | None
    grade: float | None


class Potential:
    """A potential, loaded by the library that LAMMPS uses too.

    `path` is a ``.yace``, or a ``.yaml`` in pacemaker's B-basis or of GRACE/FS. Only a ``.yaml``
    accepts an active set (``.asi``) for extrapolation grades. `calculator` is its ASE calculator.

    Raises
    ------
    ConfigError
        If python-ace is not installed.
    TrainingError
        If the file is not a potential.
    """

    def __init__(self, path: Path, active_set: Path | None = None) -> None:
        self.name = path.name
        self.graded = active_set is not None
        self.calculator = _load(path, active_set)
        self.elements: tuple[str, ...] = tuple(map(str, self.calculator.basis.elements_name))
        self.cutoff = float(self.calculator.cutoff)

    def predict(self, atoms: Atoms, what: str) -> Prediction:
        """Evaluate a structure; `what` names it in an error.

        Raises
        ------
        TrainingError
            If the prediction contains NaN or infinity.
        """
        self.calculator.calculate(atoms)
        results = self.calculator.results
        if not (np.isfinite(results["energy"]) and np.isfinite(results["forces"]).all()):
            raise TrainingError(
                f"{self.name} predicts energies or forces that are not finite, for {what}",
                hint="the fit succeeded but its potential is unusable; look at its log, then run "
                "with --fresh and another basis, regularisation or seed",
            )
        return Prediction(
            energy=results["energy"],
            forces=results["forces"],
            stress=results["stress"] if atoms.pbc.all() else None,
            grade=float(results["gamma"].max()) if self.graded else None,
        )

    def evaluator_seconds(self, atoms: Atoms) -> float:
        """Return the CPU time (s) of energies and forces, without the neighbour list."""
        environment = self.calculator.get_atomic_env(atoms)
        started = time.thread_time()
        self.calculator.ace.compute(environment, compute_projections=False)
        return time.thread_time() - started

    def shortest_distances(self) -> dict[Pair, float]:
        """Return the shortest distance (Å) of each pair in the structure evaluated last."""
        shortest: dict[Pair, float] = {}
        found = self.calculator.ae.get_minimal_nn_distance_per_bond()
        for indices, distance in found.items():
            pair = _pair(*(self.elements[index] for index in indices))
            shortest[pair] = min(distance, shortest.get(pair, distance))
        return shortest


def _load(path: Path, active_set: Path | None) -> Any:
    """Return the ASE calculator for this kind of file."""
    pyace = import_pyace()
    try:
        if is_grace(path):
            calculator = pyace.asecalc.PyGRACEFSCalculator(str(path))
            calculator.calculate(trimer(calculator.basis))
        else:
            calculator = pyace.PyACECalculator(str(path))
        # Projections are needed for grades only and double the cost.
        calculator.compute_projections = active_set is not None
        if active_set is not None:
            calculator.set_active_set(str(active_set))
    except (RuntimeError, ValueError) as error:
        what = path if active_set is None else f"{path} with {active_set.name}"
        raise TrainingError(
            f"{what} can't be loaded: {error}",
            hint="the fit is kept: run again to make the file once more; if it stays, the "
            "trainer's environment is at fault (mlip-job check)",
        ) from None
    return calculator


def trimer(basis: Any) -> Atoms:
    """Return the structure that an evaluator of GRACE/FS has to get first.

    Those of python-ace 0.4.0rc1 allocate their arrays at the first atom with two neighbours, and
    crash if they get a dimer before.
    """
    element, side = str(basis.elements_name[0]), 0.5 * float(basis.cutoffmax)
    return Atoms(3 * [element], [[0, 0, 0], [side, 0, 0], [0, side, 0]])


def import_pyace() -> Any:
    """Import and return python-ace; this takes seconds.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        with _unchanged_logging():
            import pyace  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "python-ace is not installed: this environment can't evaluate potentials",
            hint="pip install --no-deps -r requirements/trainer-cpu.txt (or trainer-gpu.txt)",
        ) from None
    return pyace


@contextmanager
def _unchanged_logging() -> Iterator[None]:
    """Restore the root logger: importing pyace adds a handler and sets the level INFO."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


# -- cost ----------------------------------------------------------------------------------------

_STRUCTURES = 20  # at most, evenly spaced over the set
_ATOMS = 500  # about
_REPEATS = 5
_SECONDS = 1.0  # no further repeat starts after this time


def measure_speed(
    potential: Potential, blocks: Iterable[str], *, structures: int, atoms: int
) -> Speed:
    """Evaluate some structures of a set repeatedly; return the median time per atom.

    The CPU time of this thread hardly depends on the load of the machine. Structures of the dataset
    have the density, and thus the neighbours per atom, of typical simulations.
    """
    wanted = max(1, min(_STRUCTURES, int(_ATOMS * structures / atoms)))
    step = math.ceil(structures / wanted)
    evaluated = [parse(block).atoms for block in islice(blocks, 0, None, step)]
    seconds: list[float] = []
    started = time.monotonic()
    potential.evaluator_seconds(evaluated[0])  # the first call allocates memory
    while not seconds or (len(seconds) < _REPEATS and time.monotonic() - started < _SECONDS):
        seconds.append(sum(map(potential.evaluator_seconds, evaluated)))
    counted = sum(map(len, evaluated))
    return Speed(
        evaluator_us_per_atom=1e6 * median(seconds) / counted,
        structures=len(evaluated),
        atoms=counted,
        repeats=len(seconds),
        cpu=cpu_model(),
    )


# -- active set ----------------------------------------------------------------------------------

# Training structures have grades up to 1.01 by construction, slightly more if the data was
# processed in batches. A singular matrix (python-ace 0.4.0rc1 with --full) gives grades of 1e15.
_USELESS_GRADE = 1e3
_TRIED_STRUCTURES = 20


def check_active_set(potential: Path, active_set: Path, structures: Path) -> None:
    """Require that an active set spans the training data that it was made from.

    An environment with a grade above 1 lies outside (Y. Lysogorskiy et al., Phys. Rev. Materials 7,
    043801 (2023)). `structures` are extended XYZ.

    Raises
    ------
    TrainingError
        If the active set is singular.
    """
    graded = Potential(potential, active_set)
    for block in islice(read_blocks(structures), _TRIED_STRUCTURES):
        structure = parse(block)
        grade = graded.predict(structure.atoms, f"row {structure.row_id}").grade
        if grade is None or not grade < _USELESS_GRADE:
            raise TrainingError(
                f"pace_activeset made a singular active set: row {structure.row_id}, which it is "
                f"made from, gets the extrapolation grade {grade:.3g}"
            )


# -- ZBL cores -----------------------------------------------------------------------------------
#
# Pacemaker adds them after its fit, each within 0.1 Å of the shortest distance of its pair in the
# fitted data. Other data often come slightly closer by chance; there the published potential would
# differ from the fitted one by tens of eV. Each core is therefore moved below the shortest distance
# of *all* data: within the data the potential is the fitted one, and the test set measures its
# error; below all data it is repulsive.

_MARGIN = 1e-6  # Å: rounding error of distances, as positions are written to 1e-8 Å


@dataclass(frozen=True)
class Core:
    """Range of the ZBL core of a pair, Å: only the core below `inner`, no core above `outer`."""

    inner: float
    outer: float


def cores_of(potential: Path) -> dict[Pair, Core] | None:
    """Return the ZBL cores in a potential file; None for GRACE/FS, which can't have any.

    Its C++ format has no field for a core: it starts with elements, embedding and radial basis.
    """
    if is_grace(potential):
        return None
    return {
        pair: Core(float(block["r_in"]) - float(block["delta_in"]), float(block["r_in"]))
        for block in read_potential(potential)["species"]
        if (pair := _pair_with_core(block)) is not None
    }


def shortest_distances(
    structures: Path, reach: float, counts: Callable[[int], bool] = lambda _: True
) -> dict[Pair, float]:
    """Return the shortest distance (Å) of each pair within `reach` in the rows that count."""
    shortest: dict[Pair, float] = {}
    for block in filter(lambda block: counts(row_id(block)), read_blocks(structures)):
        atoms = parse(block).atoms
        for i, j, distance in zip(*neighbor_list("ijd", atoms, reach), strict=True):
            pair = _pair(atoms.symbols[i], atoms.symbols[j])
            shortest[pair] = min(float(distance), shortest.get(pair, reach))
    return shortest


def shorter(one: Mapping[Pair, float], other: Mapping[Pair, float]) -> dict[Pair, float]:
    """Merge two mappings; return the shorter distance of each pair."""
    pairs = {*one, *other}
    return {p: min(one.get(p, math.inf), other.get(p, math.inf)) for p in pairs}


def move_cores(potential: Path, shortest: Mapping[Pair, float]) -> tuple[str, ...]:
    """Move the cores in a file below these distances; return a note for each moved core."""
    content = read_potential(potential)
    notes = {}
    for block in content["species"]:
        pair = _pair_with_core(block)
        if pair is None or shortest.get(pair, block["r_in"]) >= block["r_in"]:
            continue
        notes[pair] = (
            f"the ZBL core of {'-'.join(pair)} begins at {shortest[pair]:.3f} Å, the shortest "
            f"distance in the data; in the fitted structures that is {block['r_in']:.3f} Å"
        )
        block["r_in"] = shortest[pair] - _MARGIN
    if notes:
        write_potential(content, potential)
    return tuple(notes.values())


def _pair_with_core(block: Mapping[str, Any]) -> Pair | None:
    elements = str(block["speciesblock"]).split()
    if len(elements) > 2 or block.get("inner_cutoff_type") != "zbl":  # noqa: PLR2004 - a pair
        return None
    return _pair(elements[0], elements[-1])


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one <= other else (other, one)
