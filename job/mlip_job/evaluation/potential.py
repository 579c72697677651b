"""Evaluate a potential file: energies, forces, grades, active set and speed."""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlip_job.dataset.xyz import parse, read_blocks
from mlip_job.errors import ConfigError, TrainingError
from mlip_job.evaluation.results import Speed
from mlip_job.runtime.environment import cpu_model
from mlip_job.training.pacemaker.programs import write_active_set

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ase import Atoms

    from mlip_job.dataset.row import FloatArray

Pair = tuple[str, str]
"""Two elements, sorted."""


@dataclass(frozen=True)
class Answer:
    """The prediction of a potential for a structure.

    Attributes
    ----------
    energy
        eV; excludes the reference energies.
    forces
        eV/Å, shape (n, 3).
    stress
        eV/Å³ in Voigt order; None if the structure is not periodic.
    grade
        Largest extrapolation grade of its atoms, or None without an active set.
    """

    energy: float
    forces: FloatArray
    stress: FloatArray | None
    grade: float | None


class Potential:
    """A potential, loaded by the library that LAMMPS uses too.

    `path` is a ``.yace``, or a ``.yaml`` in pacemaker's B-basis. Only the B-basis accepts an active
    set (``.asi``) for extrapolation grades.

    Attributes
    ----------
    calculator
        An ASE calculator.
    name
        File name, for messages.

    Raises
    ------
    ConfigError
        If python-ace is not installed.
    TrainingError
        If the file is not a potential.
    """

    def __init__(self, path: Path, active_set: Path | None = None) -> None:
        self.name = path.name
        pyace = import_pyace()
        try:
            self.calculator = pyace.PyACECalculator(str(path))
            # Projections are needed for grades only and double the cost.
            self.calculator.compute_projections = active_set is not None
            if active_set is not None:
                self.calculator.set_active_set(str(active_set))
        except (RuntimeError, ValueError) as error:
            what = path if active_set is None else f"{path} with {active_set.name}"
            raise TrainingError(
                f"{what} can't be loaded: {error}",
                hint="the fit is kept: run again to make the file once more; if it stays, the "
                "trainer's environment is at fault (mlip-job check)",
            ) from None
        self._graded = active_set is not None
        self.elements: tuple[str, ...] = tuple(map(str, self.calculator.basis.elements_name))
        self.cutoff = float(self.calculator.cutoff)

    def ask(self, atoms: Atoms, what: str) -> Answer:
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
                f"{self.name} gives energies or forces that are no finite numbers, for {what}",
                hint="the fit went wrong although it ended well; look at its log, then run with "
                "--fresh and another basis, regularisation or seed",
            )
        return Answer(
            energy=results["energy"],
            forces=results["forces"],
            stress=results["stress"] if atoms.pbc.all() else None,
            grade=float(results["gamma"].max()) if self._graded else None,
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
            first, second = sorted(self.elements[index] for index in indices)
            pair = (first, second)
            shortest[pair] = min(distance, shortest.get(pair, distance))
        return shortest


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


# Training structures have grades up to 1.01 by construction, slightly more if the data was
# processed in batches. A singular matrix (python-ace 0.4.0rc1 with --full) gives grades of 1e15.
_USELESS_GRADE = 1e3
_TRIED_STRUCTURES = 20


def make_active_set(
    potential: Path,
    frames: Sequence[str],
    structures: Path,
    kind: Literal["linear", "full"],
    target: Path,
) -> None:
    """Make the active set of a potential from its training data.

    It spans the local environments of the data; an environment with a grade above 1 lies outside
    (Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023)).

    The program runs in the directory of `potential`, which is in B-basis; `frames` are relative
    to it. `structures` are the same data as extended XYZ, to verify the active set.

    Raises
    ------
    TrainingError
        If the program fails or its active set is unusable.
    """
    written = write_active_set(potential, frames, kind)
    _require_useful(potential, written, structures)
    written.replace(target)


def _require_useful(potential: Path, active_set: Path, structures: Path) -> None:
    graded = Potential(potential, active_set)
    for block in islice(read_blocks(structures), _TRIED_STRUCTURES):
        structure = parse(block)
        grade = graded.ask(structure.atoms, f"row {structure.row_id}").grade
        if grade is None or not grade < _USELESS_GRADE:
            raise TrainingError(
                f"pace_activeset made a singular active set: row {structure.row_id}, which it is "
                f"made from, gets the extrapolation grade {grade:.3g}"
            )


_STRUCTURES = 20  # at most, evenly spaced over the set
_ATOMS = 500  # about
_REPEATS = 5
_SECONDS = 1.0  # no further repeat starts after this time


def measure_speed(
    potential: Potential, texts: Iterable[str], *, structures: int, atoms: int
) -> Speed:
    """Evaluate some structures of a set repeatedly; return the median time per atom.

    The CPU time of this thread hardly depends on the load of the machine. Structures of the dataset
    have the density, and thus the neighbours per atom, of typical simulations.
    """
    wanted = max(1, min(_STRUCTURES, int(_ATOMS * structures / atoms)))
    step = math.ceil(structures / wanted)
    evaluated = [parse(block).atoms for block in islice(texts, 0, None, step)]
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
