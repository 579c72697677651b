"""What the API server answers, in the terms of this package."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from mlip_job.errors import ConfigError, ConflictError, UnavailableError

if TYPE_CHECKING:
    from mlip_job.errors import MlipJobError

_FORBIDDEN = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_NO_NAMESPACE = re.compile(r'namespaces "(?P<namespace>[^"]+)" not found')
_BUSY = (429, 500, 502, 503, 504)
_MESSAGES = {
    401: "the cluster does not accept these credentials",
    404: "the cluster does not have it",
    413: "the manifest is too large for the cluster",
}


def api_error(status: int, body: str | bytes | None, action: str) -> MlipJobError:
    """Return the error to raise where the API server refused a request.

    Parameters
    ----------
    status
        Of the HTTP response.
    body
        Kubernetes' ``Status`` object, or whatever a proxy sent.
    action
        What was tried, for the message: ``create the Job``.
    """
    text = _message(body)
    if status == 403:  # noqa: PLR2004 - Forbidden
        return _forbidden(text, action)
    if (missing := _NO_NAMESPACE.search(text)) is not None:
        name = missing["namespace"]
        return ConfigError(
            f"the cluster has no namespace {name}",
            hint=f"kubectl create namespace {name}, or set submit.kubernetes.namespace",
        )
    if status == 409:  # noqa: PLR2004 - Conflict
        return ConflictError(f"can't {action}: {text}")
    if status in (400, 422):
        return ConfigError(
            f"Kubernetes does not take the manifest; can't {action}: {text}",
            hint="mlip-job submit --dry-run shows it; see submit.kubernetes",
        )
    if status in _BUSY:
        return UnavailableError(f"can't {action} for now: {text}", transient=True)
    hint = "kubectl auth whoami tells who you are" if status == 401 else None  # noqa: PLR2004
    return UnavailableError(f"can't {action}: {_MESSAGES.get(status, status)}: {text}", hint=hint)


def _forbidden(text: str, action: str) -> MlipJobError:
    """Tell a missing permission, which a role can grant, from a refusal by admission."""
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
