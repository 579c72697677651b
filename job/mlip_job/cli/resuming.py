"""``run --then-resume``: what a run in a pod does for the next Job of its submission."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.errors import MlipJobError

if TYPE_CHECKING:
    from mlip_job.cli.output import Reporter
    from mlip_job.pipeline import Member
    from mlip_job.registry import Registry


def resume_next(
    job: str, registry: Registry, generation: int, member: Member | None, reporter: Reporter
) -> str:
    """Have the next Job start; return what became of that, in words.

    Of an ensemble, the member that is fitted last does so. That it fails changes nothing about what
    the run has done: whoever submitted makes up for it.
    """
    from mlip_job.registry.training_now import unfitted_members
    from mlip_job.schedulers.kubernetes.resuming import resume_from_pod

    try:
        left = unfitted_members(registry, generation, member.of) if member is not None else []
        if left:
            numbers = ", ".join(map(str, left))
            text = f"Job {job} is left to the members that are not fitted yet: {numbers}"
        else:
            resume_from_pod(job)
            text = f"Job {job} may start"
    except MlipJobError as error:
        text = (
            f"Job {job} was not started: {error.message}; the same mlip-job submit "
            f"-g {generation} as before starts it"
        )
    reporter.message(text)
    return text
