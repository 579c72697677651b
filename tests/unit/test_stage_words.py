"""What is said of the parts of a run, whichever scheduler has them."""

from __future__ import annotations

import pytest

from mlip_job.schedulers.base import JobState, JobStatus, Stage
from mlip_job.schedulers.stage_words import WORDS, in_brackets, of_part


def test_every_part_has_its_words() -> None:
    """And no two of them the same."""
    assert list(WORDS) == list(Stage)
    for words in zip(*((w.name, w.does, w.failed) for w in WORDS.values()), strict=True):
        assert len(set(words)) == len(Stage)


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("state", JobState)
def test_the_reason_tells_which_part_it_is(stage: Stage, state: JobState) -> None:
    """Of what is going on and of what failed; nothing is to be told of what was done."""
    status = JobStatus(state, "NATIVE", "a reason", "a hint", 65, resubmit=True)
    part = of_part(status, stage)
    if state is JobState.FAILED:
        assert part.reason == f"{WORDS[stage].failed}: a reason"
    elif state.ended:
        assert part.reason == "a reason"
    else:
        assert part.reason == f"it {WORDS[stage].does}; a reason"
    assert (part.state, part.native, part.hint, part.exit_code, part.resubmit) == (
        (state, "NATIVE", "a hint", 65, True)
    )


def test_a_part_without_a_reason() -> None:
    """That it runs needs none; that it was cancelled neither."""
    assert of_part(JobStatus(JobState.RUNNING, ""), Stage.FIT).reason == "it fits"
    assert of_part(JobStatus(JobState.CANCELLED, ""), Stage.FIT).reason is None


def test_the_name_of_a_part_follows_that_of_the_generation() -> None:
    """A whole run needs none."""
    assert in_brackets(Stage.PUBLISH) == " (evaluation and publishing)"
    assert in_brackets(Stage.WHOLE) == ""
