"""The legs of a fit: what pacemaker has to be started with, one start after the other.

A fit that runs undisturbed has one leg. One that goes on from within a step of a ladder has two,
since pacemaker starts a ladder only between steps: the first finishes the step, the second climbs
the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlip_job.training.curve import Offset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.training.position import FitPosition

_LADDER = ("ladder_step", "ladder_type")


@dataclass(frozen=True)
class Leg:
    """One start of pacemaker.

    Attributes
    ----------
    content
        Its input file.
    offset
        Where in the whole fit it begins.
    partial
        Whether it only finishes a step of a ladder that another leg will climb further.
    """

    content: Mapping[str, Any]
    offset: Offset = field(default_factory=Offset)
    partial: bool = False

    @property
    def is_ladder(self) -> bool:
        """Whether pacemaker grows the basis step by step."""
        potential = self.content["potential"]
        grows = isinstance(potential, dict) and "initial_potential" in potential
        return grows or "ladder_step" in self.content["fit"]

    @property
    def resumable(self) -> bool:
        """Whether a later start can take up what this one left.

        With several cycles pacemaker takes the best of them in the end, which a start of its own
        could not know.
        """
        return int(self.content["fit"].get("fit_cycles", 1)) == 1


def legs_from(
    position: FitPosition, content: Mapping[str, Any], section: Mapping[str, Any], potential: str
) -> tuple[Leg, ...]:
    """Return the legs that are left of an interrupted fit.

    Parameters
    ----------
    position
        Where it was interrupted.
    content
        The input of the undisturbed fit.
    section
        The ``potential`` section of a basis built from nothing.
    potential
        Name of the file that each leg starts from: the checkpoint, then what the leg before made.
    """
    fit = content["fit"]
    next_step = {
        **content,
        "potential": {**section, "initial_potential": potential},
    }
    climb = Leg(next_step, Offset(position.ladder_step + 1))
    if position.step_done and not position.last_step:
        return (climb,)
    # With nothing left to do pacemaker still evaluates, and puts the ZBL core on.
    left = 0 if position.step_done else max(0, int(fit["maxiter"]) - position.iteration)
    kept = {key: value for key, value in fit.items() if key not in _LADDER}
    if not position.last_step:
        kept.pop("repulsion", None)
    finish = Leg(
        {**content, "potential": potential, "fit": {**kept, "maxiter": left}},
        Offset(position.ladder_step, position.iteration),
        partial=not position.last_step,
    )
    return (finish,) if position.last_step else (finish, climb)
