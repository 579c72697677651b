"""A real node of the control plane: a kubelet and containerd, which run pods as containers.

They run in separate PID and mount namespaces: when the tests end, or are killed, no process, mount
or container is left. Pods have addresses in a network of this machine only.

Features that this machine may not allow are disabled: cgroups by quality of service, AppArmor, a
lower `oom_score_adj`, and iptables. Memory limits are real; the node's GPUs are simulated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.containers import CPU_IMAGE, Podman
from tests.servers.kernel import require_kernel
from tests.servers.kubernetes import ADMIN, ControlPlane, find_programs, start_program
from tests.servers.processes import PATH, free_port, wait_until

NODE = "kubelet-node"
GPUS = 2
_TAINT = {"key": "mlip-job-tests/kubelet", "value": "real", "effect": "NoSchedule"}
_PAUSE_IMAGE = "localhost/pause:1"
_PLUGINS = Path("/usr/lib/cni")
_START = """
set -eu
PATH=$PATH:/usr/sbin:/sbin
for place in /run /var/log /var/lib/cni; do
    mkdir -p "$place"
    mount -t tmpfs tmpfs "$place"
done
containerd --config containerd.toml >containerd.log 2>&1 &
until ctr --address containerd.sock version >/dev/null 2>&1; do sleep 0.2; done
exec "$@"
"""


@dataclass(frozen=True)
class RealNode:
    """The node.

    Attributes
    ----------
    address
        Address of this machine for pods.
    """

    plane: ControlPlane
    address: str
    core: Any
    batch: Any

    @property
    def placement(self) -> dict[str, Any]:
        toleration = {"key": _TAINT["key"], "operator": "Exists"}
        selector = {"kubernetes.io/hostname": NODE}
        return {
            "image": CPU_IMAGE,
            "node_selector": selector,
            "without_gpu": {"node_selector": selector},
            "tolerations": [toleration],
        }

    def pods(self, namespace: str, job: str) -> list[Any]:
        selector = f"batch.kubernetes.io/job-name={job}"
        pods: list[Any] = self.core.list_namespaced_pod(namespace, label_selector=selector).items
        return sorted(pods, key=lambda pod: pod.metadata.creation_timestamp)

    def delete(self, pod: Any) -> Any:
        self.core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
        return self.end_of(pod)

    def end_of(self, pod: Any) -> Any:
        """Wait until a pod is removed; return the last state of its first container."""
        from kubernetes import watch

        name, namespace = pod.metadata.name, pod.metadata.namespace
        for event in watch.Watch().stream(
            self.core.list_namespaced_pod,
            namespace,
            field_selector=f"metadata.name={name}",
            resource_version=pod.metadata.resource_version,
            timeout_seconds=600,
        ):
            if event["type"] == "DELETED":
                return event["object"].status.container_statuses[0].state.terminated
        return pytest.fail(f"pod {name} does not end")

    def wait_for(
        self, namespace: str, what: str, condition: Callable[[], Any], seconds: float = 600
    ) -> Any:
        """Return the result of `condition` once it is true, or fail with the pods' states."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s: {what}\n{self._describe(namespace)}")
            time.sleep(0.2)
        return found

    def claim(self, namespace: str, name: str, directory: Path) -> str:
        """Make a PersistentVolumeClaim for a directory of this machine; return its name."""
        size = {"storage": "1Gi"}
        self.core.create_persistent_volume(
            {
                "metadata": {"name": f"{namespace}-{name}"},
                "spec": {
                    "capacity": size,
                    "accessModes": ["ReadWriteMany"],
                    "hostPath": {"path": str(directory), "type": "Directory"},
                    "claimRef": {"namespace": namespace, "name": name},
                },
            }
        )
        self.core.create_namespaced_persistent_volume_claim(
            namespace,
            {
                "metadata": {"name": name},
                "spec": {
                    "accessModes": ["ReadWriteMany"],
                    "resources": {"requests": size},
                    "storageClassName": "",
                    "volumeName": f"{namespace}-{name}",
                },
            },
        )
        return name

    def _describe(self, namespace: str) -> str:
        lines = []
        for pod in self.core.list_namespaced_pod(namespace).items:
            states = [one.state.to_dict() for one in pod.status.container_statuses or ()]
            lines.append(f"{pod.metadata.name} {pod.status.phase} {states}")
            if any(state["running"] or state["terminated"] for state in states):
                name = pod.spec.containers[0].name
                log = self.core.read_namespaced_pod_log(
                    pod.metadata.name, namespace, container=name, tail_lines=20
                )
                lines.append(log)
        events = self.core.list_namespaced_event(namespace).items
        lines += [f"{event.involved_object.name}: {event.message}" for event in events]
        return "\n".join(lines)


