"""Positions of a fit, and copies of its state that a later attempt can resume from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.models import Frozen

if TYPE_CHECKING:
    from pathlib import Path

POTENTIAL = "potential.yaml"
"""Name of the potential in a checkpoint."""


class FitPosition(Frozen):
    """A position from which a fit can resume.

    Attributes
    ----------
    ladder_step
        From 0; 0 without a ladder.
    iteration
        Iterations done in this step.
    step_done
        Whether the step is complete.
    last_step
        Whether the potential has all its functions: no step of a ladder follows.
    finished
        Whether the trainer has ended, and only publishing is left.
    """

    ladder_step: int
    iteration: int
    step_done: bool
    last_step: bool
    finished: bool = False

    def order(self) -> tuple[bool, int, bool, int]:
        """Return a sort key: earlier positions of a fit come first."""
        return self.finished, self.ladder_step, self.step_done, self.iteration

    def __str__(self) -> str:
        """Name the position; ladder steps count from 1 here."""
        step = f"ladder step {self.ladder_step + 1}, " if self.ladder_step else ""
        if self.finished:
            return "the end of the fit"
        return f"{step}iteration {self.iteration}" if step or self.iteration else "the linear fit"


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state of a fit.

    Attributes
    ----------
    position
        Of the potential.
    iterations
        Length of the learning curve up to there, over all steps and attempts.
    files
        By their names in the checkpoint: the potential, the tables up to there, and the best
        potential so far, which may be newer.
    """

    position: FitPosition
    iterations: int
    files: dict[str, Path]
