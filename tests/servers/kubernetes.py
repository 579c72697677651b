"""A real control plane of Kubernetes on free ports: etcd, API server, controllers and scheduler.

Its nodes are one that `tests.servers.node` simulates, and the real one of `tests.servers.kubelet`.
Role-based access control is on, and namespaces enforce the restricted Pod Security level.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.servers.processes import CACHE, free_port, wait_until

ADMIN, SUBMITTER = "admin", "submitter"
_RBAC = "rbac.authorization.k8s.io"
_START_TIMEOUT = 120
"""Start timeout of the control plane in seconds."""

# Controllers that Jobs need, without those that need clouds or kubelets.
_CONTROLLERS = (
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "persistentvolume-binder-controller",
    "resourcequota-controller",
    "serviceaccount-controller",
    "ttl-after-finished-controller",
)


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane.

    Attributes
    ----------
    directory
        Certificates, logs and kubeconfigs.
    url
        Of the API server.
    tokens
        Of each user.
    """

    directory: Path
    url: str
    tokens: dict[str, str]

    @property
    def authority(self) -> Path:
        return self.directory / "certs" / "apiserver.crt"

    def kubeconfig(self, user: str, *, namespace: str | None = None, **changes: Any) -> Path:
        """Write a kubeconfig of a user, with a context for a namespace; return its path."""
        cluster = {"server": self.url, "certificate-authority": str(self.authority)}
        context = {"cluster": "tests", "user": user}
        values = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": {**cluster, **changes}}],
            "users": [{"name": user, "user": {"token": self.tokens.get(user, "none")}}],
            "contexts": [
                {"name": user, "context": context | ({"namespace": namespace} if namespace else {})}
            ],
            "current-context": user,
        }
        path = self.directory / f"{user}-{secrets.token_hex(4)}.kubeconfig"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def client(self, user: str = ADMIN) -> client.ApiClient:
        from kubernetes import client, config

        path = str(self.kubeconfig(user))
        configuration = client.Configuration()
        config.load_kube_config(config_file=path, client_configuration=configuration)
        return client.ApiClient(configuration)

    def new_namespace(self, *, level: str = "restricted") -> str:
        from kubernetes import client

        name = f"mlip-{secrets.token_hex(4)}"
        labels = {"pod-security.kubernetes.io/enforce": level}
        core = client.CoreV1Api(self.client())
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
        wait_until(lambda: core.list_namespaced_service_account(name).items, "service account")
        return name

    def allow(self, namespace: str, rules: list[dict[str, list[str]]], user: str) -> None:
        self._bind(namespace, rules, {"apiGroup": _RBAC, "kind": "User", "name": user})

    def allow_account(
        self, namespace: str, rules: list[dict[str, list[str]]], account: str
    ) -> None:
        subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
        self._bind(namespace, rules, subject)

    def add_init_container(self, namespace: str, container: str) -> None:
        """Make the API server add a container, written in CEL, to all pods created in a namespace.

        Returns when it does: the server reads new policies with a delay.
        """
        from kubernetes import client

        patch = f'[JSONPatch{{op: "add", path: "/spec/initContainers", value: [{container}]}}]'
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
        own = {"kubernetes.io/metadata.name": namespace}
        specs = {
            "MutatingAdmissionPolicy": {
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": own},
                    "resourceRules": [{**rule, "operations": ["CREATE"]}],
                },
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
            },
            "MutatingAdmissionPolicyBinding": {"policyName": namespace},
        }
        api, registration = client.CustomObjectsApi(self.client()), "admissionregistration.k8s.io"
        for kind, spec in specs.items():
            plural = re.sub("y$", "ie", kind.lower()) + "s"
            api.create_cluster_custom_object(
                registration,
                "v1",
                plural,
                {
                    "apiVersion": f"{registration}/v1",
                    "kind": kind,
                    "metadata": {"name": namespace},
                    "spec": spec,
                },
            )
        core = client.CoreV1Api(self.client())
        pod = {
            "metadata": {"name": "probe"},
            "spec": {
                "containers": [
                    {
                        "name": "probe",
                        "image": "probe",
                        "securityContext": {
                            "runAsNonRoot": True,
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                            "seccompProfile": {"type": "RuntimeDefault"},
                        },
                    }
                ]
            },
        }

        def added() -> bool:
            created = core.create_namespaced_pod(namespace, pod, dry_run="All")
            return bool(created.spec.init_containers)

        wait_until(added, "the admission policy")

    def _bind(
        self, namespace: str, rules: list[dict[str, list[str]]], subject: dict[str, str]
    ) -> None:
        from kubernetes import client

        api = client.RbacAuthorizationV1Api(self.client())
        name = f"{subject['name']}-{secrets.token_hex(4)}"
        api.create_namespaced_role(namespace, {"metadata": {"name": name}, "rules": rules})
        api.create_namespaced_role_binding(
            namespace,
            {
                "metadata": {"name": name},
                "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
                "subjects": [subject],
            },
        )


