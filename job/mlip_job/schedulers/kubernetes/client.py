"""Requests to the API server: each one verb of one resource, manifests in and out."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import yaml

from mlip_job.errors import ConfigError, ConflictError, UnavailableError
from mlip_job.schedulers.kubernetes.manifest import CONTAINER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.config.schedulers import KubernetesConfig
    from mlip_job.errors import MlipJobError
    from mlip_job.schedulers.kubernetes.manifest import Manifest

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
_PIECE_BYTES = 1 << 16
_HEADERS = {"Accept": "application/json, */*", "Content-Type": "application/json"}


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster; `client` is the official client's ``ApiClient``.

    All methods raise `UnavailableError` if the API server is unavailable, and `ConfigError` if it
    rejects the request.
    """

    client: Any
    namespace: str
    silent_seconds: float = 120.0
    """How long a followed log may be silent before it is requested again: a connection can be lost
    unnoticed."""

    def create(self, manifest: Manifest) -> Manifest | None:
        """Create a Job or a ConfigMap and return it; None if its name is taken."""
        kind = manifest["kind"]
        path = self._path(f"{kind.lower()}s")
        # An unknown field is an error, as with kubectl, and not dropped silently.
        query = {"fieldValidation": "Strict", "fieldManager": "mlip-job"}
        return self._json(f"create the {kind}", "POST", path, query, manifest, none_for=(409,))

    def job(self, name: str) -> Manifest | None:
        """Return a Job, or None."""
        path = self._path("jobs", name)
        return self._json(f"read the Job {name}", "GET", path, none_for=(404,))

    def jobs(self, labels: Mapping[str, str]) -> list[Manifest]:
        """Return the Jobs with these labels, the oldest first."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        return self._list("list Jobs", "jobs", labelSelector=selector)

    def pods(self, job: str) -> list[Manifest]:
        """Return a Job's pods, the oldest first."""
        # Labelled by the Job controller since Kubernetes 1.27.
        selector = f"batch.kubernetes.io/job-name={job}"
        return self._list(f"list the pods of {job}", "pods", labelSelector=selector)

    def events(self, uid: str) -> list[Manifest]:
        """Return the recent events of an object."""
        return self._list("list events", "events", fieldSelector=f"involvedObject.uid={uid}")

    def workload(self, job: Manifest) -> Manifest | None:
        """Return Kueue's Workload of a Job, or None; without Kueue 0.15 or newer, None."""
        query = {"labelSelector": f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"}
        path = self._path("workloads")
        found = self._json("list Kueue's Workloads", "GET", path, query, none_for=(404,)) or {}
        workload: Manifest | None = next(iter(found.get("items", ())), None)
        return workload

    def delete_job(self, job: Manifest) -> None:
        """Delete this very Job, once its pods have ended within their grace period."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        path = self._path("jobs", name)
        self._json(f"delete the Job {name}", "DELETE", path, body=body, none_for=(404, 409))

    def delete_config_map(self, name: str) -> None:
        """Delete a ConfigMap."""
        path = self._path("configmaps", name)
        self._json(f"delete the ConfigMap {name}", "DELETE", path, body={}, none_for=(404, 409))

    def log(self, pod: str, *, follow: bool, since: str | None) -> Iterator[bytes]:
        """Yield a pod's log in pieces, each line with its time in front.

        With `follow`, until the container ends or the connection is lost. `since` (RFC 3339)
        excludes lines of earlier seconds.
        """
        query = {"container": CONTAINER, "timestamps": "true", "follow": str(follow).lower()}
        query |= {"sinceTime": since} if since is not None else {}
        action, path = f"read the log of {pod}", self._path("pods", pod, "log")
        # 400: its container has not started; 404: the pod is gone.
        response = self._request(
            action, "GET", path, query, none_for=(400, 404), answer_seconds=self.silent_seconds
        )
        if response is None:
            return
        try:
            yield from response.stream(_PIECE_BYTES)
        except _http_errors() as error:
            _raise_unreachable(action, error)
        finally:
            response.release_conn()

    def _path(self, resource: str, *parts: str) -> str:
        groups = {"jobs": "apis/batch/v1", "workloads": "apis/kueue.x-k8s.io/v1beta2"}
        group = groups.get(resource, "api/v1")
        names = (self.namespace, resource, *parts)
        return f"/{group}/namespaces/" + "/".join(quote(name, safe="") for name in names)

    def _list(self, action: str, resource: str, **query: str) -> list[Manifest]:
        found = self._json(action, "GET", self._path(resource), query) or {}
        items: list[Manifest] = found.get("items", [])
        return sorted(items, key=lambda item: str(item["metadata"].get("creationTimestamp")))

    def _json(
        self,
        action: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        *,
        none_for: tuple[int, ...] = (),
    ) -> Manifest | None:
        response = self._request(action, method, path, query or {}, body, none_for=none_for)
        content: Manifest | None = None if response is None else json.loads(response.data)
        return content

    def _request(
        self,
        action: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Manifest | None = None,
        *,
        none_for: tuple[int, ...],
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> Any:
        """Return the response; None for the statuses in `none_for`."""
        from kubernetes.client import ApiException  # noqa: PLC0415 - takes a second

        try:
            return self.client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params=dict(_HEADERS),
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(_CONNECT_SECONDS, answer_seconds),
            )
        except ApiException as error:
            if error.status in none_for:
                return None
            if not error.status:  # how the client reports TLS errors
                _raise_unreachable(action, error.reason)
            raise api_error(error.status, error.body, action) from None
        except _http_errors() as error:
            _raise_unreachable(action, error)


# -- which cluster ---------------------------------------------------------------------------------


def connect(settings: KubernetesConfig) -> Cluster:
    """Find the cluster as kubectl does: $KUBECONFIG or ~/.kube/config, a context; else the pod's.

    No request is made.

    Raise a ConfigError if there is no kubeconfig, it can't be read, or has no such context.
    """
    from kubernetes import client, config  # noqa: PLC0415 - takes a second

    configuration = client.Configuration()
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    if any(name and Path(name).is_file() for name in files.split(os.pathsep)):
        broken = (config.ConfigException, yaml.YAMLError, OSError, TypeError, AttributeError)
        try:
            contexts, active = config.list_kube_config_contexts(config_file=files)
            config.load_kube_config(
                config_file=files, context=settings.context, client_configuration=configuration
            )
        except broken as error:
            raise ConfigError(
                f"kubeconfig {files} can't be used: {' '.join(str(error).split())}",
                hint="kubectl config get-contexts shows the contexts; choose one with "
                "submit.kubernetes.context",
            ) from None
        chosen = settings.context or active["name"]
        context = next(entry["context"] for entry in contexts if entry["name"] == chosen)
        namespace = context.get("namespace") or "default"
    elif settings.context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        try:
            config.load_incluster_config(client_configuration=configuration)
            namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        except (config.ConfigException, OSError) as error:
            raise ConfigError(
                f"this pod can't reach its cluster: {error}",
                hint="give the pod that submits a service account and mount its token",
            ) from None
    else:
        raise ConfigError(
            f"no kubeconfig found at {files}, and not running inside a pod",
            hint="set KUBECONFIG, or have kubectl get pods work first",
        )
    # The client reads NO_PROXY and then forgets it (kubernetes-client/python#2460).
    configuration.no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    configuration.retries = False  # our callers retry, with a message
    return Cluster(client.ApiClient(configuration), settings.namespace or namespace)


# -- errors of the API server ----------------------------------------------------------------------

_FORBIDDEN = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_NO_NAMESPACE = re.compile(r'namespaces "(?P<namespace>[^"]+)" not found')
_BUSY = (429, 500, 502, 503, 504)


def api_error(status: int, body: str | bytes | None, action: str) -> MlipJobError:
    """Return the error for a rejected request, with the API server's own message.

    `body` is Kubernetes' ``Status`` object, or the response of a proxy; `action` names the request.
    """
    text = _message(body)
    failed = f"can't {action}: {text}"
    if status == HTTPStatus.FORBIDDEN:
        return _forbidden(text, action)
    if (missing := _NO_NAMESPACE.search(text)) is not None:
        name = missing["namespace"]
        return ConfigError(
            f"the cluster has no namespace {name}",
            hint=f"kubectl create namespace {name}, or set submit.kubernetes.namespace",
        )
    if status == HTTPStatus.CONFLICT:
        return ConflictError(failed)
    if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
        hint = "mlip-job submit --dry-run shows the manifest; see submit.kubernetes"
        return ConfigError(f"Kubernetes rejects the manifest; {failed}", hint=hint)
    if status == HTTPStatus.UNAUTHORIZED:
        failed = f"the cluster does not accept these credentials; {failed}"
        return UnavailableError(failed, hint="kubectl auth whoami shows the current user")
    return UnavailableError(f"{failed} (HTTP {status})", transient=status in _BUSY)


def _forbidden(text: str, action: str) -> ConfigError:
    """Distinguish a missing permission, which a role can grant, from a refusal by admission."""
    match = _FORBIDDEN.search(text)
    if match is None:
        return ConfigError(f"the cluster refuses to {action}: {text}")
    resource = f"{match['resource']}{'.' + match['group'] if match['group'] else ''}"
    where = f" in namespace {match['namespace']}" if match["namespace"] else ""
    return ConfigError(
        f"can't {action}: not allowed to {match['verb']} {resource}{where}",
        hint=f"ask for the verb {match['verb']} on {resource}{where}; docs/kubernetes.md has a "
        "role with all that mlip-job needs",
    )


def _message(body: str | bytes | None) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        status: Any = json.loads(text)
    except (ValueError, RecursionError):
        return " ".join(text.split())[:300] or "no reason given"
    message = status.get("message") if isinstance(status, dict) else None
    return " ".join(str(message or text).split())


def _http_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - only here

    return (HTTPError, OSError)


def _raise_unreachable(action: str, reason: object) -> NoReturn:
    text = " ".join(str(reason).split())
    if "CERTIFICATE_VERIFY_FAILED" in text:
        raise UnavailableError(
            f"can't {action}: the cluster's certificate is not trusted: {text}",
            hint="check certificate-authority in the kubeconfig",
        ) from None
    raise UnavailableError(
        f"can't {action}: the cluster does not answer: {text}",
        hint="check the context and the network; kubectl get --raw /readyz asks the same server",
        transient=True,
    ) from None
