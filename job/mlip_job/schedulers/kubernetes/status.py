"""From a Job, its pods and their events to a `JobStatus`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlip_job.schedulers.base import JobState, JobStatus
from mlip_job.schedulers.kubernetes.containers import end_of_run, running_besides
from mlip_job.schedulers.kubernetes.ending import Ending, ending_of
from mlip_job.schedulers.kubernetes.layout import HOPELESS
from mlip_job.schedulers.kubernetes.waiting import wait_of_job, wait_of_pod

if TYPE_CHECKING:
    from mlip_job.schedulers.kubernetes.pod import Manifest

EventsOf = Callable[[str], Sequence["Manifest"]]
"""Returns the events of the object with a uid."""

# Reasons of a Job's condition Failed.
_FAILURES: Mapping[str, str] = {
    "BackoffLimitExceeded": "it failed too often",
    "DeadlineExceeded": "it reached submit.kubernetes.active_deadline_seconds",
    "FailedIndexes": "some of its members failed",
    "MaxFailedIndexesExceeded": "too many of its members failed",
}
FORGOTTEN = JobStatus(
    JobState.GONE,
    "NotFound",
    "the cluster has no such Job: it was cancelled, or ended and its time to live ran out",
    "mlip-job list shows whether the generation is published",
)


def status_of(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return what a Job is doing.

    Parameters
    ----------
    job
        As the API server has it.
    pods
        Its pods, the oldest first.
    events_of
        Called only where events may explain a wait.
    """
    if _condition(job, "Complete") is not None:
        return _succeeded(job, pods)
    failed = _condition(job, "Failed")
    if failed is not None:
        return _failed(failed, pods)
    if job["metadata"].get("deletionTimestamp"):
        return JobStatus(
            JobState.RUNNING, "Terminating", "it is being cancelled; its pod stores a checkpoint"
        )
    if job["spec"].get("completionMode") == "Indexed":
        return _of_members(job, pods, events_of)
    return _of_newest(job, pods, events_of)


def has_ended(job: Manifest) -> bool:
    """Tell whether nothing more will come of a Job."""
    return any(_condition(job, kind) is not None for kind in ("Complete", "Failed"))


def newest_job(jobs: Sequence[Manifest]) -> Manifest | None:
    """Return the newest Job of a generation, or None.

    Only one has not ended; it goes first, since two may be of one second.

    Parameters
    ----------
    jobs
        The oldest first.
    """
    newest = [job for job in jobs if not has_ended(job)][-1:] or jobs[-1:]
    return newest[0] if newest else None


def _succeeded(job: Manifest, pods: Sequence[Manifest]) -> JobStatus:
    done = [pod for pod in pods if _phase(pod) == "Succeeded"]
    ending = ending_of(done[-1]) if done else Ending("Completed", "done", exit_code=0)
    if job["spec"].get("completionMode") == "Indexed":
        ending = Ending("Completed", f"all {job['spec']['completions']} members are done")
    return JobStatus(JobState.SUCCEEDED, "Complete", ending.reason, None, 0)


def _failed(condition: Mapping[str, Any], pods: Sequence[Manifest]) -> JobStatus:
    native = str(condition.get("reason", "Failed"))
    endings = [ending_of(pod) for pod in pods if _phase(pod) == "Failed"]
    own = [ending for ending in endings if not ending.disrupted]
    words = _FAILURES.get(native)
    if native == "DeadlineExceeded" or not own:
        reason = words or str(condition.get("message") or "it failed")
        return JobStatus(JobState.FAILED, native, reason)
    last = own[-1]
    reason = last.reason if words is None else f"{words}; last, {last.reason}"
    shown = native if last.native in ("Error", "Failed") else last.native
    return JobStatus(JobState.FAILED, shown, reason, last.hint, last.exit_code)


