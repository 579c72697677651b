"""The linear fit before the trainer: task, result and process."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mlip_job.errors import MlipJobError, TrainingError
from mlip_job.models import Frozen
from mlip_job.runtime.processes import run_in_process
from mlip_job.training.pacemaker.programs import find_program
from mlip_job.training.summary import LossShares, RunSummary, SetSizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True)
class LinearTask:
    """The input of a linear least-squares fit.

    Attributes
    ----------
    section
        Pacemaker's ``potential`` section, which describes the basis.
    kappa, l1, l2
        Of pacemaker's loss: the weight of the forces, and of the absolute and squared coefficients.
        The absolute ones only count in the shares of the loss; l2 is the smallest ridge.
    weighting
        Pacemaker's ``fit.weighting``, if there is one.
    train, test
        Pacemaker's data frames, relative to `directory`.
    held_out
        Held-out rows for the choice of the ridge: of `train` if the fit is published, else of
        `test`.
    potential
        Name of the file that is written in `directory`.
    finished
        Whether the fit is published. It gets ZBL cores then (`repulsion`) and keeps the reference
        energies (eV per atom), as pacemaker's fits do.
    seed, resampled
        Whether structures get random weights, so that the members of an ensemble differ.
    atoms
        In the training set.
    cores
        Maximum number of processes.
    """

    section: Mapping[str, Any]
    kappa: float
    l1: float
    l2: float
    weighting: Mapping[str, Any] | None
    train: tuple[str, ...]
    test: tuple[str, ...]
    held_out: frozenset[int]
    directory: str
    potential: str
    finished: bool
    repulsion: bool
    reference_energies: Mapping[str, float]
    seed: int
    resampled: bool
    atoms: int
    cores: int


class LinearProgress(NamedTuple):
    """The processed part of the training set."""

    structures: int
    atoms: int


class LinearStart(Frozen):
    """The linear fit that a fit started from, as stored in checkpoints and manifests.

    Attributes
    ----------
    structures, atoms
        Of the training set, without what a weighting leaves out.
    functions
        Number of coefficients.
    loss
        On these structures, without regularisation: (1-κ)·MSE(E/atom, eV) + κ·mean|ΔF|² (eV/Å),
        weighted as in the fit.
    ridge
        Weight of the squared coefficients: ``l2_coeffs``, or a larger one that was better on
        structures that were held out.
    undetermined
        Blocks, as ``Al Li``, of which the data have no structure; their coefficients are 0.
    """

    structures: int
    atoms: int
    functions: int
    loss: float
    ridge: float | None = None
    undetermined: tuple[str, ...] = ()
    loss_shares: LossShares | None = None


def run_linear_fit(task: LinearTask, observe: Callable[[LinearProgress], None]) -> LinearStart:
    """Run a linear fit in a separate process, which releases its memory at the end.

    Raises
    ------
    ConfigError
        If python-ace is not installed.
    TrainingError
        If the fit fails.
    """
    find_program("pacemaker")  # python-ace comes with it
    died = TrainingError(
        "the process of the linear start died",
        hint="give the job more memory, or set training.linear_start: false",
    )
    return run_in_process(_fit, task, died=died, on_message=observe)


def _fit(tell: Callable[[LinearProgress], None], task: LinearTask) -> LinearStart:
    # Standard output is reserved for the job's own output.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        from mlip_job.training.pacemaker.linear_fit import fit_linear  # noqa: PLC0415 - numpy and pyace

        return fit_linear(tell, task)
    except MlipJobError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever pyace or numpy raise
        raise _in_words(error) from None


def _in_words(error: Exception) -> MlipJobError:
    cause = f"{type(error).__name__}: {error}".rstrip(": ")
    return TrainingError(
        f"the linear start failed: {cause}", hint="set training.linear_start: false to do without"
    )


def undetermined(made: LinearStart) -> Iterator[str]:
    """Yield warnings about functions that the data do not determine."""
    for block in made.undetermined:
        centre, *others = block.split()
        neighbours = " and ".join(others or [centre])
        yield (
            f"no training structure has an atom of {centre} with {neighbours} as neighbour within "
            f"the cutoff, so the data determine none of the functions {block!r}: their "
            "coefficients are 0. Add such structures where the potential is to describe them; "
            "nothing is to be done where they can't occur"
        )


def summarise_linear_fit(made: LinearStart) -> RunSummary:
    """Summarise a linear fit that pacemaker did not continue: it has no curve and no log."""
    sizes = SetSizes(found=None, kept=None, fitted=made.structures)
    return RunSummary(
        status="succeeded",
        cause=None,
        exit_code=0,
        train=None,
        test=None,
        loss_shares=made.loss_shares,
        iterations=0,
        functions=made.functions,
        parameters=made.functions,
        ladder=False,
        cycles=(),
        early_stopping=None,
        optimiser_message=None,
        structures={"train": sizes},
        versions={},
        timings_s={},
        train_curve=(),
        test_curve=(),
        warnings=tuple(undetermined(made)),
    )
