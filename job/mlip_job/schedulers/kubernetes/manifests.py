"""From a request to the Job and the ConfigMap with its configuration; pure."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from mlip_job.errors import ConfigError
from mlip_job.naming import kubernetes_job_name
from mlip_job.schedulers.base import Plan
from mlip_job.schedulers.kubernetes.layout import (
    CONFIG_FILE,
    CONTAINER,
    HOPELESS,
    QUEUE_LABEL,
    SPEC_HASH,
    WORK_DIR,
    recommended_labels,
)
from mlip_job.schedulers.kubernetes.pod import Manifest, pod_spec, settings_of
from mlip_job.schedulers.kubernetes.visibility import require_visible

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.config.kubernetes import KubernetesConfig
    from mlip_job.schedulers.base import JobRequest

_SECONDS_PER_DAY = 86400
_RETRY = 75
# What kubectl's YAML takes for a number or a truth value, and PyYAML for a text.
_SCALAR = re.compile(
    r"[yYnN]|[-+]?(0[xXoObB][\da-fA-F_]+|(\.\d|\d)[\d_]*(\.[\d_]*)?([eE][-+]?\d+)?)"
)
_LARGEST_CONFIG = 900_000  # bytes; etcd takes 1.5 MiB, the API server 1 MiB of a ConfigMap's data


def plan_job(request: JobRequest) -> Plan:
    """Return the manifests of a request as text: first the ConfigMap, then the Job.

    Raises
    ------
    ConfigError
        If the settings can't be submitted.
    """
    if request.after is not None:
        raise ConfigError(
            "Kubernetes knows no job that waits for another",
            hint="mlip-job submit --wait, and submit this generation once that one is published",
        )
    require_visible(request.config)
    text = config_text(request.config)
    digest = digest_of({"spec": _job_spec(request, CONTAINER), "config": text})
    name = kubernetes_job_name(request.config.family, request.generation, digest)
    config_map: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(request, name),
        "immutable": True,
        "data": {CONFIG_FILE: text},
    }
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(request, name),
        "spec": _job_spec(request, name),
    }
    job["metadata"].setdefault("annotations", {})[SPEC_HASH] = digest
    if (queue := settings_of(request).queue) is not None:
        job["metadata"]["labels"][QUEUE_LABEL] = queue
    return Plan(request, name, to_yaml(config_map, job))


def config_text(config: JobConfig) -> str:
    """Return the configuration as the pod reads it: complete, without how it was submitted."""
    values = config.model_dump(mode="json", exclude={"submit"}) | {"work_dir": WORK_DIR}
    text = to_yaml(values)
    if len(text.encode()) > _LARGEST_CONFIG:
        raise ConfigError(f"the configuration is too large for a ConfigMap: {len(text)} characters")
    return text


def to_yaml(*documents: Manifest) -> str:
    """Return manifests as the text that ``kubectl apply -f`` takes."""
    return yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        explicit_start=len(documents) > 1,
        width=100,
    )


def from_yaml(text: str) -> dict[str, Manifest]:
    """Return the manifests in a plan's text, by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def _metadata(request: JobRequest, name: str) -> Manifest:
    settings = request.config.submit.kubernetes
    metadata: Manifest = {"name": name}
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    metadata["labels"] = _labels(request)
    if settings.annotations:
        metadata["annotations"] = dict(settings.annotations)
    return metadata


def _labels(request: JobRequest) -> Manifest:
    own = recommended_labels(request.config.family, request.generation)
    return {**request.config.submit.kubernetes.labels, **own}


def _job_spec(request: JobRequest, name: str) -> Manifest:
    settings, members = settings_of(request), request.ensemble
    labels = _labels(request)
    del labels["app.kubernetes.io/version"]  # else a newer submitter's job would be another one
    template: Manifest = {
        "metadata": {"labels": labels},
        "spec": pod_spec(request, name),
    }
    if settings.annotations:
        template["metadata"]["annotations"] = dict(settings.annotations)
    spec: Manifest = {
        **_completion(members, settings),
        "podFailurePolicy": _failure_policy(ensemble=members is not None),
        # A pod that is still storing its checkpoint keeps its successor waiting.
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": round(settings.ttl_days * _SECONDS_PER_DAY),
    }
    if settings.active_deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = settings.active_deadline_seconds
    if settings.queue is not None:
        spec["suspend"] = True  # Kueue starts it
    return spec | {"template": template}


def _completion(members: int | None, settings: KubernetesConfig) -> Manifest:
    """Return how many pods have to succeed, and how often one may fail."""
    if members is None:
        return {"backoffLimit": settings.backoff_limit}
    return {
        "completionMode": "Indexed",
        "completions": members,
        "parallelism": members,
        "backoffLimitPerIndex": settings.backoff_limit,
    }


def _failure_policy(*, ensemble: bool) -> Manifest:
    """Return what the ends of a pod mean; the first rule that fits decides."""

    def on_exit(action: str, *codes: int) -> Manifest:
        condition = {"containerName": CONTAINER, "operator": "In", "values": list(codes)}
        return {"action": action, "onExitCodes": condition}

    return {
        "rules": [
            # Whatever it ended with: it was pre-empted, or its node is drained or gone.
            {
                "action": "Ignore",
                "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
            },
            on_exit("Ignore", _RETRY),
            # One member of an ensemble must not take the others with it.
            on_exit("FailIndex" if ensemble else "FailJob", *HOPELESS),
        ]
    }


def digest_of(values: Any) -> str:
    """Return the sha256 of what makes two submissions the same."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes texts of several lines as such, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - its signature is PyYAML's
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML reads the line breaks of Unicode as others, unless they are escaped.
    escaped = any(character in text for character in "\x85\u2028\u2029\ufeff")
    style = '"' if escaped else "|" if "\n" in text else "'" if _SCALAR.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
