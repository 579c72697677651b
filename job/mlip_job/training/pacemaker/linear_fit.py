"""A linear least-squares fit of an ACE potential, from pyace's design matrix and weights.

With fixed radial functions the first density of the embedding is linear in its coefficients, so
that the minimum of pacemaker's loss, the weighted squares of the errors plus ``L2_coeffs`` times
the squared coefficients, follows from normal equations. They are summed over batches of structures,
so that memory does not grow with their number. Structures that are held out choose the ridge, at no
extra cost. ``L1_coeffs`` is left out, which changed no error.

The other densities begin with zero. A start with 0.1 of the linear solution in the second one was
better for copper and worse for copper-gold (docs/performance.md).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mlip_job.errors import MlipJobError, TrainingError
from mlip_job.runtime.environment import available_memory
from mlip_job.runtime.processes import in_order, run_in_process, worker_pool
from mlip_job.training.pacemaker import PacemakerFiles
from mlip_job.training.pacemaker.input import build_input, potential_section
from mlip_job.training.pacemaker.weighting import FITTED, weighted
from mlip_job.training.programs import find_program
from mlip_job.training.summary import LinearStart, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import ProcessPoolExecutor
    from contextlib import AbstractContextManager

    from mlip_job.config import TrainingConfig
    from mlip_job.training.trainer import FitData

    FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    Work = tuple[str, bool, Any]
    Blocks = Mapping[str, list[int]]
    Distances = dict[tuple[int, int], float]  # shortest of each pair, by numbers in the basis, Å

_BATCH_ATOMS = 256  # at least; a second or so
_ATOMS_WORTH_A_PROCESS = 1_000  # its start takes two seconds of imports
_LINE_INTERVAL_SECONDS = 10.0
_PROCESS_BYTES = 300 << 20  # of a process that has imported pyace
_RIDGES = tuple(10.0**exponent for exponent in range(-14, -5))
"""Relative to the largest diagonal element; with the smallest one any equations can be solved."""


@dataclass(frozen=True)
class LinearTask:
    """The input of a linear least-squares fit: settings with a size of the basis, and data.

    With `training.max_iter` 0 the fit is published: then it includes the held-out structures, gets
    ZBL cores and keeps the reference energies, as pacemaker's fits do. With `training.start_noise`
    structures get random weights, so that the members of an ensemble differ. ``cores`` is the
    maximum number of processes.
    """

    training: TrainingConfig
    data: FitData
    directory: str
    cores: int

    @property
    def published(self) -> bool:
        """Whether no iteration follows."""
        return self.training.is_linear

    @property
    def potential(self) -> Path:
        """The file that is written."""
        files = PacemakerFiles(Path(self.directory))
        return files.output_potential if self.published else files.linear_start

    @cached_property
    def input(self) -> dict[str, Any]:
        """Pacemaker's ``fit`` section, which has the loss and the weighting."""
        return dict(build_input(self.training, self.data)["fit"])

    @property
    def kappa(self) -> float:
        """The weight of the forces in the loss."""
        return float(self.input["loss"]["kappa"])

    @property
    def l2(self) -> float:
        """The smallest ridge: weight of the squared coefficients in the loss."""
        return float(self.input["loss"]["L2_coeffs"])


def run_linear_fit(task: LinearTask, tell: Callable[[str], None]) -> LinearStart:
    """Run a linear fit in a separate process, which releases its memory at the end.

    `tell` receives progress and remaining time every few seconds. A failure is a TrainingError.
    """
    find_program("pacemaker")  # python-ace comes with it
    died = TrainingError(
        "the process of the linear start died",
        hint="give the job more memory, or set training.linear_start: false",
    )
    return run_in_process(_fit, task, died=died, on_message=_forecast(task.data, tell))


def _fit(tell: Callable[[tuple[int, int]], None], task: LinearTask) -> LinearStart:
    # Standard output is reserved for the job's own output.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        return fit_linear(tell, task)
    except MlipJobError:
        raise
    except Exception as error:  # noqa: BLE001 - of pyace or numpy
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        raise TrainingError(
            f"the linear start failed: {cause}",
            hint="set training.linear_start: false to do without",
        ) from None


