"""What a linear start is made from, and what is kept of it. Models alone: nothing heavy here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from mlip_job.training.run_summary import LossShares

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class LinearTask:
    """What to fit by linear least squares, and to what.

    Attributes
    ----------
    section
        Pacemaker's ``potential`` section, which describes the basis.
    kappa, l1, l2
        Of pacemaker's loss: weights of the forces, of the absolute and the squared coefficients.
    weighting
        Pacemaker's ``fit.weighting``, if there is one.
    train, test
        Files of pacemaker's data frames, as pacemaker is to find them.
    directory
        Where they are, and where the potential is to be written.
    potential
        Name of that file.
    finished
        Whether it is what will be published, instead of what pacemaker starts from.
    repulsion
        Whether it gets ZBL cores then, as pacemaker puts them on at the end of a fit.
    reference_energies
        eV per atom of each element: they are kept with it then, as pacemaker does.
    seed
        Of the resampling.
    resampled
        Whether structures get random weights, so that members of an ensemble start apart.
    atoms
        In the training set.
    cores
        Most processes.
    """

    section: Mapping[str, Any]
    kappa: float
    l1: float
    l2: float
    weighting: Mapping[str, Any] | None
    train: tuple[str, ...]
    test: tuple[str, ...]
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
    """How much of the training set has been taken into account."""

    structures: int
    atoms: int


class LinearStart(BaseModel):
    """The linear fit that a fit of pacemaker's started from.

    Attributes
    ----------
    structures, atoms
        What it was made from: all of the training set, but for what a weighting leaves out.
    functions
        Coefficients that were solved for.
    loss
        Of the potential that it made, on these structures and without regularisation:
        (1-κ)·MSE(E/atom, eV) + κ·mean|ΔF|² (eV/Å), weighted as in the fit.
    loss_shares
        What makes up the loss with regularisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    structures: int
    atoms: int
    functions: int
    loss: float
    loss_shares: LossShares | None = None
