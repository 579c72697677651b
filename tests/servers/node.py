"""Simulated node of a cluster: its entry, its kubelet's log server, and the kubelet's reports.

It runs no container: a test sets the states of a pod (`Node.start`, `Node.end`, …), or
`tests.servers.pods` runs the pods' arguments as processes.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.servers.kubernetes import ControlPlane

NODE = "gpu-node"
GPUS = 1000
"""Enough for all tests of a session: none waits for the end of another's pods."""

_PATIENCE = 60.0
_SECONDS = len("2026-01-02T03:04:05")


@dataclass
class PodLog:
    """Output of a pod, and whether it has ended."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = False
    cut_after: int | None = None  # lines after which the next connection breaks, within a line
    changed: threading.Condition = field(default_factory=threading.Condition)

    def say(self, text: str, *, moment: datetime | None = None) -> None:
        at = (moment or datetime.now(UTC)).isoformat().replace("+00:00", "000Z")
        with self.changed:
            self.lines.append((at, text))
            self.changed.notify_all()

    def read(self, *, follow: bool) -> Iterator[tuple[str, str]]:
        sent = 0
        while True:
            with self.changed:
                while follow and not self.ended and sent == len(self.lines):
                    self.changed.wait(0.5)
                lines = self.lines[sent:]
            yield from lines
            sent += len(lines)
            if not lines or not follow:
                return

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()


class Node:
    """The node of a control plane, with logs by namespace and name of the pod."""

    def __init__(self, plane: ControlPlane) -> None:
        from kubernetes import client

        self.plane = plane
        self.core = client.CoreV1Api(plane.client())
        self.batch = client.BatchV1Api(plane.client())
        self.logs: dict[tuple[str, str], PodLog] = {}
        self._server = _log_server(plane, self.logs)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._register(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pod(self, namespace: str, job: str, *, number: int = 1) -> Any:
        """Wait until a Job has had this many pods and the last is scheduled; return that one."""
        selector = f"batch.kubernetes.io/job-name={job}"

        def scheduled() -> Any:
            pods = self.core.list_namespaced_pod(namespace, label_selector=selector).items
            pods.sort(key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name))
            alive = [pod for pod in pods if pod.status.phase == "Pending" and pod.spec.node_name]
            return alive[-1] if len(pods) >= number and alive else None

        return wait_for(scheduled, f"pod {number} of {job} on its node")

    def log(self, pod: Any) -> PodLog:
        key = (pod.metadata.namespace, pod.metadata.name)
        return self.logs.setdefault(key, PodLog())

    def start(self, pod: Any) -> None:
        self.report(pod, phase="Running", state={"running": {"startedAt": _now()}})

    def keep_waiting(self, pod: Any, reason: str, message: str = "") -> None:
        self.report(pod, phase="Pending", state={"waiting": {"reason": reason, "message": message}})

    def end(
        self, pod: Any, exit_code: int, *, reason: str | None = None, message: str = "", **more: Any
    ) -> None:
        """Report that the container has ended; more fields of the pod's status may be given."""
        if reason is None:
            reason = "Error" if exit_code else "Completed"
        state = {
            "exitCode": exit_code,
            "reason": reason,
            "message": message,
            "startedAt": _now(),
            "finishedAt": _now(),
        }
        phase = "Failed" if exit_code else "Succeeded"
        self.report(pod, phase=phase, state={"terminated": state}, **more)
        self.log(pod).end()

    def report(self, pod: Any, *, phase: str, state: dict[str, Any], **more: Any) -> None:
        container = {
            "name": pod.spec.containers[0].name,
            "image": pod.spec.containers[0].image,
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": {"waiting": None, "running": None, "terminated": None} | state,
        }
        status = {"phase": phase, "startTime": _now(), "containerStatuses": [container], **more}
        self.core.patch_namespaced_pod_status(
            pod.metadata.name, pod.metadata.namespace, {"status": status}
        )

    def token(self, pod: Any) -> str | None:
        """Return the service account token that a pod requests; None if it does not."""
        sources = [s for v in pod.spec.volumes if v.projected for s in v.projected.sources]
        asked = next((s.service_account_token for s in sources if s.service_account_token), None)
        if asked is None:
            return None
        bound = {"apiVersion": "v1", "kind": "Pod"}
        bound |= {"name": pod.metadata.name, "uid": pod.metadata.uid}
        made = self.core.create_namespaced_service_account_token(
            pod.spec.service_account_name,
            pod.metadata.namespace,
            {"spec": {"expirationSeconds": asked.expiration_seconds, "boundObjectRef": bound}},
        )
        token: str = made.status.token
        return token

    def remove(self, pod: Any) -> None:
        name, namespace = pod.metadata.name, pod.metadata.namespace
        self.core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)

    def _register(self, port: int) -> None:
        taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
        labels = {"kubernetes.io/arch": "amd64"}
        self.core.create_node(
            {"metadata": {"name": NODE, "labels": labels}, "spec": {"taints": [taint]}}
        )
        capacity = {
            "cpu": "100k",
            "memory": "100Ti",
            "ephemeral-storage": "1Pi",
            "pods": "1000",
            "nvidia.com/gpu": str(GPUS),
        }
        self.core.patch_node_status(
            NODE,
            {
                "status": {
                    "capacity": capacity,
                    "allocatable": capacity,
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
                }
            },
        )

        def tolerable() -> bool:
            # The API server taints each new node as not ready, for a controller that is not
            # running.
            taints = self.core.read_node(NODE).spec.taints
            extra = [one for one in taints if one.key != taint["key"]]
            if extra:
                self.core.patch_node(
                    NODE, [{"op": "replace", "path": "/spec/taints", "value": [taint]}]
                )
            return not extra

        wait_for(tolerable, "node without taints of its beginning")


@pytest.fixture(scope="session")
def node(control_plane: ControlPlane) -> Iterator[Node]:
    node = Node(control_plane)
    yield node
    node.close()


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Return the result of `condition` once it is not None; fail after a minute."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {_PATIENCE:.0f} s: {what}")
        time.sleep(0.05)
    return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _log_server(plane: ControlPlane, logs: dict[tuple[str, str], PodLog]) -> ThreadingHTTPServer:
    server = _LogServer(("127.0.0.1", 0), partial(_LogHandler, logs))
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(plane.authority, plane.authority.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


class _LogServer(ThreadingHTTPServer):
    def handle_error(self, *arguments: object) -> None:
        """Ignore clients that disconnect."""


class _LogHandler(BaseHTTPRequestHandler):
    """Answers ``/containerLogs/NAMESPACE/POD/CONTAINER``."""

    protocol_version = "HTTP/1.1"

    def __init__(self, logs: dict[tuple[str, str], PodLog], *arguments: Any) -> None:
        self._logs = logs
        super().__init__(*arguments)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        _, _, namespace, pod, _container = address.path.split("/")
        log = self._logs.get((namespace, pod))
        if log is None:
            self.send_error(400, "the container waits to start")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        since = query.get("sinceTime", "")[:_SECONDS]
        lines = (f"{at} {text}\n" for at, text in log.read(follow=query.get("follow") == "true")
                 if at[:_SECONDS] >= since)  # fmt: skip
        for number, line in enumerate(lines):
            if number == log.cut_after:
                log.cut_after = None
                self._chunk(line.encode()[: len(line) // 2])
                self.close_connection = True
                return  # without the last chunk: the connection is lost
            self._chunk(line.encode())
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