def _forecast(data: FitData, tell: Callable[[str], None]) -> Callable[[tuple[int, int]], None]:
    """Return a function that reports progress and remaining time every few seconds."""
    started = told = time.monotonic()

    def report(done: tuple[int, int]) -> None:
        nonlocal told
        now, (structures, atoms) = time.monotonic(), done
        if now - told < _LINE_INTERVAL_SECONDS or structures >= data.structures:
            return
        told = now
        left = (now - started) * max(0.0, data.atoms / atoms - 1)
        tell(f"linear fit: {structures} of {data.structures} structures, about {left:.0f} s left")

    return report


# -- the fit ---------------------------------------------------------------------------------------


def fit_linear(tell: Callable[[tuple[int, int]], None], task: LinearTask) -> LinearStart:
    """Fit a potential by linear least squares, and write it.

    `tell` gets the number of structures and atoms after each batch.
    """
    _silence()
    basis = _basis(task)
    blocks = _blocks(basis)
    functions = sum(map(len, blocks.values()))
    with tempfile.TemporaryDirectory(dir=task.directory) as scratch:
        path = f"{scratch}/basis.yaml"
        basis.to_BBasisConfiguration().save(path)
        sums = sum_batches(path, functions, task, tell)
    fitted, held_out = sums[False], sums.get(True)
    seen = fitted if held_out is None or not task.published else fitted.plus(held_out)
    equations = seen.of_loss(task.kappa)
    _require_solvable(equations, blocks)
    ridge = best_ridge(fitted, held_out, task)
    coefficients = solve(equations, ridge)
    _write(basis, coefficients, seen.shortest, task)
    # A perfect fit is left with rounding errors.
    energies, forces = (
        max(0.0, term.squared_error(coefficients)) for term in seen.terms(task.kappa)
    )
    regularisers = {
        "l1_coeffs": float(task.input["loss"]["L1_coeffs"]) * float(np.abs(coefficients).sum()),
        "l2_coeffs": task.l2 * float(coefficients @ coefficients),
    }
    return LinearStart(
        structures=seen.structures,
        atoms=seen.atoms,
        functions=functions,
        loss=energies + forces,
        loss_shares=shares(energies, forces, regularisers),
        ridge=ridge,
        undetermined=tuple(_zero_blocks(equations, blocks)),
    )


def _basis(task: LinearTask) -> Any:
    from pyace.basis import ACEBBasisSet  # noqa: PLC0415 - seconds, and it changes logging
    from pyace.basisextension import construct_bbasisconfiguration  # noqa: PLC0415

    section = potential_section(task.training, task.data.elements)
    return ACEBBasisSet(construct_bbasisconfiguration(section))


def _write(basis: Any, coefficients: FloatArray, shortest: Distances, task: LinearTask) -> None:
    """Write a potential whose first density has these coefficients, the others none."""
    from pyace.generalfit import setup_zbl_inner_core_repulsion  # noqa: PLC0415
    from pyace.utils.utils import complement_min_dist_dict  # noqa: PLC0415

    densities = len(basis.basis_coeffs) // len(coefficients)
    columns = [coefficients, *[np.zeros_like(coefficients)] * (densities - 1)]
    basis.basis_coeffs = np.column_stack(columns).ravel()
    potential = basis.to_BBasisConfiguration()
    if task.published:
        potential.metadata["reference_energy"] = json.dumps(dict(task.data.reference_energies))
        if task.input.get("repulsion") == "auto":
            distances = complement_min_dist_dict(shortest, {}, basis.elements_name, verbose=False)
            setup_zbl_inner_core_repulsion(potential, distances)
    potential.save(str(task.potential))


# -- training data ---------------------------------------------------------------------------------


