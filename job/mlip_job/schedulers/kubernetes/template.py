"""Make a Job of a CronJob that somebody installed as the template."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError
from mlip_job.naming import kubernetes_job_name
from mlip_job.schedulers.kubernetes.layout import (
    CONTAINER,
    FAMILY_LABEL,
    SPEC_HASH,
    identifying_labels,
)
from mlip_job.schedulers.kubernetes.manifests import digest_of
from mlip_job.schedulers.kubernetes.split import is_split

if TYPE_CHECKING:
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.kubernetes.pod import Manifest

_GENERATION = "--generation"


def template_name(reference: str) -> str:
    """Return NAME of ``cronjob/NAME``.

    Raises
    ------
    ConfigError
        If it names something else.
    """
    kind, separator, name = reference.partition("/")
    if kind not in ("cronjob", "cronjobs", "cj") or not separator or not name:
        raise ConfigError(f"{reference!r} is no template", hint="--from cronjob/NAME")
    return name


def job_from_template(cron_job: Manifest, request: JobRequest) -> Manifest:
    """Return the Job that a CronJob describes, for the generation of a request.

    The template decides everything else, configuration included; ``submit.kubernetes`` has no say.
    The Job is not owned by the CronJob: it goes on where that is changed or removed.

    Raises
    ------
    ConfigError
        If the CronJob is of another family, or has no container named ``mlip-job``.
    """
    family, source = request.config.family, cron_job["metadata"]["name"]
    template = cron_job["spec"]["jobTemplate"]
    labels = dict(template.get("metadata", {}).get("labels") or {})
    if labels.get(FAMILY_LABEL) != family:
        raise ConfigError(
            f"cronjob/{source} is a template for family {labels.get(FAMILY_LABEL)}, not {family}"
        )
    if request.ensemble is not None or request.after is not None:
        raise ConfigError("a template decides about ensembles and order itself")
    if is_split(request):
        raise ConfigError(
            f"cronjob/{source} is of one Job, and can't be split",
            hint="leave out --split-export and --split-evaluation, or --from",
        )
    spec = copy.deepcopy(template["spec"])
    pod = spec["template"]
    _set_generation(pod["spec"], request, source)
    own = identifying_labels(family, request.generation)
    pod.setdefault("metadata", {})["labels"] = {**(pod["metadata"].get("labels") or {}), **own}
    annotations = dict(template.get("metadata", {}).get("annotations") or {})
    digest = digest_of(spec)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": kubernetes_job_name(family, request.generation, digest),
            "namespace": cron_job["metadata"]["namespace"],
            "labels": {**labels, **own},
            "annotations": {
                **annotations,
                "cronjob.kubernetes.io/instantiate": "manual",
                SPEC_HASH: digest,
            },
        },
        "spec": spec,
    }


def _set_generation(pod: Manifest, request: JobRequest, source: str) -> None:
    """Put the number behind ``--generation``, and further options at the end."""
    containers = [one for one in pod["containers"] if one["name"] == CONTAINER]
    if not containers or _GENERATION not in containers[0].get("args", ()):
        raise ConfigError(
            f"cronjob/{source} has no container {CONTAINER} with {_GENERATION} in its args"
        )
    arguments = list(containers[0]["args"])
    position = arguments.index(_GENERATION) + 1
    arguments[position : position + 1] = [str(request.generation)]
    containers[0]["args"] = [*arguments, *(o.replace("$", "$$") for o in request.run_options)]
