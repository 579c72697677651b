"""Read the logs of a Job's pods, over lost connections and from attempt to attempt."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from mlip_job.errors import UnavailableError
from mlip_job.schedulers.kubernetes.containers import end_of_run, running_besides
from mlip_job.schedulers.kubernetes.status import has_ended, is_over

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.schedulers.kubernetes.cluster import Cluster
    from mlip_job.schedulers.kubernetes.pod import Manifest

# Go's RFC3339Nano, in UTC or as the node's clock is set.
_LINE = re.compile(
    r"(?P<seconds>[\d-]{10}T[\d:]{8})(\.(?P<fraction>\d+))?(?P<zone>Z|[+-]\d\d:\d\d)"
    r" (?P<text>.*)",
    re.DOTALL,
)
_SECONDS, _NANOSECONDS = len("2026-01-02T03:04:05"), len("2026-01-02T03:04:05.123456789")
_ENDED = ("Succeeded", "Failed")
_PATIENCE_SECONDS = 300.0
"""For so long on end the cluster may be out of reach while a log is followed."""


def job_lines(
    cluster: Cluster, job: str, *, follow: bool, poll_seconds: float = 2.0
) -> Iterator[str]:
    """Yield the lines of a Job's pods, one pod after the other, the oldest first.

    With `follow`, until the Job has ended or is gone, or all that is left of it are containers that
    keep the pod of a run that has ended.
    """
    read: set[str] = set()
    while True:
        # Asked for first: a pod that is made after the answer is found in the next round.
        found = cluster.job(job) if follow else None
        known = cluster.pods(job)
        pods = [pod for pod in known if _name(pod) not in read and _has_begun(pod)]
        for pod in pods:
            yield from _PodLog(cluster, job, pod).lines(follow=follow, poll_seconds=poll_seconds)
            read.add(_name(pod))
        over = found is None or has_ended(found) or _runs_are_over(known)
        if not follow or (over and not pods):
            return
        if not pods:
            time.sleep(poll_seconds)


class _PodLog:
    """One pod's log, from where it was read to last."""

    def __init__(self, cluster: Cluster, job: str, pod: Manifest) -> None:
        self._cluster = cluster
        self._job = job
        self._pod = _name(pod)
        index = (
            pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index")
        )
        self._prefix = "" if index is None else f"[{index}] "
        self._time = ""
        self._lines_of_time = 0
        self._begun = b""

    def lines(self, *, follow: bool, poll_seconds: float) -> Iterator[str]:
        """Yield every line once.

        Where a node's connection is lost the API server ends its answer as if the log had ended.
        So a log counts as read when the pod has ended, and asking again has brought nothing.
        """
        reached = time.monotonic()
        while True:
            try:
                ended = not follow or self._has_ended()
                reached, news = time.monotonic(), False
                for line in self._unread(follow=not ended):
                    reached, news = time.monotonic(), True
                    yield line
            except UnavailableError as error:
                away_seconds = time.monotonic() - reached
                if not (follow and error.transient) or away_seconds > _PATIENCE_SECONDS:
                    raise
                ended = news = False
            if ended and not news:
                if (rest := _parse(self._begun)) is not None:
                    yield self._prefix + rest[1]
                return
            if not ended:
                time.sleep(poll_seconds)

    def _has_ended(self) -> bool:
        pods = [pod for pod in self._cluster.pods(self._job) if _name(pod) == self._pod]
        return not pods or _run_has_ended(pods[0])

    def _unread(self, *, follow: bool) -> Iterator[str]:
        """Yield what was not read yet: the server goes back to the beginning of a second."""
        since = self._time[:_SECONDS] + self._time[_NANOSECONDS:] if self._time else None
        again = self._lines_of_time
        for line in self._whole_lines(self._cluster.log(self._pod, follow=follow, since=since)):
            moment, text = _parse(line) or (self._time, line.decode(errors="replace"))
            if moment < self._time:
                continue
            if moment == self._time and again > 0:
                again -= 1
                continue
            self._lines_of_time = self._lines_of_time + 1 if moment == self._time else 1
            self._time = moment
            yield self._prefix + text

    def _whole_lines(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield whole lines; the begun line of a lost connection comes again."""
        self._begun = b""
        for piece in pieces:
            *lines, self._begun = (self._begun + piece).split(b"\n")
            yield from lines


def _parse(line: bytes) -> tuple[str, str] | None:
    """Return time and text of a line; None where it does not begin with a time."""
    match = _LINE.fullmatch(line.decode(errors="replace"))
    if match is None:
        return None
    # Go leaves out zeros at the end of the fraction; without them the times would not compare.
    moment = f"{match['seconds']}.{match['fraction'] or '':0<9}{match['zone']}"
    return moment, match["text"]


def _runs_are_over(pods: Sequence[Manifest]) -> bool:
    kept = bool(pods) and _phase(pods[-1]) == "Running" and is_over(pods[-1])
    return kept and bool(running_besides(pods[-1])) and all(map(_run_has_ended, pods))


def _run_has_ended(pod: Manifest) -> bool:
    return _phase(pod) in _ENDED or bool(end_of_run(pod))


def _has_begun(pod: Manifest) -> bool:
    return _phase(pod) in ("Running", *_ENDED)


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def _phase(pod: Manifest) -> str:
    return str(pod.get("status", {}).get("phase"))