def _of_newest(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return what a Job with one pod at a time is doing."""
    if not pods or (_phase(pods[-1]) in ("Succeeded", "Failed")):
        return _between(job, pods, events_of)
    newest, before = pods[-1], _before(pods[:-1])
    if newest["metadata"].get("deletionTimestamp"):
        reason = f"{before}its pod is being stopped, and stores a checkpoint"
        return JobStatus(JobState.RUNNING, "Terminating", reason)
    phase = _phase(newest)
    if phase == "Running" and end_of_run(newest):
        return _kept(newest)
    if phase == "Running":
        return JobStatus(JobState.RUNNING, "Running", before.removesuffix("; ") or None)
    if phase == "Pending":
        wait = wait_of_pod(newest, events_of(newest["metadata"]["uid"]))
        return JobStatus(JobState.PENDING, wait.native, before + wait.reason, wait.hint)
    return JobStatus(
        JobState.UNKNOWN, phase, "the cluster has lost sight of the pod's node", "wait"
    )


def is_over(pod: Manifest) -> bool:
    """Tell whether the run in a pod has ended for good, whatever keeps the pod.

    Kubernetes starts another pod after any other exit code, once this one has ended.
    """
    return end_of_run(pod).get("exitCode") in (0, *HOPELESS)


def _kept(pod: Manifest) -> JobStatus:
    """Return the status of a Job whose run has ended in a pod that has not."""
    ending, others = ending_of(pod), ", ".join(running_besides(pod))
    code = ending.exit_code
    if not others:  # native sidecars, which the kubelet stops
        return JobStatus(JobState.RUNNING, "Completing", ending.reason, None, code)
    ended = ending.reason if code else f"exit code 0: {ending.reason}"
    state = JobState.SUCCEEDED if code == 0 else JobState.FAILED
    return JobStatus(
        state if is_over(pod) else JobState.RUNNING,
        "NotReady",  # as kubectl shows it
        f"the run has ended, {ended}; the container {others} still runs and keeps the pod",
        "mlip-job cancel deletes the Job; docs/kubernetes.md, Side containers, says how to have "
        "such a container end with the run",
        code,
    )


def _between(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return why no pod is alive, though the Job has not ended."""
    if pods and not job["spec"].get("suspend"):
        ending = ending_of(pods[-1])
        if ending.exit_code == 0:
            return JobStatus(JobState.RUNNING, "Completing", ending.reason)
        reason = f"attempt {len(pods)} ended, {ending.reason}; another one follows"
        return JobStatus(JobState.PENDING, ending.native, reason, ending.hint)
    wait = wait_of_job(job, events_of(job["metadata"]["uid"]))
    return JobStatus(JobState.PENDING, wait.native, _before(pods) + wait.reason, wait.hint)


def _of_members(job: Manifest, pods: Sequence[Manifest], events_of: EventsOf) -> JobStatus:
    """Return what the members of an ensemble are doing: how many of each, and why one waits."""
    total = int(job["spec"]["completions"])
    waiting = [pod for pod in pods if _phase(pod) == "Pending"]
    begun = [pod for pod in pods if _phase(pod) == "Running"]
    running = [pod for pod in begun if not end_of_run(pod)]
    counts = {
        "done": int(job.get("status", {}).get("succeeded", 0)),
        "running": len(running),
        "waiting": len(waiting),
        "ended in a pod that goes on": len(begun) - len(running),
        "failed": _count_indexes(job.get("status", {}).get("failedIndexes", "")),
    }
    members = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    reason = f"of {total} members {members}" if members else None
    if running:
        return JobStatus(JobState.RUNNING, "Running", reason)
    status = _of_newest(job, [*begun, *waiting][-1:], events_of)
    told = "; ".join(filter(None, (reason, status.reason)))
    return JobStatus(status.state, status.native, told, status.hint)


def _before(pods: Sequence[Manifest]) -> str:
    """Say how the attempt before ended, for the beginning of a reason."""
    ended = [pod for pod in pods if _phase(pod) == "Failed"]
    return f"attempt {len(ended)} ended, {ending_of(ended[-1]).reason}; " if ended else ""


def _count_indexes(text: str) -> int:
    """Return how many numbers there are in ``1,3-5``."""
    count = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _phase(pod: Manifest) -> str:
    return str(pod.get("status", {}).get("phase", "Unknown"))


def _condition(job: Manifest, kind: str) -> Mapping[str, Any] | None:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return None