def find_programs() -> Path | None:
    """Return the folder of the control plane's programs, with the variable of envtest, or None."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        return Path(given)
    kubernetes, helm = pinned_version("k8s.io/kubernetes"), pinned_version("helm.sh/helm/v3")
    return find_built(f"cluster-{kubernetes}-helm-{helm}")


def find_built(name: str) -> Path | None:
    folder = CACHE / name
    return folder if folder.is_dir() else None


def pinned_version(module: str, folder: str = ".") -> str:
    path = Path(__file__).parents[2] / "tools/kubernetes" / folder / "go.mod"
    match = re.search(rf"{re.escape(module)} v(\S+)", path.read_text(encoding="utf-8"))
    assert match is not None, module
    return match.group(1)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    programs, etcd = find_programs(), shutil.which("etcd")
    if programs is None or etcd is None:
        pytest.skip("Kubernetes' control plane is not there: make servers builds it, with Go")
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlip-job-kubernetes-"))
        directory = Path(name)
        tokens = {user: secrets.token_hex(16) for user in (ADMIN, SUBMITTER)}
        storage = _start_etcd(stack, directory, etcd)
        url = _start_api_server(stack, directory, programs, storage, tokens)
        plane = ControlPlane(directory, url, tokens)
        wait_until(lambda: _is_ready(plane), "API server", log=directory / "kube-apiserver.log")
        kubeconfig = plane.kubeconfig(ADMIN)
        for program, *options in (
            (
                "kube-controller-manager",
                f"--controllers={','.join(_CONTROLLERS)}",
                f"--service-account-private-key-file={directory / 'sa.key'}",
                "--use-service-account-credentials=false",
            ),
            ("kube-scheduler",),
        ):
            start_program(
                stack,
                directory,
                *(programs / program, f"--kubeconfig={kubeconfig}", "--leader-elect=false"),
                *("--bind-address=127.0.0.1", "--secure-port=0", *options),
            )
        yield plane


def _start_etcd(stack: contextlib.ExitStack, directory: Path, program: str) -> str:
    clients, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    start_program(
        stack,
        directory,
        *(program, "--data-dir", directory / "etcd", "--unsafe-no-fsync"),
        *("--listen-client-urls", clients, "--advertise-client-urls", clients),
        *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
        *("--initial-cluster", f"default={peers}"),
    )
    return clients


def _start_api_server(
    stack: contextlib.ExitStack,
    directory: Path,
    programs: Path,
    storage: str,
    tokens: dict[str, str],
) -> str:
    key, port = directory / "sa.key", free_port()
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    with (directory / "tokens.csv").open("w", newline="") as file:
        groups = {ADMIN: "system:masters"}
        csv.writer(file).writerows(
            (token, user, user, groups.get(user, "")) for user, token in tokens.items()
        )
    start_program(
        stack,
        directory,
        *(programs / "kube-apiserver", f"--etcd-servers={storage}"),
        *("--bind-address=127.0.0.1", f"--secure-port={port}", f"--cert-dir={directory / 'certs'}"),
        *("--authorization-mode=RBAC", f"--token-auth-file={directory / 'tokens.csv'}"),
        *(f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"),
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--endpoint-reconciler-type=none",  # loopback addresses are rejected
        "--kubelet-preferred-address-types=InternalIP",
    )
    return f"https://127.0.0.1:{port}"


def start_program(stack: contextlib.ExitStack, directory: Path, *command: object) -> None:
    log = stack.enter_context((directory / f"{Path(str(command[0])).name}.log").open("wb"))
    process = subprocess.Popen(
        # It must not outlive the tests, even if those are killed.
        ["setpriv", "--pdeathsig", "KILL", *(str(part) for part in command)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
    )

    def end() -> None:
        process.kill()  # there is no data to keep
        process.wait()

    stack.callback(end)


def _is_ready(plane: ControlPlane) -> bool:
    if not plane.authority.exists():
        return False
    try:
        answer, _, _ = plane.client().call_api(
            "/readyz", "GET", response_type="str", auth_settings=["BearerToken"]
        )
    except Exception:  # noqa: BLE001 - refused, reset, not ready: whatever it is, it may pass
        return False
    return bool(answer == "ok")
