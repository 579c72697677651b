"""Logs through the real API server from the simulated node."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from mlip_job.schedulers.base import JobHandle, JobRequest
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from tests.integration.kubernetes.conftest import Submit
from tests.servers.kubernetes import SUBMITTER, ControlPlane
from tests.servers.node import Node, wait_for


class Follower:
    """Follows the log of a job in another thread."""

    def __init__(self, scheduler: KubernetesScheduler, handle: JobHandle) -> None:
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._follow, args=(scheduler, handle), daemon=True)
        self._thread.start()

    def _follow(self, scheduler: KubernetesScheduler, handle: JobHandle) -> None:
        for line in scheduler.logs(handle, follow=True):
            self.lines.append(line)

    def wait(self, lines: list[str]) -> None:
        wait_for(lambda: len(self.lines) >= len(lines), f"{len(lines)} lines")
        assert self.lines == lines

    def join(self) -> list[str]:
        wait_for(lambda: not self._thread.is_alive(), "the end of the log")
        return self.lines


def test_logs_of_all_attempts_follow_each_other(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    """Followed from before the first pod to the end of the Job, and read again afterwards.

    No line is missing or repeated, also after a lost connection, although lines share their time
    and the API takes the start time in whole seconds only.
    """
    handle = submit()
    follower = Follower(scheduler, handle)
    first = node.pod(namespace, handle.name)
    log = node.log(first)
    moment = datetime.now(UTC).replace(microsecond=500000)
    log.say("one", moment=moment)
    log.say("two: Å µ", moment=moment)
    node.start(first)
    follower.wait(["one", "two: Å µ"])
    log.say("three", moment=moment)
    log.say("", moment=moment)
    log.say("five", moment=moment + timedelta(seconds=1))
    follower.wait(["one", "two: Å µ", "three", "", "five"])
    node.end(first, 75)
    second = node.pod(namespace, handle.name, number=2)
    node.log(second).say("six")
    node.start(second)
    expected = ["one", "two: Å µ", "three", "", "five", "six"]
    follower.wait(expected)
    node.end(second, 0)
    assert follower.join() == expected
    log.cut_after = 1
    assert list(scheduler.logs(handle, follow=False)) == expected


def test_a_lost_connection_loses_no_line(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    """It is lost in the middle of a line, which arrives complete afterwards."""
    handle = submit()
    pod = node.pod(namespace, handle.name)
    log = node.log(pod)
    log.cut_after = 3
    lines = [f"line {number}" for number in range(6)]
    for line in lines:
        log.say(line)
    node.start(pod)
    follower = Follower(scheduler, handle)
    follower.wait(lines)
    assert log.cut_after is None
    node.end(pod, 0)
    assert follower.join() == lines


class Link:
    """A connection to the API server that a test can close."""

    def __init__(self, plane: ControlPlane) -> None:
        self.up = True
        self._target = int(plane.url.rpartition(":")[2])
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.up = False
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self.up:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_following_survives_an_unavailable_cluster(
    control_plane: ControlPlane,
    request_for: Callable[..., JobRequest],
    node: Node,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request, link = request_for(), Link(control_plane)
    kubeconfig = control_plane.kubeconfig(SUBMITTER, namespace=namespace, server=link.url)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    scheduler = KubernetesScheduler(
        request.config.submit.kubernetes, poll_seconds=0.1, silent_seconds=0.5
    )
    handle = scheduler.submit(scheduler.plan(request))
    pod = node.pod(namespace, handle.name)
    log = node.log(pod)
    log.say("one")
    node.start(pod)
    follower = Follower(scheduler, handle)
    follower.wait(["one"])
    time.sleep(1.5)
    log.say("two")
    follower.wait(["one", "two"])
    link.cut()
    log.say("three")
    time.sleep(0.5)
    assert follower.lines == ["one", "two"]
    link.up = True
    follower.wait(["one", "two", "three"])
    node.end(pod, 0)
    assert follower.join() == ["one", "two", "three"]
    link.close()


def test_following_ends_when_the_job_is_deleted(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    handle = submit()
    pod = node.pod(namespace, handle.name)
    node.log(pod).say("begun")
    node.start(pod)
    follower = Follower(scheduler, handle)
    follower.wait(["begun"])
    node.batch.delete_namespaced_job(handle.name, namespace, propagation_policy="Background")
    node.log(pod).end()
    node.remove(pod)
    assert follower.join() == ["begun"]
    assert list(scheduler.logs(handle, follow=False)) == []


def test_log_lines_name_the_member(
    scheduler: KubernetesScheduler, submit: Submit, node: Node, namespace: str
) -> None:
    handle = submit(ensemble=2)
    for _ in range(2):
        pod = node.pod(namespace, handle.name)
        index = pod.metadata.annotations["batch.kubernetes.io/job-completion-index"]
        node.log(pod).say(f"I am {index}")
        node.end(pod, 0)
    lines = sorted(scheduler.logs(handle, follow=False))
    assert lines == ["[0] I am 0", "[1] I am 1"]
