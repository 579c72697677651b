"""What a ladder costs: pacemaker builds its graphs anew in every step, on one core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.errors import TrainingError
from mlip_job.naming import generation_name
from mlip_job.training.log_state import Phase
from mlip_job.training.phases import phase_seconds
from mlip_job.training.potential_yaml import functions_per_block, read_potential

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlip_job.config import TrainingConfig
    from mlip_job.naming import WorkFiles
    from mlip_job.training.log_state import LogState
    from mlip_job.training.process import Progress

LadderStep = int | float | tuple[float, ...]

_WORTH_A_WORD_SECONDS = 60.0
_FEWER = "training.ladder_step: null, or larger steps, builds fewer"


def count_steps(step: LadderStep, target: Mapping[str, int], start: Mapping[str, int]) -> int:
    """Return how many steps a ladder takes.

    As pacemaker counts (`pyace.basisextension.get_actual_ladder_step`,
    `pyace.multispecies_basisextension.extend_multispecies_basis`): the size of a step follows from
    the functions that there are, and every block grows by so many.

    Parameters
    ----------
    step
        ``ladder_step``.
    target, start
        Functions of each block in the end and in the beginning.
    """
    parts = step if isinstance(step, tuple) else (step,)
    number = max((int(part) for part in parts if part >= 1), default=0)
    fraction = max((part for part in parts if part < 1), default=0.0)
    now = {block: min(start.get(block, 0), size) for block, size in target.items()}
    steps = 0
    while any(now[block] < size for block, size in target.items()):
        total = sum(now.values())
        grown = min(max(number, round(fraction * total), 1), sum(target.values()) - total)
        now = {block: min(now[block] + grown, size) for block, size in target.items()}
        steps += 1
    return steps


def ladder_of(training: TrainingConfig) -> str | None:
    """Return how many steps the ladder of a fit may have; None where it is one step at most.

    None also where the size of the basis follows from data that are not known yet.
    """
    if training.ladder_step is None or training.linear_start:
        return None
    if training.functions_per_element == "auto":
        return None
    # With more elements the functions are spread over more blocks, which all grow at once.
    steps = count_steps(training.ladder_step, {"block": training.functions_per_element}, {})
    if steps == 1:
        return None
    return f"a ladder of up to {steps} steps, of which each builds its graphs anew"


def advice_beforehand(training: TrainingConfig, generation: int) -> str | None:
    """Return what a fit from nothing costs by its ladder, and what to change.

    None where there is nothing to say, or where it follows from the potential of a parent.
    """
    from_nothing = generation == 1 or training.start_from == "none"
    ladder = ladder_of(training)
    if ladder is None or not from_nothing:
        return None
    return f"{generation_name(generation)} is fitted by {ladder}: {_FEWER}"


class LadderWatch:
    """Says once, after the first step of a ladder, when all of it will mostly build graphs.

    Parameters
    ----------
    files
        Where pacemaker runs.
    step
        ``ladder_step``, None without a ladder.
    message
        Called with what there is to say.
    """

    def __init__(
        self, files: WorkFiles, step: LadderStep | None, message: Callable[[str], None]
    ) -> None:
        self._files = files
        self._step = step
        self._message = message
        self._done = step is None

    def observe(self, progress: Progress) -> None:
        """Look whether the first step has just ended."""
        first = self._files.ladder_potential(0)
        # The next step has begun, so that the potential of the first one is written in full.
        begun = progress.phase == Phase.BUILDING_GRAPH and first.is_file()
        if self._done or self._step is None or not begun:
            return
        self._done = True
        try:
            grown = functions_per_block(read_potential(first))
            target = functions_per_block(read_potential(self._files.target_potential))
        except TrainingError:
            return  # advice is no reason to end a fit
        steps = 1 + count_steps(self._step, target, grown)
        if advice := _forecast(steps, progress.timings_s):
            self._message(advice)


def graphs_advice(state: LogState) -> str | None:
    """Return what to change where a ladder built graphs for longer than it fitted, if it did."""
    timings = phase_seconds(state)
    building, test, fitting = _split(timings)
    times = sum(1 for phase, _ in state.phases if phase is Phase.BUILDING_GRAPH)
    if times < 2 or building <= fitting or building < _WORTH_A_WORD_SECONDS:  # noqa: PLR2004 - one is no ladder
        return None
    return (
        f"building graphs {times} times took {building:.0f} s, fitting {fitting:.0f} s: "
        f"{_remedy(test)}"
    )


def _forecast(steps: int, timings_s: Mapping[str, float]) -> str | None:
    building, test, fitting = _split(timings_s)
    if steps < 2 or building <= fitting or steps * building < _WORTH_A_WORD_SECONDS:  # noqa: PLR2004 - one is no ladder
        return None
    return (
        f"note: the first of {steps} ladder steps took {building:.0f} s to build its graphs and "
        f"{fitting:.0f} s to fit, and each step builds them anew, {steps * building:.0f} s or more "
        f"in all: {_remedy(test)}"
    )


def _split(timings_s: Mapping[str, float]) -> tuple[float, float, float]:
    """Return the seconds of building graphs, of those for the test set, and of fitting."""
    test = timings_s.get(Phase.BUILDING_TEST_GRAPH, 0.0)
    building = timings_s.get(Phase.BUILDING_GRAPH, 0.0) + test
    return building, test, timings_s.get(Phase.FITTING, 0.0)


def _remedy(test: float) -> str:
    if not test:
        return _FEWER
    return f"{_FEWER}; training.validation_fraction: 0 spares those of the validation part"
