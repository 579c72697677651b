"""From a request to the manifests of its Job and ConfigMap; pure."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import yaml

from mlip_job import __version__
from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name, kubernetes_job_name
from mlip_job.schedulers.base import Code, Plan, render

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.config.schedulers import KubernetesConfig
    from mlip_job.schedulers.base import JobRequest

Manifest = dict[str, Any]

# What the template, and code that reads Jobs, agree on.
CONTAINER = "mlip-job"
FAMILY_LABEL = "mlip-job/family"
GENERATION_LABEL = "mlip-job/generation"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SPEC_HASH = "mlip-job/spec-hash"
"""Annotation of the Job: the same value, the same submission."""

FINAL_EXIT_CODES = (64, 65, 70, 71, 73, 126, 127, 128, 255)
"""Exit codes that fail a Job at once.

Of `mlip_job.errors`, those that need a person; and those of a program that can't be executed: the
shell's 126 and 127, containerd's 128 (StartError), runc's 255 (exec format error).
"""

_CONFIG_FILE = "mlip-job.yaml"
_WORK_DIR = "/work"
_LARGEST_CONFIG = 900_000  # bytes; the API server takes 1 MiB of data in a ConfigMap
_GRACE_MARGIN_SECONDS = 20  # pacemaker ends, TensorFlow releases its GPU, the interpreter ends


def plan_job(request: JobRequest) -> Plan:
    """Return the manifests of a request as text: first the ConfigMap, then the Job.

    Raise a ConfigError if the settings can't be submitted.
    """
    if request.after is not None:
        raise ConfigError(
            "Kubernetes has no job that waits for another",
            hint="mlip-job submit --wait, and submit this generation once that one is published",
        )
    config, settings = request.config, settings_of(request)
    if settings.image is None:
        raise ConfigError(
            "submit.kubernetes.image is not set: the image with mlip-job and pacemaker",
            hint="docs/kubernetes.md says how to build one",
        )
    _require_visible(config)
    text = _config_text(config)
    values = {
        "job": settings.model_dump(mode="json", exclude={"context", "without_gpu"}),
        "labels": _labels(request, settings),
        "node_selector": {"kubernetes.io/arch": "amd64"} | settings.node_selector,
        "generation": request.generation,
        "ensemble": request.ensemble,
        # Not request.options: the same submission, made again to wait for it, is the same Job.
        "run_options": request.run_options,
        # The last checkpoint and the release of the claim may each take run.stop_timeout.
        "grace_period_seconds": math.ceil(2 * config.run.stop_timeout) + _GRACE_MARGIN_SECONDS,
        "final_exit_codes": FINAL_EXIT_CODES,
    }
    # Without the version: the same submission by a newer version is the same Job.
    digest = hashlib.sha256(json.dumps([values, text], sort_keys=True).encode()).hexdigest()
    name = kubernetes_job_name(config.family, request.generation, digest)
    indented = Code(text.rstrip("\n").replace("\n", "\n    "))
    manifests = render(
        "job.yaml.j2", name=name, version=__version__, spec_hash=digest, config=indented, **values
    )
    _check(manifests, name, text)
    return Plan(request, name, manifests)


def from_yaml(text: str) -> dict[str, Manifest]:
    """Return the manifests in a plan's text, by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def identifying_labels(family: str, generation: int) -> dict[str, str]:
    """Return the labels by which the jobs of a generation are found."""
    return {FAMILY_LABEL: family, GENERATION_LABEL: generation_name(generation)}


def settings_of(request: JobRequest) -> KubernetesConfig:
    """Return what the Job requests: of a linear fit, no GPU, and what ``without_gpu`` replaces."""
    settings = request.config.submit.kubernetes
    if request.needs_gpu:
        return settings
    of_gpu: dict[str, Any] = {"gpus": 0, "runtime_class": None, "node_selector": {}, "affinity": {}}
    return settings.model_copy(update=of_gpu | settings.without_gpu.model_dump(exclude_none=True))


def _check(text: str, name: str, config: str) -> None:
    """Read the text as data: two documents of this name, and the configuration unchanged."""
    problem = ""
    try:
        config_map, job = yaml.safe_load_all(text)
        names = {config_map["metadata"]["name"], job["metadata"]["name"]}
        whole = names == {name} and config_map["data"] == {_CONFIG_FILE: config}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        whole, problem = False, f": {error}"
    if not whole:
        raise ConfigError(f"submit.kubernetes can't be written as YAML{problem}")


def _config_text(config: JobConfig) -> str:
    """Return the configuration as the pod reads it: complete, without how it was submitted."""
    values = config.model_dump(mode="json", exclude={"submit"}) | {"work_dir": _WORK_DIR}
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    if len(text.encode()) > _LARGEST_CONFIG:
        raise ConfigError(f"the configuration is too large for a ConfigMap: {len(text)} characters")
    return text


def _labels(request: JobRequest, settings: KubernetesConfig) -> dict[str, str]:
    """Return Kubernetes' recommended labels but the version, and ours; these win over the user's.

    Labels of a pod can't be changed, so the version is only on Job and ConfigMap.
    """
    family, generation = request.config.family, request.generation
    labels = {
        **settings.labels,
        "app.kubernetes.io/name": "mlip-job",
        "app.kubernetes.io/instance": f"{family}-{generation_name(generation)}",
        "app.kubernetes.io/component": "training",
        "app.kubernetes.io/part-of": family,
        "app.kubernetes.io/managed-by": "mlip-job",
        **identifying_labels(family, generation),
    }
    labels.pop("app.kubernetes.io/version", None)
    return labels


def _require_visible(config: JobConfig) -> None:
    """Check that pods see the database and the store, and can write the store."""
    settings = config.submit.kubernetes
    mounts = [(claim.mount_path, claim.read_only) for claim in settings.claims]
    mounts += [
        (str(mount.get("mountPath", "")).rstrip("/"), bool(mount.get("readOnly")))
        for mount in settings.volume_mounts
    ]

    def read_only(path: str) -> list[bool]:
        """Return of each mount that shows the path whether it is read-only."""
        return [mode for top, mode in mounts if top and f"{path}/".startswith(f"{top}/")]

    database, store = _local_path(config.database.url), _local_path(config.storage.url)
    if database is not None and not read_only(database):
        raise ConfigError(
            f"database.url {database} is a file that pods don't see",
            hint="use PostgreSQL or MySQL, or put the file on a PersistentVolumeClaim: "
            "submit.kubernetes.claims: [{claim: NAME, mount_path: /data}], "
            "database.url: /data/structures.db",
        )
    if store is not None and not read_only(store):
        raise ConfigError(
            f"storage.url {store} is a directory that pods don't see: what they publish would be "
            "lost",
            hint="use s3://bucket/prefix, or a PersistentVolumeClaim: "
            "submit.kubernetes.claims: [{claim: NAME, mount_path: /store}], storage.url: /store",
        )
    if store is not None and all(read_only(store)):
        raise ConfigError(f"storage.url {store} lies on a volume that is mounted read-only")


def _local_path(url: str) -> str | None:
    """Return the path that a URL means, None for a server's."""
    scheme, separator, rest = url.rpartition("://")
    return rest if not separator or scheme == "file" else None
