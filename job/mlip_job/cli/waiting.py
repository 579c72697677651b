"""``submit --wait``: follow a generation until it is published or has failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlip_job.cli.job_view import GenerationView, State
from mlip_job.cli.jobs import name_of
from mlip_job.errors import InterruptedRunError, MlipJobError, TrainingError, UnavailableError
from mlip_job.paths import generation_name
from mlip_job.schedulers.base import JobState, meaning_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.cli.job_view import Observatory
    from mlip_job.config.schedulers import SubmitConfig
    from mlip_job.registry import Manifest
    from mlip_job.schedulers.base import JobHandle, JobStatus

_MAX_RESUBMITS = 20

_LOOKS = 4
"""So often in a row a generation may be found neither trained nor published."""


def wait_until_published(
    generation: int,
    submit_again: Callable[[], JobHandle],
    observe: Callable[[], Observatory],
    settings: SubmitConfig,
    tell: Callable[[str], None],
) -> Manifest:
    """Wait for a generation; resubmit it if its job ended for an external reason, e.g. preemption.

    Parameters
    ----------
    generation
        What was submitted.
    submit_again
        Makes the same submission.
    observe
        Returns a new observer of the generations.
    settings
        How often to look.
    tell
        Receives a message at each change.

    Raises
    ------
    MlipJobError
        Of the kind that the run ended with.
    """
    name = generation_name(generation)
    told, lost, resubmits = "", 0, 0
    while True:
        try:
            view, text = _look(observe(), generation)
        except UnavailableError as error:
            view, text = None, f"{name}: {error.message}; looking again"
        if text != told:
            tell(text)
            told = text
        if view is not None and view.manifest is not None:
            return view.manifest
        status = view.status if view is not None else None
        if (
            status is not None
            and view is not None
            and view.state in (State.FAILED, State.CANCELLED)
        ):
            if not status.resubmit or resubmits >= _MAX_RESUBMITS:
                raise _error(view, status)
            resubmits += _submit_again(name, submit_again, tell)
        lost = lost + 1 if view is not None and _is_lost(view) else 0
        if view is not None and lost == _LOOKS:
            words = f": {view.words()}" if view.words() else ""
            raise UnavailableError(
                f"{name} is not known to be published, and no job for it waits or runs{words}",
                hint=f"mlip-job logs -g {generation} shows what is left of its log",
            )
        time.sleep(settings.poll_interval)


def _look(observatory: Observatory, generation: int) -> tuple[GenerationView, str]:
    view = observatory.look(generation)
    job_failed = view.state in (State.FAILED, State.CANCELLED)  # final: the store adds nothing
    for error in observatory.unread.values():
        if view.manifest is None and not job_failed and not _is_final(view, error):
            raise UnavailableError(error.message)
    words = view.words()
    if view.status is not None and view.status.state is JobState.PENDING and view.status.hint:
        words += f" ({view.status.hint})"
    return view, f"{generation_name(generation)}: {view.state}" + (f", {words}" if words else "")


def _submit_again(
    name: str, submit_again: Callable[[], JobHandle], tell: Callable[[str], None]
) -> int:
    """Resubmit; return how often: 0 while the scheduler rejects jobs."""
    try:
        job = name_of(submit_again())
    except UnavailableError as error:
        tell(f"{name}: can't be submitted again for now: {error.message}")
        return 0
    tell(f"{name}: submitted again as {job}, to resume from its checkpoint")
    return 1


def _is_final(view: GenerationView, error: MlipJobError) -> bool:
    """Return whether a job has ended while the store remains unavailable."""
    transient = isinstance(error, UnavailableError) and error.transient
    return view.state is State.ENDED and not transient


def _is_lost(view: GenerationView) -> bool:
    return view.state in (State.ABSENT, State.UNKNOWN, State.STOPPED, State.ENDED)


def _error(view: GenerationView, status: JobStatus) -> MlipJobError:
    """Return the error that the run itself would have ended with."""
    kind: type[MlipJobError] = TrainingError
    if view.state is State.CANCELLED or status.resubmit:
        kind = InterruptedRunError
    elif status.exit_code is not None:
        kind = meaning_of(status.exit_code).error
    if kind is MlipJobError:
        kind = TrainingError
    text = f"{generation_name(view.generation)} {view.state}"
    return kind(f"{text}: {view.words()}" if view.words() else text, hint=view.remedy())
