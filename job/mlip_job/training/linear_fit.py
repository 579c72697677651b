"""A linear least-squares fit of an ACE potential, from pyace's design matrix and weights.

With fixed radial functions the first density of the embedding is linear in its coefficients. What
pacemaker minimises step by step, the weighted squares of the errors plus ``L1_coeffs`` and
``L2_coeffs`` times the absolute and squared coefficients, is a matter of the normal equations then.
They are summed up over batches of structures, so that memory does not grow with their number.

A second density begins with zero, as all do in a fit from nothing. Where the first one is at its
optimum the gradient for the second nearly vanishes, but the fit leaves that point: a second density
that began with 0.1 of the linear solution, the first one fitted again to what it leaves, came out
better for copper, worse for copper-gold (docs/performance.md), and was not worth it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip_job.processes import die_with
from mlip_job.training.linear_task import LinearStart

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from mlip_job.training.linear_task import LinearTask

    FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    Equations = tuple[FloatArray, FloatArray, float]
    Work = tuple[Mapping[str, Any], Any, float]

MOST_ATOMS = 10_000
"""Of a sample: its 30,000 force components are many times the coefficients."""

_BATCH_ATOMS = 256  # at least; a second or so
_ATOMS_WORTH_A_PROCESS = 1_000  # its start takes two seconds of imports
_MOST_BYTES = 2 << 30  # of all processes together; one alone may need more
_SMALLEST_RIDGE = 1e-14
"""Relative to the largest diagonal element: the equations can be solved where ``l2`` is 0."""
_REWEIGHTINGS = 10
_SMALLEST_COEFFICIENT = 1e-9


def fit_linear(task: LinearTask) -> LinearStart:
    """Fit a potential by linear least squares, and write it."""
    _silence()
    basis = _basis(task.section)
    functions = _count_functions(basis)
    frame = _sample(_weighted(task), task)
    atoms = int(frame["NUMBER_OF_ATOMS"].sum())
    with _processes(task.cores, functions, atoms) as pool:
        # Each batch holds as many atoms as there are functions: its rows are thrice the matrix.
        batches = _batches(frame, max(_BATCH_ATOMS, functions))
        work = ((task.section, batch, task.kappa) for batch in batches)
        matrix, right, square = _sum((pool.map if pool else map)(_equations, work))
    coefficients = solve(matrix, right, task.l1, task.l2)
    densities = len(basis.basis_coeffs) // functions
    columns = [coefficients, *[np.zeros(functions)] * (densities - 1)]
    basis.basis_coeffs = np.column_stack(columns).ravel()
    basis.to_BBasisConfiguration().save(f"{task.directory}/{task.potential}")
    loss = square - 2 * coefficients @ right + coefficients @ matrix @ coefficients
    return LinearStart(structures=len(frame), atoms=atoms, functions=functions, loss=float(loss))


def _basis(section: Mapping[str, Any]) -> Any:
    from pyace.basis import ACEBBasisSet  # noqa: PLC0415 - seconds, and it changes logging
    from pyace.basisextension import construct_bbasisconfiguration  # noqa: PLC0415

    return ACEBBasisSet(construct_bbasisconfiguration(dict(section)))


def _count_functions(basis: Any) -> int:
    from pyace.linearacefit import compute_nfunc_func_ind_shift  # noqa: PLC0415

    return int(compute_nfunc_func_ind_shift(basis)[0])


# -- what is fitted to -----------------------------------------------------------------------------


def _weighted(task: LinearTask) -> Any:
    """Return the training set with the weights that pacemaker gives it (`pyace.preparedata`)."""
    import pandas as pd  # noqa: PLC0415
    from pyace.preparedata import apply_weights  # noqa: PLC0415

    def read(names: Iterable[str], *, train: bool) -> Any:
        paths = [f"{task.directory}/{name}" for name in names]
        # Frames that this very run wrote.
        parts = [pd.read_pickle(path, compression="gzip") for path in paths]  # noqa: S301
        return pd.concat(parts).assign(train=train)

    sides = [read(task.train, train=True), read(task.test, train=False)]
    # An energy-based weighting looks at both, as in `ACEDataset.prepare_datasets`.
    frame = pd.concat(sides).reset_index(drop=True)
    frame["NUMBER_OF_ATOMS"] = frame["ase_atoms"].map(len)
    frame["pbc"] = frame["ase_atoms"].map(lambda atoms: bool(atoms.pbc.all()))
    frame["energy_corrected_per_atom"] = frame["energy_corrected"] / frame["NUMBER_OF_ATOMS"]
    frame = apply_weights(frame, dict(task.weighting) if task.weighting else None)
    return frame[frame["train"]].reset_index(drop=True)


def _sample(frame: Any, task: LinearTask) -> Any:
    """Return structures of `MOST_ATOMS` atoms or a few more, weighted as in the fit."""
    from pyace.preparedata import normalize_energy_forces_weights  # noqa: PLC0415

    random = np.random.default_rng(task.seed)
    if frame["NUMBER_OF_ATOMS"].sum() > MOST_ATOMS:
        order = random.permutation(len(frame))
        before = frame["NUMBER_OF_ATOMS"].to_numpy()[order].cumsum() < MOST_ATOMS
        count = int(before.sum()) + 1
        frame = frame.iloc[np.sort(order[:count])].reset_index(drop=True)
    if task.resampled:
        # The Bayesian bootstrap: D. B. Rubin, Ann. Statist. 9, 130 (1981).
        factors = random.exponential(size=len(frame))
        for column in ("w_energy", "w_forces"):
            frame[column] *= factors
    normalize_energy_forces_weights(frame)
    return frame


def _batches(frame: Any, atoms: int) -> Iterator[Any]:
    """Yield consecutive structures with so many atoms, or a few more."""
    number = (frame["NUMBER_OF_ATOMS"].cumsum() - 1) // atoms
    for _, batch in frame.groupby(number, sort=True):
        yield batch.reset_index(drop=True)


# -- the equations ---------------------------------------------------------------------------------


def _equations(work: Work) -> Equations:
    """Return AᵀWA, AᵀWy and yᵀWy of some structures."""
    from pyace.linearacefit import LinearACEDataset, generate_data  # noqa: PLC0415

    section, frame, kappa = work
    data = LinearACEDataset(_basis(section), frame)
    structures, atoms = data.total_number_of_structures, int(data.total_number_of_atoms)
    design = np.zeros((structures + 3 * atoms, data.nfunc))
    # What `LinearACEDataset.construct_design_matrix` runs in processes whose death it overlooks.
    generate_data(
        frame, data.basis, design.reshape(-1), (0, structures), (0, atoms), data.cutoff,
        data.elements_mapper_dict,
    )  # fmt: skip
    weights = np.concatenate(
        [
            (1 - kappa) * frame["w_energy"].to_numpy(),
            kappa * np.repeat(np.concatenate(frame["w_forces"].to_list()), 3),
        ]
    )
    roots = np.sqrt(weights)
    target = data.get_target_vector() * roots
    design *= roots[:, None]
    return design.T @ design, design.T @ target, float(target @ target)


def _sum(parts: Iterable[Equations]) -> Equations:
    """Add up batches in their order: the sum does not depend on the number of processes."""
    parts = iter(parts)
    matrix, right, square = next(parts)
    for more in parts:
        matrix, right, square = matrix + more[0], right + more[1], square + more[2]
    return matrix, right, square


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
    needed = 5 * 8 * max(functions, _BATCH_ATOMS) * functions  # batch, matrix, pyace's lists
    count = min(cores, atoms // _ATOMS_WORTH_A_PROCESS, _MOST_BYTES // needed)
    if count <= 1:
        return nullcontext(None)
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
