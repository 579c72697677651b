"""A linear least-squares fit of an ACE potential, from pyace's design matrix and weights.

With fixed radial functions the first density of the embedding is linear in its coefficients. What
pacemaker minimises step by step, the weighted squares of the errors plus ``L1_coeffs`` and
``L2_coeffs`` times the absolute and squared coefficients, is a matter of the normal equations then.
They are summed over batches of structures, so that memory does not grow with their number.

The other densities begin with zero, as all do in a fit from nothing. Where the first one is at its
optimum the gradient for a second nearly vanishes, but the fit leaves that point: a second density
that began with 0.1 of the linear solution, the first one fitted again to what it leaves, came out
better for copper, worse for copper-gold (docs/performance.md), and was not worth it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlip_job.environment import available_memory
from mlip_job.processes import die_with, in_order
from mlip_job.training.linear_task import LinearProgress, LinearStart
from mlip_job.training.loss_shares import shares
from mlip_job.training.weighting import FITTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from mlip_job.training.linear_task import LinearTask

    FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    Work = tuple[str, Any]

_BATCH_ATOMS = 256  # at least; a second or so
_ATOMS_WORTH_A_PROCESS = 1_000  # its start takes two seconds of imports
_PROCESS_BYTES = 300 << 20  # of a process that has imported pyace
_ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")
}
_SMALLEST_RIDGE = 1e-14
"""Relative to the largest diagonal element: the equations can be solved where ``l2`` is 0."""
_REWEIGHTINGS = 10
_SMALLEST_COEFFICIENT = 1e-9


def fit_linear(tell: Callable[[LinearProgress], None], task: LinearTask) -> LinearStart:
    """Fit a potential by linear least squares, and write it.

    Parameters
    ----------
    tell
        Called after each batch of structures.
    task
        What to fit, and to what.
    """
    _silence()
    basis = _basis(task)
    functions = _count_functions(basis)
    with tempfile.TemporaryDirectory(dir=task.directory) as scratch:
        path = f"{scratch}/basis.yaml"
        basis.to_BBasisConfiguration().save(path)
        sums = _sum_batches(path, functions, task, tell)
    equations = sums.of_loss(task.kappa)
    coefficients = solve(equations.matrix, equations.right, task.l1, task.l2)
    _write(basis, coefficients, sums.shortest, task)
    energies, forces = sums.errors(coefficients, task.kappa)
    return LinearStart(
        structures=sums.structures,
        atoms=sums.atoms,
        functions=functions,
        loss=energies + forces,
        loss_shares=shares(
            energies,
            forces,
            {
                "l1_coeffs": task.l1 * float(np.abs(coefficients).sum()),
                "l2_coeffs": task.l2 * float(coefficients @ coefficients),
            },
        ),
    )


def _basis(task: LinearTask) -> Any:
    from pyace.basis import ACEBBasisSet  # noqa: PLC0415 - seconds, and it changes logging
    from pyace.basisextension import construct_bbasisconfiguration  # noqa: PLC0415

    return ACEBBasisSet(construct_bbasisconfiguration(dict(task.section)))


def _count_functions(basis: Any) -> int:
    from pyace.linearacefit import compute_nfunc_func_ind_shift  # noqa: PLC0415

    return int(compute_nfunc_func_ind_shift(basis)[0])


def _write(basis: Any, coefficients: FloatArray, shortest: Distances, task: LinearTask) -> None:
    """Write a potential whose first density has these coefficients, the others none."""
    from pyace.generalfit import setup_zbl_inner_core_repulsion  # noqa: PLC0415
    from pyace.utils.utils import complement_min_dist_dict  # noqa: PLC0415

    densities = len(basis.basis_coeffs) // len(coefficients)
    columns = [coefficients, *[np.zeros_like(coefficients)] * (densities - 1)]
    basis.basis_coeffs = np.column_stack(columns).ravel()
    potential = basis.to_BBasisConfiguration()
    if task.finished:
        potential.metadata["reference_energy"] = json.dumps(dict(task.reference_energies))
        if task.repulsion:
            distances = complement_min_dist_dict(shortest, {}, basis.elements_name, verbose=False)
            setup_zbl_inner_core_repulsion(potential, distances)
    potential.save(f"{task.directory}/{task.potential}")


# -- what is fitted to -----------------------------------------------------------------------------


def _batches(task: LinearTask, atoms: int) -> Iterator[Any]:
    """Yield the training set in batches of so many atoms, or a few more, as its files have it."""
    random = np.random.default_rng(task.seed)
    weighted = _weighting(task)
    for name in task.train:
        frame = weighted(_read(task, name))
        if task.resampled:
            # The Bayesian bootstrap: D. B. Rubin, Ann. Statist. 9, 130 (1981).
            factors = random.exponential(size=len(frame))
            for column in ("w_energy", "w_forces"):
                frame[column] *= factors
        number = (frame["NUMBER_OF_ATOMS"].cumsum() - 1) // atoms
        for _, batch in frame.groupby(number, sort=True):
            yield batch.reset_index(drop=True)


def _read(task: LinearTask, name: str) -> Any:
    import pandas as pd  # noqa: PLC0415

    path = f"{task.directory}/{name}"
    # Frames that this very run wrote or checked against their hashes.
    frame = pd.read_pickle(path, compression="gzip")  # noqa: S301
    return frame.assign(NUMBER_OF_ATOMS=frame["ase_atoms"].map(len))


def _weighting(task: LinearTask) -> Callable[[Any], Any]:
    """Return what gives structures the weights that pacemaker gives them (`pyace.preparedata`).

    They need not be normalised: each sum of equations knows the sum of its weights.
    """
    if not task.weighting:
        return _with_weights
    weights = _weights_by_policy(task)

    def weighted(frame: Any) -> Any:
        return frame.join(weights, on="name", how="inner").reset_index(drop=True)

    return weighted


def _with_weights(frame: Any) -> Any:
    """Weight all structures and atoms alike, unless they have weights by their group."""
    if "w_energy" in frame:
        return frame
    ones = [np.ones(atoms) for atoms in frame["NUMBER_OF_ATOMS"]]
    return frame.assign(w_energy=1.0, w_forces=ones)


def _weights_by_policy(task: LinearTask) -> Any:
    """Return the weights of an energy-based policy by structure; some are left out.

    It looks at all structures, training and test set (`ACEDataset.prepare_datasets`), at once.
    """
    import pandas as pd  # noqa: PLC0415
    from pyace.preparedata import apply_weights  # noqa: PLC0415

    sides = [
        _read(task, name).assign(train=side == "train")
        for side in ("train", "test")
        for name in getattr(task, side)
    ]
    frame = pd.concat(sides, ignore_index=True)
    frame["pbc"] = frame["ase_atoms"].map(lambda atoms: bool(atoms.pbc.all()))
    frame["energy_corrected_per_atom"] = frame["energy_corrected"] / frame["NUMBER_OF_ATOMS"]
    frame = apply_weights(frame, dict(task.weighting or {}))
    for side, fitted in (("train", frame["train"]), ("test", ~frame["train"])):
        # As pacemaker does.
        frame.loc[fitted, ["name"]].to_pickle(f"{task.directory}/{FITTED[side]}", "gzip")
    return frame.set_index("name")[["w_energy", "w_forces"]]


# -- the equations ---------------------------------------------------------------------------------


class Equations(NamedTuple):
    """AᵀWA, AᵀWy, yᵀWy and ΣW of some rows of the design matrix."""

    matrix: FloatArray
    right: FloatArray
    square: float
    weight: float

    @classmethod
    def of_rows(cls, design: FloatArray, target: FloatArray, weights: FloatArray) -> Equations:
        """Return those of all rows given."""
        roots = np.sqrt(weights)
        rows, target = design * roots[:, None], target * roots
        return cls(rows.T @ rows, rows.T @ target, float(target @ target), float(weights.sum()))

    def plus(self, other: Equations) -> Equations:
        """Return the sum of both."""
        return Equations(
            self.matrix + other.matrix,
            self.right + other.right,
            self.square + other.square,
            self.weight + other.weight,
        )

    def times(self, factor: float) -> Equations:
        """Return them with all weights scaled."""
        return Equations(
            factor * self.matrix, factor * self.right, factor * self.square, factor * self.weight
        )

    def squared_error(self, coefficients: FloatArray) -> float:
        """Return the weighted squares of the errors that are left."""
        left = self.square - 2 * coefficients @ self.right
        return float(left + coefficients @ self.matrix @ coefficients)


class Distances(dict[tuple[int, int], float]):
    """The shortest distance (Å) of each pair of elements, by their numbers in the basis."""

    def with_those(self, other: Mapping[tuple[int, int], float]) -> Distances:
        """Return the shorter one of each pair."""
        pairs = {*self, *other}
        return Distances({p: min(self.get(p, inf), other.get(p, inf)) for p in pairs})


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
            self.shortest.with_those(other.shortest),
        )

    def errors(self, coefficients: FloatArray, kappa: float) -> tuple[float, float]:
        """Return what energies and forces contribute to pacemaker's loss."""
        energies = (1 - kappa) / self.energies.weight * self.energies.squared_error(coefficients)
        forces = 3 * kappa / self.forces.weight * self.forces.squared_error(coefficients)
        return max(0.0, energies), max(0.0, forces)  # a perfect fit is left with rounding errors

    def of_loss(self, kappa: float) -> Equations:
        """Return the equations of pacemaker's loss, with each set of weights normalised."""
        energies = self.energies.times((1 - kappa) / self.energies.weight)
        # Of forces the weights of atoms are normalised, and an atom has three rows.
        forces = self.forces.times(3 * kappa / self.forces.weight)
        return energies.plus(forces)