def _batches(task: LinearTask, atoms: int) -> Iterator[tuple[bool, Any]]:
    """Yield structures in file order, in batches of about the given number of atoms.

    With each, whether its structures are held out.
    """
    random = np.random.default_rng(task.training.seed)
    with_weights = _weighting(task)
    held_out = {f"row-{row}" for row in task.data.held_out}
    apart = task.data.second if held_out and not task.published else ()
    for name in (*task.data.train, *apart):
        frame = with_weights(_read(task, name))
        if task.training.start_noise:
            # The Bayesian bootstrap: D. B. Rubin, Ann. Statist. 9, 130 (1981).
            factors = random.exponential(size=len(frame))
            for column in ("w_energy", "w_forces"):
                frame[column] *= factors
        out = frame["name"].isin(held_out) if held_out else pd.Series(data=False, index=frame.index)
        for is_out in (False, True):
            part = frame[out == is_out]
            number = (part["NUMBER_OF_ATOMS"].cumsum() - 1) // atoms
            for _, batch in part.groupby(number, sort=True):
                yield is_out, batch.reset_index(drop=True)


def _read(task: LinearTask, name: str) -> Any:
    path = f"{task.directory}/{name}"
    # Frames that this very run wrote or checked against their hashes.
    frame = pd.read_pickle(path, compression="gzip")  # noqa: S301
    return frame.assign(NUMBER_OF_ATOMS=frame["ase_atoms"].map(len))


def _weighting(task: LinearTask) -> Callable[[Any], Any]:
    """Return a function that adds pacemaker's weights to structures (`pyace.preparedata`).

    They need not be normalised: each sum of equations knows the sum of its weights. An energy-based
    policy leaves out some structures; which are left is written, as pacemaker does.
    """
    if not task.input.get("weighting"):
        return _with_weights
    sides = [
        _read(task, name).assign(train=train)
        for train, names in ((True, task.data.train), (False, task.data.second))
        for name in names
    ]
    frame = weighted(sides, task.input["weighting"])
    for side, fitted in (("train", frame["train"]), ("test", ~frame["train"])):
        frame.loc[fitted, ["name"]].to_pickle(f"{task.directory}/{FITTED[side]}", "gzip")
    weights = frame.set_index("name")[["w_energy", "w_forces"]]
    return lambda frame: frame.join(weights, on="name", how="inner").reset_index(drop=True)


def _with_weights(frame: Any) -> Any:
    """Use uniform weights, unless structures have weights by group."""
    if "w_energy" in frame:
        return frame
    ones = [np.ones(atoms) for atoms in frame["NUMBER_OF_ATOMS"]]
    return frame.assign(w_energy=1.0, w_forces=ones)


# -- the equations ---------------------------------------------------------------------------------


class Equations(NamedTuple):
    """[A y]ᵀW[A y] and ΣW of some rows of the design matrix A and the targets y."""

    gram: FloatArray
    weight: float

    @classmethod
    def of_rows(cls, design: FloatArray, target: FloatArray, weights: FloatArray) -> Equations:
        """Return those of all rows given."""
        roots = np.sqrt(weights)
        rows, target = design * roots[:, None], target * roots
        right = rows.T @ target
        gram = np.block([[rows.T @ rows, right[:, None]], [right, target @ target]])
        return cls(gram, float(weights.sum()))

    @property
    def matrix(self) -> FloatArray:
        """AᵀWA."""
        return self.gram[:-1, :-1]

    def plus(self, other: Equations) -> Equations:
        """Return the sum of both."""
        return Equations(self.gram + other.gram, self.weight + other.weight)

    def times(self, factor: float) -> Equations:
        """Return them with all weights scaled."""
        return Equations(factor * self.gram, factor * self.weight)

    def squared_error(self, coefficients: FloatArray) -> float:
        """Return the weighted sum of squared residuals."""
        vector = np.append(coefficients, -1.0)
        return float(vector @ self.gram @ vector)


