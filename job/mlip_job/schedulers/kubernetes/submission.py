"""The Jobs of one submission as the API server has them: which one matters, which one is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.schedulers.base import Stage
from mlip_job.schedulers.kubernetes.layout import (
    FAMILY_LABEL,
    FOLLOWS,
    GENERATION_LABEL,
    HELM_RELEASE,
    QUEUE_ANNOTATION,
    QUEUE_LABEL,
    SPEC_HASH,
    STAGE_LABEL,
)
from mlip_job.schedulers.kubernetes.status import has_ended, has_succeeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.schedulers.kubernetes.pod import Manifest


def spec_hash(job: Manifest) -> str | None:
    """Return what a Job's submission is known by; None for a Job that was not submitted."""
    return _annotation(job, SPEC_HASH)


def release_of(job: Manifest) -> str | None:
    """Return the Helm release that a Job belongs to; None for a Job of another maker.

    What renders the chart without helm, as Argo CD does, leaves the labels alone.
    """
    labels = job["metadata"].get("labels") or {}
    if labels.get("app.kubernetes.io/managed-by") != "Helm":
        return None
    return _annotation(job, HELM_RELEASE) or labels.get("app.kubernetes.io/instance")


def is_part(job: Manifest) -> bool:
    """Tell whether a Job is one of several of its submission."""
    return STAGE_LABEL in job["metadata"].get("labels", {})


def stage_of(job: Manifest) -> Stage:
    """Return what a Job does of its run."""
    return Stage(job["metadata"].get("labels", {}).get(STAGE_LABEL, Stage.WHOLE))


def labels_of_generation(job: Manifest) -> dict[str, str]:
    """Return the labels by which the Jobs of the same generation are found."""
    return {name: job["metadata"]["labels"][name] for name in (FAMILY_LABEL, GENERATION_LABEL)}


def follows(job: Manifest) -> str | None:
    """Return the name of the Job that has to succeed first."""
    return _annotation(job, FOLLOWS)


def is_withheld(job: Manifest) -> bool:
    """Tell whether a Job was not started yet, nor given to Kueue."""
    if follows(job) is None or not job["spec"].get("suspend"):
        return False
    label = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
    return _annotation(job, QUEUE_ANNOTATION) is None or label is None


def queue_of(job: Manifest) -> str | None:
    """Return the queue that a withheld Job goes to."""
    return _annotation(job, QUEUE_ANNOTATION)


def newest_submission(jobs: Sequence[Manifest]) -> list[Manifest]:
    """Return the Jobs that were submitted with the newest one, in the order in which they run.

    Only one submission has Jobs that have not ended; it goes first, since two may be of one second.

    Parameters
    ----------
    jobs
        Of a generation, the oldest first.
    """
    newest = [job for job in jobs if not has_ended(job)][-1:] or jobs[-1:]
    together = spec_hash(newest[0]) if newest else None
    if together is not None:
        newest = [job for job in jobs if spec_hash(job) == together]
    return sorted(newest, key=lambda job: stage_of(job).position)


def current(jobs: Sequence[Manifest]) -> Manifest | None:
    """Return the Job of a submission that matters: the first that is not done, else the last."""
    return next((job for job in jobs if not has_succeeded(job)), jobs[-1] if jobs else None)


def due(jobs: Sequence[Manifest]) -> list[Manifest]:
    """Return the Jobs of a submission that may start, and have not."""
    done = {job["metadata"]["name"] for job in jobs if has_succeeded(job)}
    return [job for job in jobs if is_withheld(job) and follows(job) in done]


def is_stranded(job: Manifest, jobs: Sequence[Manifest]) -> bool:
    """Tell whether a Job waits for one that has failed."""
    before = next((one for one in jobs if one["metadata"]["name"] == follows(job)), None)
    if before is None or not is_withheld(job):
        return False
    return (has_ended(before) and not has_succeeded(before)) or is_stranded(before, jobs)


def is_done(stage: Stage, jobs: Sequence[Manifest], *, fresh: bool) -> bool:
    """Tell whether a stage of a submission, made once more, needs no Job again.

    It does not while a later one runs, or where its own has succeeded and something is left to do;
    but what starts over does all again, unless the rest has yet to begin.
    """
    later = [job for job in jobs if stage_of(job).position > stage.position]
    if any(not has_ended(job) and not is_withheld(job) for job in later):
        return True
    own = any(stage_of(job) is stage and has_succeeded(job) for job in jobs)
    left = [job for job in later if not (has_ended(job) if fresh else has_succeeded(job))]
    return own and bool(left)


def _annotation(job: Manifest, name: str) -> str | None:
    found: str | None = (job["metadata"].get("annotations") or {}).get(name)
    return found
