"""The few requests that a submission needs, each one verb of one resource; manifests in and out."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlip_job.errors import UnavailableError
from mlip_job.schedulers.kubernetes.api_errors import api_error
from mlip_job.schedulers.kubernetes.layout import CONTAINER, JOB_NAME_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlip_job.schedulers.kubernetes.connection import Connection
    from mlip_job.schedulers.kubernetes.pod import Manifest

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_SILENT_SECONDS = 120.0
"""So long a log may say nothing before it is asked for again: a connection can die unnoticed."""

_PIECE_BYTES = 1 << 16


class Cluster:
    """One namespace of a cluster.

    All methods raise `UnavailableError` where the API server can't be reached and `ConfigError`
    where it refuses.
    """

    def __init__(self, connection: Connection, namespace: str | None = None) -> None:
        self.namespace = namespace or connection.namespace
        self._client = connection.client

    def create_job(self, job: Manifest) -> Manifest | None:
        """Create a Job and return it; None where its name is taken."""
        return self._create("create the Job", self._path("jobs"), job)

    def create_config_map(self, config_map: Manifest) -> Manifest | None:
        """Create a ConfigMap and return it; None where its name is taken."""
        return self._create("create the ConfigMap", self._path("configmaps"), config_map)

    def job(self, name: str) -> Manifest | None:
        """Return a Job, None where there is none."""
        return self._read(f"read the Job {name}", self._path("jobs", name))

    def jobs(self, labels: Mapping[str, str]) -> list[Manifest]:
        """Return the Jobs with these labels, the oldest first."""
        return self._list("list Jobs", self._path("jobs"), labelSelector=_selector(labels))

    def pods(self, job: str) -> list[Manifest]:
        """Return a Job's pods, the oldest first."""
        selector = _selector({JOB_NAME_LABEL: job})
        return self._list(f"list the pods of {job}", self._path("pods"), labelSelector=selector)

    def events(self, uid: str) -> list[Manifest]:
        """Return what happened to an object lately."""
        selector = f"involvedObject.uid={uid}"
        return self._list("list events", self._path("events"), fieldSelector=selector)

    def delete_job(self, job: Manifest) -> None:
        """Delete this very Job, once its pods have ended in their own time."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        self._delete(f"delete the Job {name}", self._path("jobs", name), body)

    def delete_config_map(self, name: str) -> None:
        """Delete a ConfigMap."""
        self._delete(f"delete the ConfigMap {name}", self._path("configmaps", name), {})

    def log(self, pod: str, *, follow: bool, since: str | None) -> Iterator[bytes]:
        """Yield a pod's log in pieces, each line with its time before it.

        Parameters
        ----------
        pod
            Its name.
        follow
            Wait for more, until the container ends or the connection does.
        since
            Only lines from this second on, RFC 3339.
        """
        query = {"container": CONTAINER, "timestamps": "true", "follow": str(follow).lower()}
        query |= {"sinceTime": since} if since is not None else {}
        action, path = f"read the log of {pod}", self._path("pods", pod, "log")
        try:
            response = self._request(action, "GET", path, query, answer_seconds=_SILENT_SECONDS)
        except _RefusedError as refused:
            if refused.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND):
                return  # its container never began, or the pod is gone
            raise refused.error from None
        try:
            yield from response.stream(_PIECE_BYTES)
        except _http_errors() as error:
            raise _unreachable(action, error) from None
        finally:
            response.release_conn()

    # -- how a request is made ---------------------------------------------------------------------

    def _path(self, resource: str, *parts: str) -> str:
        group = "apis/batch/v1" if resource == "jobs" else "api/v1"
        names = "/".join(quote(part, safe="") for part in parts)
        return f"/{group}/namespaces/{quote(self.namespace, safe='')}/{resource}/{names}".rstrip(
            "/"
        )

    def _create(self, action: str, path: str, manifest: Manifest) -> Manifest | None:
        # An unknown field is an error, as with kubectl, and not dropped in silence.
        query = {"fieldValidation": "Strict", "fieldManager": "mlip-job"}
        try:
            created: Manifest = _content(self._request(action, "POST", path, query, manifest))
        except _RefusedError as refused:
            if refused.status == HTTPStatus.CONFLICT:
                return None
            raise refused.error from None
        return created

    def _read(self, action: str, path: str) -> Manifest | None:
        try:
            found: Manifest = _content(self._request(action, "GET", path, {}))
        except _RefusedError as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return None
            raise refused.error from None
        return found

    def _list(self, action: str, path: str, **query: str) -> list[Manifest]:
        try:
            items: list[Manifest] = _content(self._request(action, "GET", path, query))["items"]
        except _RefusedError as refused:
            raise refused.error from None
        return sorted(items, key=lambda item: str(item["metadata"].get("creationTimestamp")))

    def _delete(self, action: str, path: str, body: Manifest) -> None:
        try:
            _content(self._request(action, "DELETE", path, {}, body))
        except _RefusedError as refused:
            if refused.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise refused.error from None

    def _request(
        self,
        action: str,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Manifest | None = None,
        *,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> Any:
        from kubernetes.client import ApiException  # noqa: PLC0415 - takes a second

        try:
            return self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={
                    "Accept": "application/json, */*",
                    "Content-Type": "application/json",
                },
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(_CONNECT_SECONDS, answer_seconds),
            )
        except ApiException as error:
            if not error.status:  # the client's word for everything that TLS objects to
                raise _unreachable(action, error.reason) from None
            raise _RefusedError(error.status, api_error(error.status, error.body, action)) from None
        except _http_errors() as error:
            raise _unreachable(action, error) from None


class _RefusedError(Exception):
    """An answer other than success; its reader may have expected it."""

    def __init__(self, status: int, error: Exception) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error


def _content(response: Any) -> Any:
    return json.loads(response.data)


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _http_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - only here

    return (HTTPError, OSError)


def _unreachable(action: str, reason: object) -> UnavailableError:
    text = " ".join(str(reason).split())
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return UnavailableError(
            f"can't {action}: the cluster's certificate is not trusted: {text}",
            hint="check certificate-authority in the kubeconfig",
        )
    return UnavailableError(
        f"can't {action}: the cluster does not answer: {text}",
        hint="check the context and the network; kubectl get --raw /readyz asks the same server",
        transient=True,
    )