class Sums(NamedTuple):
    """The equations of energies per atom and of forces, and what they were summed over."""

    energies: Equations
    forces: Equations
    structures: int
    atoms: int
    shortest: Distances

    def plus(self, other: Sums) -> Sums:
        """Return the sum of both."""
        return Sums(
            self.energies.plus(other.energies),
            self.forces.plus(other.forces),
            self.structures + other.structures,
            self.atoms + other.atoms,
            _shorter(self.shortest, other.shortest),
        )

    def terms(self, kappa: float) -> tuple[Equations, Equations]:
        """Return the two terms of pacemaker's loss, each with its weights normalised."""
        energies = self.energies.times((1 - kappa) / self.energies.weight)
        # Of forces the weights of atoms are normalised, and an atom has three rows.
        return energies, self.forces.times(3 * kappa / self.forces.weight)

    def of_loss(self, kappa: float) -> Equations:
        """Return the equations of pacemaker's loss."""
        energies, forces = self.terms(kappa)
        return energies.plus(forces)


def _shorter(one: Distances, other: Distances) -> Distances:
    """Return the shorter distance of each pair."""
    return {p: min(one.get(p, inf), other.get(p, inf)) for p in {*one, *other}}


def best_ridge(fitted: Sums, held_out: Sums | None, task: LinearTask) -> float:
    """Return the ridge with the smallest loss on what is held out, at least the one asked for.

    Relative to the size of the equations, so that it fits those of all data too.
    """
    equations = fitted.of_loss(task.kappa)
    scale = float(equations.matrix.diagonal().max())
    least = max(task.l2, _RIDGES[0] * scale)
    if held_out is None:
        return least
    unseen = held_out.of_loss(task.kappa)
    ridges = (least, *(ridge * scale for ridge in _RIDGES if ridge * scale > least))
    return min(ridges, key=lambda ridge: unseen.squared_error(solve(equations, ridge)))


def sum_batches(
    basis: str, functions: int, task: LinearTask, tell: Callable[[tuple[int, int]], None]
) -> dict[bool, Sums]:
    """Return the sums over the fitted and, under True, the held-out structures.

    They are added in the order of the batches: processes don't change the result.
    """
    sums: dict[bool, Sums] = {}
    structures = atoms = 0
    with _processes(task.cores, functions, task.data.atoms) as pool:
        # Each batch holds as many atoms as there are functions: its rows are thrice the matrix.
        batches = _batches(task, max(_BATCH_ATOMS, functions))
        work = ((basis, is_out, batch) for is_out, batch in batches)
        found = in_order(pool, _equations, work, task.cores) if pool else map(_equations, work)
        for is_out, more in found:
            sums[is_out] = sums[is_out].plus(more) if is_out in sums else more
            structures, atoms = structures + more.structures, atoms + more.atoms
            tell((structures, atoms))
    return sums


def _equations(work: Work) -> tuple[bool, Sums]:
    """Return the equations of some structures, and whether they are held out."""
    basis, held_out, frame = work
    energy_rows, force_rows, shortest = _design(_loaded(basis), frame["ase_atoms"])
    sizes = frame["NUMBER_OF_ATOMS"].to_numpy()
    weights = frame["w_energy"].to_numpy(), np.concatenate(frame["w_forces"].to_list())
    return held_out, Sums(
        Equations.of_rows(energy_rows, frame["energy_corrected"].to_numpy() / sizes, weights[0]),
        Equations.of_rows(
            force_rows, np.concatenate(frame["forces"].to_list()).ravel(), np.repeat(weights[1], 3)
        ),
        structures=len(frame),
        atoms=int(sizes.sum()),
        shortest=shortest,
    )


