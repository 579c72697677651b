"""Runs the pods of a namespace like a kubelet, but as processes instead of containers.

The arguments, the environment with its Secrets, the configuration from the ConfigMap, the stop
signal with its grace period, exit code, log and termination message are the pod's; this package
replaces the image.
"""

from __future__ import annotations

import base64
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubernetes.client import ApiException
from kubernetes.utils.quantity import parse_quantity

from tests.servers.node import Node

_MLIP_JOB = (sys.executable, "-c", "from mlip_job.cli.main import main; main()")
_VARIABLE = re.compile(r"\$\$|\$\((\w+)\)")


@dataclass
class _Running:
    """A process that runs as a pod."""

    pod: Any
    process: subprocess.Popen[str]
    message: Path
    printed: threading.Thread
    stopped: float | None = None


class PodRunner:
    """Context manager that runs the pods of a namespace on the node; it has their exit codes."""

    def __init__(self, node: Node, namespace: str, directory: Path) -> None:
        self.exit_codes: list[int] = []
        self._node = node
        self._namespace = namespace
        self._directory = directory
        self._running: dict[str, _Running] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        for running in self._running.values():
            running.process.kill()
            running.process.wait()

    def _loop(self) -> None:
        while not self._closing.wait(0.1):
            for pod in self._node.core.list_namespaced_pod(self._namespace).items:
                if not pod.spec.node_name:
                    continue
                running = self._running.get(pod.metadata.uid)
                if running is None and pod.status.phase == "Pending":
                    self._running[pod.metadata.uid] = self._start(pod)
                elif running is not None:
                    self._check(running, pod)

    def _start(self, pod: Any) -> _Running:
        home = self._directory / pod.metadata.name
        home.mkdir()
        message = home / "termination-log"
        message.touch()
        environment = self._environment(pod, home, message)
        arguments = [_expand(one, environment) for one in pod.spec.containers[0].args]
        arguments = [one.replace("/etc/mlip-job", str(home)) for one in arguments]
        self._write_configuration(pod, home)
        process = subprocess.Popen(
            [*_MLIP_JOB, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=home,
            env=environment,
        )
        log = self._node.log(pod)

        def keep() -> None:
            assert process.stdout is not None
            with process.stdout as output:
                for line in output:
                    log.say(line.rstrip("\n"))

        printed = threading.Thread(target=keep, daemon=True)
        printed.start()
        self._node.start(pod)
        return _Running(pod, process, message, printed)

    def _environment(self, pod: Any, home: Path, message: Path) -> dict[str, str]:
        container, core = pod.spec.containers[0], self._node.core
        environment = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
        for source in container.env_from or ():
            secret = core.read_namespaced_secret(source.secret_ref.name, self._namespace)
            environment |= {k: base64.b64decode(v).decode() for k, v in secret.data.items()}
        for variable in container.env:
            source = variable.value_from
            if source is None:
                environment[variable.name] = _expand(variable.value or "", environment)
            elif source.resource_field_ref is not None:
                amount = container.resources.requests[source.resource_field_ref.resource[9:]]
                environment[variable.name] = str(math.ceil(parse_quantity(amount)))
            else:
                environment[variable.name] = _field(pod, source.field_ref.field_path)
        if (token := self._node.token(pod)) is not None:
            # Replaces paths in the container, since a process has no file system of its own.
            plane = self._node.plane
            plane.tokens[pod.metadata.name] = token
            kubeconfig = plane.kubeconfig(pod.metadata.name, namespace=self._namespace)
            environment["KUBECONFIG"] = str(kubeconfig)
        own = {"HOME": home, "MLIP_JOB__WORK_DIR": home / "work"}
        own["MLIP_JOB_TERMINATION_MESSAGE"] = message
        return environment | {name: str(path) for name, path in own.items()}

    def _write_configuration(self, pod: Any, home: Path) -> None:
        (name,) = (v.config_map.name for v in pod.spec.volumes if v.config_map is not None)
        # The Job is created before its ConfigMap: the kubelet also retries until it exists.
        for _ in range(100):
            try:
                data = self._node.core.read_namespaced_config_map(name, self._namespace).data
            except ApiException:
                time.sleep(0.1)
            else:
                break
        for key, text in data.items():
            (home / key).write_text(text, encoding="utf-8")

    def _check(self, running: _Running, pod: Any) -> None:
        if pod.metadata.deletion_timestamp and running.stopped is None:
            running.stopped = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
        grace = pod.metadata.deletion_grace_period_seconds or 0
        if running.stopped is not None and time.monotonic() > running.stopped + grace:
            running.process.kill()
        exit_code = running.process.poll()
        if exit_code is None or pod.status.phase in ("Succeeded", "Failed"):
            return
        running.printed.join()
        self.exit_codes.append(exit_code)
        code = exit_code if exit_code >= 0 else 128 - exit_code
        self._node.end(pod, code, message=running.message.read_text(encoding="utf-8"))
        if pod.metadata.deletion_timestamp:
            self._node.remove(pod)


def _expand(text: str, environment: dict[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else environment.get(name, match.group(0))

    return _VARIABLE.sub(replacement, text)


def _field(pod: Any, path: str) -> str:
    labels = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if labels is not None:
        found = getattr(pod.metadata, labels.group(1))[labels.group(2)]
    else:
        found = {"metadata.namespace": pod.metadata.namespace}[path]
    return str(found)
