"""A CronJob that was installed as the template becomes the Job of a generation."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.errors import ConfigError
from mlip_job.schedulers.kubernetes.manifests import from_yaml, plan_job
from mlip_job.schedulers.kubernetes.template import job_from_template, template_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.schedulers.base import JobRequest


def cron_job(request: JobRequest) -> dict[str, Any]:
    """Return a template with the Job of a request in it."""
    job = from_yaml(plan_job(request).text)["Job"]
    labels = {k: v for k, v in job["metadata"]["labels"].items() if k != "mlip-job/generation"}
    return {
        "metadata": {"name": "cu-ni", "namespace": "alloys"},
        "spec": {
            "suspend": True,
            "schedule": "0 0 1 1 *",
            "jobTemplate": {"metadata": {"labels": labels}, "spec": job["spec"]},
        },
    }


def test_only_the_generation_differs(request_for: Callable[..., JobRequest]) -> None:
    """From the Job that is in the template."""
    template = cron_job(request_for(1))
    before = copy.deepcopy(template)
    job = job_from_template(template, request_for(4, run_options=("--fresh", "$(X)")))
    assert template == before
    assert job["metadata"]["name"].startswith("mlip-cu-ni-gen-04-")
    assert job["metadata"]["namespace"] == "alloys"
    assert job["metadata"]["labels"]["mlip-job/generation"] == "gen_04"
    pod = job["spec"]["template"]
    assert pod["metadata"]["labels"]["mlip-job/generation"] == "gen_04"
    arguments = pod["spec"]["containers"][0]["args"]
    assert arguments[2:] == ["run", "--generation", "4", "--require-gpu", "--fresh", "$$(X)"]
    pod["spec"]["containers"][0]["args"] = before["spec"]["jobTemplate"]["spec"]["template"][
        "spec"
    ]["containers"][0]["args"]
    assert pod["spec"] == before["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_its_name_follows_from_the_template(request_for: Callable[..., JobRequest]) -> None:
    """A changed template makes another Job; the same one the same."""
    first = job_from_template(cron_job(request_for(1)), request_for(4))
    again = job_from_template(cron_job(request_for(1)), request_for(4, memory="1Gi"))
    other = job_from_template(cron_job(request_for(1, memory="1Gi")), request_for(4))
    assert first == again
    assert first["metadata"]["name"] != other["metadata"]["name"]


def test_what_is_no_template_is_refused(request_for: Callable[..., JobRequest]) -> None:
    """Of another family, without our container, or with no place for the generation."""
    template = cron_job(request_for(1))
    with pytest.raises(ConfigError, match="template for family cu-ni, not w"):
        job_from_template(template, request_for(4, family="w"))
    with pytest.raises(ConfigError, match="ensembles"):
        job_from_template(template, request_for(4, ensemble=2))
    container = template["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    container["args"] = ["run"]
    with pytest.raises(ConfigError, match="no container mlip-job with --generation"):
        job_from_template(template, request_for(4))
    container["name"] = "other"
    with pytest.raises(ConfigError, match="no container mlip-job with --generation"):
        job_from_template(template, request_for(4))


@pytest.mark.parametrize("reference", ["cu-ni", "job/cu-ni", "cronjob/", ""])
def test_a_template_is_named_with_its_kind(reference: str) -> None:
    """As kubectl create job --from does."""
    assert template_name("cronjob/cu-ni") == "cu-ni"
    with pytest.raises(ConfigError, match="is no template"):
        template_name(reference)
