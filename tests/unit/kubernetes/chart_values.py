"""Settings of a submission as chart values, and Jobs without their creator's metadata."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from mlip_job.config.schedulers import KubernetesConfig
from mlip_job.schedulers.base import JobRequest
from mlip_job.schedulers.kubernetes.manifest import SPEC_HASH

# Metadata that identify creator and source: the only allowed difference.
MAKERS = ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart")

ELSEWHERE = {"context", "namespace", "without_gpu"}
"""Settings that are helm options, or only for linear fits submitted by `mlip-job submit`."""


def values_for(request: JobRequest) -> dict[str, Any]:
    settings = request.config.submit.kubernetes
    values: dict[str, Any] = {
        "generation": request.generation,
        "config": request.config.model_dump(
            mode="json", exclude={"submit", "work_dir"}, exclude_unset=True
        ),
        "runOptions": list(request.run_options),
        "ensemble": request.ensemble,
    }
    for name in sorted(settings.model_fields_set - ELSEWHERE):
        value = settings.model_dump(mode="json")[name]
        translate = _TRANSLATIONS.get(name, lambda value, name=name: {_camel(name): value})
        for key, part in translate(value).items():
            values[key] = {**values[key], **part} if key in values else part
    return values


def _image(reference: str) -> dict[str, Any]:
    repository, at, digest = reference.partition("@")
    if at:
        return {"image": {"repository": repository, "digest": digest}}
    repository, _, tag = reference.rpartition(":")
    return {"image": {"repository": repository, "tag": tag}}


def _secrets(names: list[str]) -> dict[str, Any]:
    more = [{"secretRef": {"name": name}} for name in names[1:]]
    return {"existingSecret": names[0], "extraEnvFrom": more}


_TRANSLATIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "image": _image,
    "image_pull_secrets": lambda value: {"image": {"pullSecrets": value}},
    "secrets": _secrets,
    "service_account": lambda value: {"serviceAccount": {"name": value}},
    "claims": lambda value: {
        "claims": [
            {_camel(key): part for key, part in claim.items() if part is not None}
            for claim in value
        ]
    },
}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def plain_values() -> dict[str, str]:
    return {
        name: _camel(name)
        for name in KubernetesConfig.model_fields
        if name not in ELSEWHERE | set(_TRANSLATIONS)
    }


def same_job(manifest: dict[str, Any]) -> dict[str, Any]:
    job = copy.deepcopy(manifest)
    metadata, pod = job["metadata"], job["spec"]["template"]
    del metadata["name"], metadata["namespace"]
    for labels in (metadata["labels"], pod["metadata"]["labels"]):
        for label in MAKERS:
            labels.pop(label, None)
    annotations = metadata.pop("annotations", {})
    annotations.pop(SPEC_HASH, None)
    (config,) = (v["configMap"] for v in pod["spec"]["volumes"] if v["name"] == "config")
    del config["name"]
    return job | {"annotations": annotations}
