"""Kueue's real controller on the tests' control plane, with the manifests of its chart.

The controller is a process of this machine, so its webhooks are called by URL. Only those for Jobs
and for Kueue's own objects are installed.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.helm import Helm
from tests.servers.kernel import require_kernel
from tests.servers.kubernetes import ADMIN, ControlPlane, find_built, pinned_version, start_program
from tests.servers.processes import free_port, wait_until

GROUP, VERSION = "kueue.x-k8s.io", "v1beta2"
_METRICS = Path("etc/kueue/metrics/certs")
"""Kueue's certificate directory, which can't be configured."""
_START = 'mount -t overlay overlay -o "lowerdir=$0/etc:/etc" /etc && exec "$@"'


@dataclass(frozen=True)
class Kueue:
    """The controller."""

    plane: ControlPlane

    def make_queue(self, namespace: str, gpus: int) -> str:
        """Make a queue whose jobs of higher priority preempt others; return its name."""
        from kubernetes import client

        api = client.CustomObjectsApi(self.plane.client())
        # Kueue admits no Job with requests that the queue does not cover.
        quotas = {"cpu": 100, "memory": "1Ti", "ephemeral-storage": "1Ti", "nvidia.com/gpu": gpus}
        resources = [{"name": name, "nominalQuota": quota} for name, quota in quotas.items()]
        group = {
            "coveredResources": list(quotas),
            "flavors": [{"name": "default", "resources": resources}],
        }
        objects = {
            "ResourceFlavor": ("resourceflavors", "default", {}),
            "ClusterQueue": (
                "clusterqueues",
                namespace,
                {
                    "namespaceSelector": {},
                    "preemption": {"withinClusterQueue": "LowerPriority"},
                    "resourceGroups": [group],
                },
            ),
        }
        for kind, (plural, name, spec) in objects.items():
            document = _object(kind, name, spec)
            api.create_cluster_custom_object(GROUP, VERSION, plural, document)
        queue = _object("LocalQueue", "training", {"clusterQueue": namespace})
        api.create_namespaced_custom_object(GROUP, VERSION, namespace, "localqueues", queue)
        return "training"

    def make_priority(self, name: str, value: int) -> None:
        from kubernetes import client

        api = client.SchedulingV1Api(self.plane.client())
        api.create_priority_class({"metadata": {"name": name}, "value": value})


@pytest.fixture(scope="module")
def kueue(control_plane: ControlPlane, helm: Helm) -> Iterator[Kueue]:
    """Install Kueue; its webhooks are removed at the end, since nothing serves them afterwards."""
    from kubernetes import client

    programs = find_built(f"kueue-{pinned_version('sigs.k8s.io/kueue', 'kueue')}")
    if programs is None:
        pytest.skip("there is no Kueue: make servers builds it, with Go")
    require_kernel("unshare", "--mount", "--", "true")
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlip-job-kueue-"))
        directory = Path(name)
        port, health = free_port(), free_port()
        certificate = _make_certificate(directory)
        configuration = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(directory)},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "integrations": {"frameworks": ["batch/job"]},
        }
        (directory / "kueue.yaml").write_text(yaml.safe_dump(configuration))
        done = helm.run("template", "kueue", programs / "chart", "--namespace=kueue-system")
        assert done.returncode == 0, done.stderr
        documents = [one for one in yaml.safe_load_all(done.stdout) if one]
        extensions = client.ApiextensionsV1Api(control_plane.client())
        for definition in _of_kind(documents, "CustomResourceDefinition"):
            conversion = definition["spec"].get("conversion", {}).get("webhook")
            if conversion is not None:
                _call_by_url(conversion["clientConfig"], port, certificate)
            extensions.create_custom_resource_definition(definition)

        def are_served() -> bool:
            definitions = extensions.list_custom_resource_definition().items
            kinds = [one.status.conditions or () for one in definitions]
            return all({"Established"} <= {c.type for c in k if c.status == "True"} for k in kinds)

        wait_until(are_served, "Kueue's resources")
        start_program(
            stack,
            directory,
            *("unshare", "--mount", "--", "sh", "-c", _START, directory),
            *(programs / "kueue", "--config=kueue.yaml", "--zap-log-level=2"),
            f"--kubeconfig={control_plane.kubeconfig(ADMIN)}",
            "--feature-gates=VisibilityOnDemand=false",
        )
        log = directory / "unshare.log"
        wait_until(lambda: "Serving webhook server" in log.read_text(), "Kueue", log=log)
        registration = client.AdmissionregistrationV1Api(control_plane.client())
        for kind, resource in (
            ("MutatingWebhookConfiguration", "mutating_webhook_configuration"),
            ("ValidatingWebhookConfiguration", "validating_webhook_configuration"),
        ):
            (webhooks,) = _of_kind(documents, kind)
            webhooks["webhooks"] = [one for one in webhooks["webhooks"] if _is_wanted(one)]
            for webhook in webhooks["webhooks"]:
                _call_by_url(webhook["clientConfig"], port, certificate)
            webhooks["metadata"].pop("namespace")
            getattr(registration, f"create_{resource}")(webhooks)
            delete = getattr(registration, f"delete_{resource}")
            stack.callback(delete, webhooks["metadata"]["name"])
        yield Kueue(control_plane)


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    api = f"{GROUP}/{VERSION}"
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in documents if one["kind"] == kind]


def _is_wanted(webhook: dict[str, Any]) -> bool:
    (rule,) = webhook["rules"]
    (group,), resources = rule["apiGroups"], rule["resources"]
    return group == GROUP or (group == "batch" and any("jobs" in one for one in resources))


def _call_by_url(config: dict[str, Any], port: int, certificate: bytes) -> None:
    path = config.pop("service")["path"]
    config["url"] = f"https://127.0.0.1:{port}{path}"
    config["caBundle"] = base64.b64encode(certificate).decode()


def _make_certificate(directory: Path) -> bytes:
    certificate = directory / "tls.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=kueue"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-keyout", directory / "tls.key", "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    (directory / _METRICS).mkdir(parents=True)
    for path in (certificate, directory / "tls.key"):
        shutil.copy(path, directory / _METRICS)
    return certificate.read_bytes()