@pytest.fixture(scope="session")
def real_node(control_plane: ControlPlane, podman: Podman, cpu_image: str) -> Iterator[RealNode]:
    programs = find_programs()
    if programs is None or not (programs / "kubelet").exists():
        pytest.skip("there is no kubelet: make servers builds it, with Go")
    for program in ("containerd", "catatonit", "ip"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed: make servers installs it")
    if not (_PLUGINS / "bridge").exists():
        pytest.skip("there are no CNI plugins: make servers installs them")
    require_kernel("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--", "true")
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlip-job-kubelet-"))
        directory = Path(name)
        address = _make_network(stack, directory)
        _write_configuration(directory, address, control_plane)
        start_program(
            stack,
            directory,
            *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"),
            *("catatonit", "--", "sh", "-c", _START, "sh", programs / "kubelet"),
            *("--config=kubelet.yaml", f"--kubeconfig={control_plane.kubeconfig(ADMIN)}"),
            *(f"--root-dir={directory / 'kubelet'}", f"--cert-dir={directory / 'certs'}"),
            *(f"--hostname-override={NODE}", f"--node-ip={address}"),
        )
        log = directory / "unshare.log"
        wait_until((directory / "containerd.sock").exists, "containerd", log=log)
        _import_image(podman, directory, _make_pause_image(podman, directory))
        _import_image(podman, directory, cpu_image)
        yield _register(control_plane, address, log)


def _make_network(stack: ExitStack, directory: Path) -> str:
    number = os.getpid() % 250 + 1
    bridge, address = f"mlip{number}", f"10.244.{number}.1"
    ip = shutil.which("ip", path=PATH) or "ip"
    subprocess.run([ip, "link", "delete", bridge], check=False, capture_output=True)
    for command in (
        ("link", "add", bridge, "type", "bridge"),
        ("address", "add", f"{address}/24", "dev", bridge),
        ("link", "set", bridge, "up"),
    ):
        subprocess.run([ip, *command], check=True, capture_output=True)
    stack.callback(subprocess.run, [ip, "link", "delete", bridge], check=False)
    networks = directory / "cni"
    networks.mkdir()
    addresses = {"type": "host-local", "subnet": f"10.244.{number}.0/24"}
    plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipam": addresses}
    (networks / "pods.conflist").write_text(
        json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]})
    )
    return address


def _write_configuration(directory: Path, address: str, plane: ControlPlane) -> None:
    (directory / "containerd.toml").write_text(
        f"""
version = 2
root = "{directory}/containerd"
state = "{directory}/containerd-state"
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{_PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_PLUGINS}"
    conf_dir = "{directory}/cni"
"""
    )
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": free_port(),
        "healthzPort": 0,
        "readOnlyPort": 0,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{directory}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(directory / "logs"),
        "resolvConf": "",
        "volumePluginDir": str(directory / "plugins"),
        # A full disk of this machine must not evict a test's pod.
        "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "registerWithTaints": [_TAINT],
    }
    (directory / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))


def _make_pause_image(podman: Podman, directory: Path) -> str:
    """Make the pause image that holds a pod's namespaces, with Podman's catatonit."""
    program = Path(shutil.which("catatonit") or "catatonit")
    archive = directory / "pause.tar"
    subprocess.run(["tar", "-cf", archive, "-C", program.parent, program.name], check=True)
    entry = 'ENTRYPOINT ["/catatonit", "-P"]'
    podman("import", "--quiet", "--change", entry, archive, _PAUSE_IMAGE)
    return _PAUSE_IMAGE


def _import_image(podman: Podman, directory: Path, image: str) -> None:
    save = [*podman.command, "save", "--quiet", "--format=docker-archive", image]
    socket = directory / "containerd.sock"
    load = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", "-"]
    with subprocess.Popen(save, stdout=subprocess.PIPE) as saving:
        subprocess.run(load, stdin=saving.stdout, check=True, capture_output=True)
    assert saving.returncode == 0


def _register(plane: ControlPlane, address: str, log: Path) -> RealNode:
    from kubernetes import client

    core, batch = client.CoreV1Api(plane.client()), client.BatchV1Api(plane.client())

    def conditions() -> Sequence[Any]:
        nodes = core.list_node(field_selector=f"metadata.name={NODE}").items
        return nodes[0].status.conditions or () if nodes else ()

    def ready() -> bool:
        return any(one.type == "Ready" and one.status == "True" for one in conditions())

    wait_until(ready, "node", log=log)
    # The API server taints each new node as not ready, for a controller that is not running.
    core.patch_node(NODE, [{"op": "replace", "path": "/spec/taints", "value": [_TAINT]}])
    capacity = {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(GPUS)}
    core.patch_node_status(NODE, [capacity])

    def has_gpus() -> bool:
        return "nvidia.com/gpu" in core.read_node(NODE).status.allocatable

    wait_until(has_gpus, "GPUs of the node", log=log)
    return RealNode(plane, address, core, batch)
