"""The Jobs of a split run: what differs between them, and what they know of each other."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from mlip_job.config.load import validate_config
from mlip_job.errors import ConfigError
from mlip_job.schedulers.base import Stage, stages
from mlip_job.schedulers.kubernetes.layout import (
    FOLLOWS,
    QUEUE_ANNOTATION,
    QUEUE_LABEL,
    SPEC_HASH,
    STAGE_LABEL,
)
from mlip_job.schedulers.kubernetes.manifests import from_yaml, plan_job
from mlip_job.schedulers.kubernetes.template import job_from_template
from tests.unit.kubernetes.conftest import EVERYTHING
from tests.unit.kubernetes.test_manifests import MINORS, reviewed

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.schedulers.base import JobRequest

ALL = stages(split_export=True, split_evaluation=True)
EXPORT = stages(split_export=True, split_evaluation=False)


def requests(
    request_for: Callable[..., JobRequest], split: tuple[Stage, ...] = ALL, **arguments: Any
) -> list[JobRequest]:
    """Return the requests of one submission."""
    return [request_for(stage=stage, split=split, **arguments) for stage in split]


def jobs(request_for: Callable[..., JobRequest], **arguments: Any) -> list[dict[str, Any]]:
    """Return the Jobs of one submission."""
    return [from_yaml(plan_job(one).text)["Job"] for one in requests(request_for, **arguments)]


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of a Job's pod."""
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def arguments_of(job: dict[str, Any]) -> list[str]:
    """Return what a Job runs, behind the configuration."""
    found: list[str] = pod_of(job)["containers"][0]["args"][2:]
    return found


@pytest.mark.parametrize("stage", ALL)
def test_manifests_are_as_reviewed(request_for: Callable[..., JobRequest], stage: Stage) -> None:
    """A split ensemble with everything; MLIP_JOB_TEST_ACCEPT=1 accepts a change."""
    arguments = EVERYTHING | {"ensemble": 3, "run_options": ("--fresh",)}
    reviewed(plan_job(request_for(stage=stage, split=ALL, **arguments)), f"split-{stage}")


@pytest.mark.parametrize("version", MINORS)
@pytest.mark.parametrize("arguments", [{}, EVERYTHING, {"ensemble": 3, "queue": "training"}])
def test_manifests_fit_the_schemas(
    request_for: Callable[..., JobRequest], version: str, arguments: dict[str, Any]
) -> None:
    """Also all of a dry run in one file, which is what kubectl is given."""
    text = "".join(plan_job(one).text for one in requests(request_for, **arguments))
    documents = list(yaml.safe_load_all(text))
    assert [one["kind"] for one in documents] == ["ConfigMap", "Job"] * 3
    assert len({one["metadata"]["name"] for one in documents}) == 3
    for document in documents:
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_each_job_does_its_part(request_for: Callable[..., JobRequest]) -> None:
    """Only the fit has a GPU, and only the first Job starts over."""
    made = jobs(request_for, run_options=("--fresh",), runtime_class="nvidia")
    run = ["run", "--generation", "4"]
    assert [arguments_of(job) for job in made] == [
        [*run, "--until", "dataset", "--fresh"],
        [*run, "--require-gpu", "--until", "fit"],
        run,
    ]
    for job, has_gpu in zip(made, (False, True, False), strict=True):
        pod = pod_of(job)
        assert ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) is has_gpu
        assert ("tolerations" in pod) is has_gpu
        assert ("runtimeClassName" in pod) is has_gpu
    whole = jobs(request_for, split=EXPORT)[1]
    assert arguments_of(whole) == [*run, "--require-gpu"]


def test_a_split_job_is_otherwise_like_one_that_is_not(
    request_for: Callable[..., JobRequest],
) -> None:
    """The fit's differs in the label, in what it waits for, and in where it ends."""
    one = from_yaml(plan_job(request_for(**EVERYTHING)).text)["Job"]
    fit = jobs(request_for, **EVERYTHING | {"resume_service_account": None})[1]
    assert fit["spec"].pop("suspend") is one["spec"].pop("suspend") is True
    assert fit["spec"]["template"]["metadata"]["labels"].pop(STAGE_LABEL) == "fit"
    del pod_of(fit)["containers"][0]["args"][-2:]
    for job in (fit, one):
        (config,) = (v for v in pod_of(job)["volumes"] if v["name"] == "config")
        config["configMap"].pop("name")
    assert fit["spec"] == one["spec"]


