"""The words for the parts of a run, the same whichever scheduler has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlip_job.schedulers.base import JobState, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.schedulers.base import JobStatus


@dataclass(frozen=True)
class StageWords:
    """How to speak of a part.

    Attributes
    ----------
    name
        What it is called; None for all of a run, or all that is left of it.
    does
        What its job does, behind "it" or "which".
    failed
        What came of it when it failed.
    """

    name: str | None
    does: str
    failed: str


WORDS: Mapping[Stage, StageWords] = {
    Stage.DATASET: StageWords("the dataset", "makes the dataset", "the dataset was not made"),
    Stage.FIT: StageWords("the fit", "fits", "the fit failed"),
    Stage.PUBLISH: StageWords(
        "evaluation and publishing",
        "evaluates and publishes",
        "the fit is done, but was not published",
    ),
    Stage.WHOLE: StageWords(None, "fits and publishes", "the dataset is made, but the run failed"),
}
"""Those of `Stage.WHOLE` are of what is left to do after `Stage.DATASET`."""


def in_brackets(stage: Stage) -> str:
    """Return the name of a part to stand behind another, `` (the fit)``; nothing for a whole."""
    name = WORDS[stage].name
    return f" ({name})" if name is not None else ""


def of_part(status: JobStatus, stage: Stage) -> JobStatus:
    """Return the status of a job that does a part of a run; the reason tells which."""
    words = WORDS[stage]
    if status.state is JobState.FAILED:
        return replace(status, reason=f"{words.failed}: {status.reason}")
    if status.state.ended:
        return status
    reason = f"it {words.does}" + (f"; {status.reason}" if status.reason else "")
    return replace(status, reason=reason)