def _sum_batches(
    basis: str, functions: int, task: LinearTask, tell: Callable[[LinearProgress], None]
) -> Sums:
    """Sum the equations in the order of the batches: processes don't change the result."""
    total: Sums | None = None
    with _processes(task.cores, functions, task.atoms) as pool:
        # Each batch holds as many atoms as there are functions: its rows are thrice the matrix.
        work = ((basis, batch) for batch in _batches(task, max(_BATCH_ATOMS, functions)))
        parts = in_order(pool, _equations, work, 2 * task.cores) if pool else map(_equations, work)
        for part in parts:
            total = part if total is None else total.plus(part)
            tell(LinearProgress(total.structures, total.atoms))
    assert total is not None  # noqa: S101 - no dataset is empty
    return total


def _equations(work: Work) -> Sums:
    """Return the equations of some structures."""
    basis, frame = work
    energy_rows, force_rows, shortest = _design(_loaded(basis), frame["ase_atoms"])
    sizes = frame["NUMBER_OF_ATOMS"].to_numpy()
    weights = frame["w_energy"].to_numpy(), np.concatenate(frame["w_forces"].to_list())
    return Sums(
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

    What `pyace.linearacefit.LinearACEDataset` does, which leaves the distances to be found again.
    """
    from pyace import ACEBEvaluator, ACECalculator  # noqa: PLC0415
    from pyace.atomicenvironment import aseatoms_to_atomicenvironment  # noqa: PLC0415
    from pyace.linearacefit import compute_nfunc_func_ind_shift  # noqa: PLC0415

    functions, first_of = compute_nfunc_func_ind_shift(basis)
    evaluator = ACEBEvaluator(basis)  # the calculator does not keep it alive
    calculator = ACECalculator(evaluator)
    energies = np.zeros((len(structures), functions))
    forces, shortest = [], Distances()
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
        shortest = shortest.with_those(environment.get_minimal_nn_distance_per_bond())
    return energies, np.concatenate(forces), shortest


@cache
def _loaded(basis: str) -> Any:
    from pyace.basis import ACEBBasisSet  # noqa: PLC0415

    return ACEBBasisSet(basis)


def solve(matrix: FloatArray, right: FloatArray, l1: float, l2: float) -> FloatArray:
    """Minimise cᵀMc - 2rᵀc + l1·Σ|c| + l2·Σc² over c.

    |c| is replaced by the parabola that touches it at the solution before, again and again, which
    lowers the whole every time (iteratively reweighted least squares).
    """
    ridge = max(l2, _SMALLEST_RIDGE * float(matrix.diagonal().max()))
    penalty = np.full(len(right), ridge)
    for _ in range(_REWEIGHTINGS + 1 if l1 else 1):
        solution = np.linalg.solve(matrix + np.diag(penalty), right)
        penalty = ridge + l1 / 2 / np.maximum(np.abs(solution), _SMALLEST_COEFFICIENT)
    return np.asarray(solution, dtype=np.float64)


# -- processes -------------------------------------------------------------------------------------


def _processes(
    cores: int, functions: int, atoms: int
) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """Return as many processes as are worth their start and have the memory, or none."""
    # The rows of a batch, two matrices, their copies on the way here, pyace's lists.
    needed = _PROCESS_BYTES + 8 * 8 * max(functions, _BATCH_ATOMS) * functions
    count = min(cores, atoms // _ATOMS_WORTH_A_PROCESS, available_memory() // 2 // needed)
    if count <= 1:
        return nullcontext(None)
    os.environ.update(_ONE_THREAD)  # read when they load numpy; here it is loaded already
    return ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_initialise,
        initargs=(os.getpid(),),
    )


def _silence() -> None:
    """Keep pyace's log and what its use of pandas warns of from the console."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _initialise(parent: int) -> None:
    _silence()
    die_with(parent)