def test_what_needs_no_gpu_asks_for_what_it_is_told(
    request_for: Callable[..., JobRequest],
) -> None:
    """The rest is the fit's, except for what chooses nodes with GPUs."""
    settings = {
        "cpu": 8,
        "memory": "64Gi",
        "node_selector": {"nvidia.com/gpu.product": "A100"},
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "priority_class": "batch",
    }
    plain = pod_of(jobs(request_for, **settings)[0])
    resources = plain["containers"][0]["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]) == ("8", {"memory": "64Gi"})
    assert plain["tolerations"] == settings["tolerations"]
    assert plain["priorityClassName"] == "batch"
    assert plain["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert "affinity" not in plain
    own = EVERYTHING["without_gpu"]
    told = pod_of(jobs(request_for, **settings, without_gpu=own)[2])
    resources = told["containers"][0]["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]) == ("16", {"memory": "8Gi"})
    assert told["tolerations"] == own["tolerations"]
    assert told["priorityClassName"] == "low"
    assert told["nodeSelector"] == {"kubernetes.io/arch": "amd64", **own["node_selector"]}
    assert told["affinity"] == own["affinity"]


def test_later_jobs_wait_for_the_one_before(request_for: Callable[..., JobRequest]) -> None:
    """Suspended, by name, and of the same submission."""
    first, second, third = jobs(request_for)
    assert "suspend" not in first["spec"]
    assert second["spec"]["suspend"] is third["spec"]["suspend"] is True
    names = [job["metadata"]["name"] for job in (first, second, third)]
    followed = [job["metadata"]["annotations"].get(FOLLOWS) for job in (first, second, third)]
    assert followed == [None, *names[:2]]
    base = re.fullmatch("(mlip-cu-ni-gen-04-[0-9a-f]{8})-dataset", names[0])
    assert base is not None
    assert names[1:] == [f"{base[1]}-fit", f"{base[1]}-publish"]
    assert len({job["metadata"]["annotations"][SPEC_HASH] for job in (first, second, third)}) == 1
    assert [job["metadata"]["labels"][STAGE_LABEL] for job in (first, second, third)] == [*ALL]


def test_kueue_is_given_only_what_is_due(request_for: Callable[..., JobRequest]) -> None:
    """Its label is what is withheld: it starts every Job that has it."""
    without_gpu = {"queue": "plain"}
    made = jobs(request_for, queue="training", without_gpu=without_gpu)
    assert all(job["spec"]["suspend"] is True for job in made)
    assert [job["metadata"]["labels"].get(QUEUE_LABEL) for job in made] == ["plain", None, None]
    kept = [job["metadata"]["annotations"].get(QUEUE_ANNOTATION) for job in made]
    assert kept == [None, "training", "plain"]
    assert all(QUEUE_LABEL not in job["spec"]["template"]["metadata"]["labels"] for job in made)


def test_members_have_one_dataset(request_for: Callable[..., JobRequest]) -> None:
    """Its Job is a plain one, the others are indexed."""
    made = jobs(request_for, ensemble=3)
    assert [job["spec"].get("completions") for job in made] == [None, 3, 3]
    assert ["--of" in arguments_of(job) for job in made] == [False, True, True]
    assert "backoffLimit" in made[0]["spec"]


def test_only_who_has_a_successor_has_a_token(request_for: Callable[..., JobRequest]) -> None:
    """Projected, of an hour, where clients look for it; and only where an account is named."""
    made = jobs(request_for, resume_service_account="resumer", service_account=None)
    names = [job["metadata"]["name"] for job in made]
    for job, successor in zip(made, (*names[1:], None), strict=True):
        pod = pod_of(job)
        assert pod["automountServiceAccountToken"] is False
        tokens = [v for v in pod["volumes"] if "projected" in v]
        assert len(tokens) == (successor is not None)
        assert pod.get("serviceAccountName") == ("resumer" if successor else None)
        arguments = arguments_of(job)
        assert ("--then-resume" in arguments) is (successor is not None)
        if successor is not None:
            assert arguments[arguments.index("--then-resume") + 1] == successor
            source = tokens[0]["projected"]["sources"][0]
            assert source == {"serviceAccountToken": {"expirationSeconds": 3600, "path": "token"}}
    for job in (*jobs(request_for), *jobs(request_for, split=(Stage.WHOLE,))):
        assert "projected" not in str(pod_of(job)["volumes"])
        assert "--then-resume" not in arguments_of(job)


def test_who_submits_is_told_that_somebody_has_to_start_the_rest(
    request_for: Callable[..., JobRequest],
) -> None:
    """Once, and not where the Jobs do it themselves."""
    notes = [plan_job(one).note for one in requests(request_for)]
    assert [note is not None for note in notes] == [False, True, False]
    assert "the same submission is made again" in str(notes[1])
    assert plan_job(request_for()).note is None
    for one in requests(request_for, resume_service_account="resumer"):
        assert plan_job(one).note is None


def test_another_submission_has_other_names(request_for: Callable[..., JobRequest]) -> None:
    """For all its Jobs, whichever of them would differ; and for another split."""
    submissions = [
        {},
        {"memory": "32Gi"},
        {"without_gpu": {"memory": "8Gi"}},
        {"run_options": ("--fresh",)},
        {"ensemble": 2},
        {"split": EXPORT},
        {"resume_service_account": "resumer"},
        {"sections": {"training": {"cutoff": 6.5}}},
    ]
    names = [
        plan_job(requests(request_for, **one)[0]).name.removesuffix("-dataset")
        for one in submissions
    ]
    assert len({*names, plan_job(request_for()).name}) == len(submissions) + 1
    one = request_for(stage=Stage.FIT, split=ALL)
    assert plan_job(one) == plan_job(one)
    assert plan_job(replace(one, follows="alloys/x")).text == plan_job(one).text


@pytest.mark.parametrize("generation", [1, 123456])
def test_names_are_short_enough(request_for: Callable[..., JobRequest], generation: int) -> None:
    """With the number of a member behind them, Kubernetes takes 63 characters."""
    family = "a" + "-" * 38 + "b"
    names = [
        plan_job(one).name for one in requests(request_for, family=family, generation=generation)
    ]
    assert len(set(names)) == 3
    for name in names:
        assert re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert len(f"{name}-9999") <= 63


def test_hostile_texts_stay_where_they_are(request_for: Callable[..., JobRequest]) -> None:
    """Nothing of a user's passes for what the Jobs tell each other."""
    mine = {FOLLOWS: "other", QUEUE_ANNOTATION: "other", "a/b": "$(X) --- kind: Job"}
    made = jobs(
        request_for, annotations=mine, labels={STAGE_LABEL: "other"}, run_options=("$(HOME)",)
    )
    for job, stage in zip(made, ALL, strict=True):
        assert job["metadata"]["labels"][STAGE_LABEL] == stage
        assert job["metadata"]["annotations"]["a/b"] == mine["a/b"]
        assert QUEUE_ANNOTATION not in job["metadata"]["annotations"]
    assert [arguments_of(job).count("$$(HOME)") for job in made] == [1, 0, 0]
    assert made[1]["metadata"]["annotations"][FOLLOWS] == made[0]["metadata"]["name"]
    with pytest.raises(ConfigError, match="start all Jobs of a split run at once"):
        jobs(request_for, labels={QUEUE_LABEL: "training"})


def test_a_template_is_not_split(request_for: Callable[..., JobRequest]) -> None:
    """It is of one Job."""
    one = from_yaml(plan_job(request_for(1)).text)["Job"]
    template = {"metadata": {"labels": one["metadata"]["labels"]}, "spec": one["spec"]}
    cron_job = {
        "metadata": {"name": "cu-ni", "namespace": "alloys"},
        "spec": {"jobTemplate": template},
    }
    with pytest.raises(ConfigError, match="can't be split") as refused:
        job_from_template(cron_job, request_for(stage=Stage.DATASET, split=EXPORT))
    assert "--split-export" in str(refused.value.hint)


def test_a_pod_has_one_service_account() -> None:
    """Two names are refused, with the way out; one name twice is the way."""

    def configure(one: str, two: str) -> None:
        settings = {"service_account": one, "resume_service_account": two}
        validate_config({"family": "a", "submit": {"kubernetes": settings}}, source="test")

    configure("trainer", "trainer")
    with pytest.raises(ConfigError, match="name it in both"):
        configure("trainer", "resumer")