def _design(basis: Any, structures: Sequence[Any]) -> tuple[FloatArray, FloatArray, Distances]:
    """Return the rows of energies per atom and of forces, and the shortest distances.

    `pyace.linearacefit.LinearACEDataset` does the same, but without the distances.
    """
    from pyace import ACEBEvaluator, ACECalculator  # noqa: PLC0415
    from pyace.atomicenvironment import aseatoms_to_atomicenvironment  # noqa: PLC0415
    from pyace.linearacefit import compute_nfunc_func_ind_shift  # noqa: PLC0415

    functions, first_of = compute_nfunc_func_ind_shift(basis)
    evaluator = ACEBEvaluator(basis)  # the calculator does not keep it alive
    calculator = ACECalculator(evaluator)
    energies = np.zeros((len(structures), functions))
    forces: list[FloatArray] = []
    shortest: Distances = {}
    for number, atoms in enumerate(structures):
        environment = aseatoms_to_atomicenvironment(
            atoms, basis.cutoffmax, basis.elements_to_index_map
        )
        calculator.compute(environment, compute_projections=True, compute_b_grad=True)
        projections = calculator.projections
        for species, own in zip(environment.species_type, projections, strict=False):
            functions_of = slice(first_of[species], first_of[species] + len(own))
            energies[number, functions_of] += np.array(own) / len(projections)
        gradients = np.array(calculator.forces_bfuncs)  # atoms, functions, components
        forces.append(gradients.transpose(0, 2, 1).reshape(-1, functions))
        shortest = _shorter(shortest, environment.get_minimal_nn_distance_per_bond())
    return energies, np.concatenate(forces), shortest


@cache
def _loaded(basis: str) -> Any:
    from pyace.basis import ACEBBasisSet  # noqa: PLC0415

    return ACEBBasisSet(basis)


def solve(equations: Equations, ridge: float) -> FloatArray:
    """Minimise the weighted sum of squared residuals plus ridge · Σc² over c."""
    matrix = equations.matrix + ridge * np.eye(len(equations.matrix))
    return np.asarray(np.linalg.solve(matrix, equations.gram[:-1, -1]), dtype=np.float64)


# -- what the data don't determine -----------------------------------------------------------------


def _blocks(basis: Any) -> Blocks:
    """Return the numbers of the functions of each combination of elements, the central one first.

    As pacemaker names them, and in the order of the coefficients.
    """
    blocks: dict[str, list[int]] = {}
    number = 0
    for rank1, more in zip(basis.basis_rank1, basis.basis, strict=True):
        for function in (*rank1, *more):
            central = basis.elements_name[function.mu0]
            others = sorted({basis.elements_name[mu] for mu in function.mus} - {central})
            blocks.setdefault(" ".join((central, *others)), []).append(number)
            number += 1
    return blocks


def _zero_blocks(equations: Equations, blocks: Blocks) -> Iterator[str]:
    """Yield the blocks whose functions all vanish in the data."""
    diagonal = equations.matrix.diagonal()
    yield from (name for name, numbers in blocks.items() if not diagonal[numbers].any())


def _require_solvable(equations: Equations, blocks: Blocks) -> None:
    """Reject equations that no ridge makes solvable; name the affected blocks."""
    matrix = equations.matrix
    if np.isfinite(equations.gram).all() and matrix.any():
        return
    found = []
    for name, numbers in blocks.items():
        part = matrix[np.ix_(numbers, numbers)]
        finite = bool(np.isfinite(part).all())
        rank = np.linalg.matrix_rank(part, hermitian=True) if finite else None
        if rank != len(numbers):
            size = "not finite" if rank is None else f"rank {rank}"
            found.append(f"block {name} ({size} of {len(numbers)} functions)")
    raise TrainingError(
        f"the data determine no coefficients: {', '.join(found) or 'energies or forces'}",
        hint="look for structures without neighbours within training.cutoff, or for atoms that "
        "lie on each other",
    )


# -- processes -------------------------------------------------------------------------------------


def _processes(
    cores: int, functions: int, atoms: int
) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """Return a pool sized by work, cores and memory, or None for a single process."""
    # The rows of a batch, two matrices, their copies on the way here, pyace's lists.
    needed = _PROCESS_BYTES + 8 * 8 * max(functions, _BATCH_ATOMS) * functions
    count = min(cores, atoms // _ATOMS_WORTH_A_PROCESS, available_memory() // 2 // needed)
    if count <= 1:
        return nullcontext(None)
    return worker_pool(count, _silence)


def _silence() -> None:
    """Suppress pyace's log and its pandas warnings on the console."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
