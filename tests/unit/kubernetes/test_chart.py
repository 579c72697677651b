"""The Helm chart creates the same Job as `submit`, and rejects unknown values."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlip_job import __version__
from mlip_job.config.load import load_config, validate_config
from mlip_job.config.schedulers import KubernetesConfig
from mlip_job.schedulers.base import JobRequest
from mlip_job.schedulers.kubernetes.manifest import from_yaml, plan_job
from tests.servers.helm import CHART, VALUES, Helm, one_of_kind
from tests.unit.kubernetes.chart_values import plain_values, same_job, values_for
from tests.unit.kubernetes.conftest import EVERYTHING, MINORS

DOCUMENT = Path(__file__).parents[3] / "docs" / "kubernetes.md"
LEAST: dict[str, Any] = yaml.safe_load((CHART / "ci/generation-values.yaml").read_text())

SEED = (
    "config.dataset.seed: Helm can't hold this number exactly, it became 12345678901234568: write "
    "it in quotes, give it with --set-string config.dataset.seed=NUMBER, or choose one below "
    "9007199254740992"
)

NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")
UNPRINTABLE = "[\ufeff\ufffe\uffff]"


def same_configuration(config_map: dict[str, Any], path: Path) -> Any:
    path.write_text(config_map["data"]["mlip-job.yaml"], encoding="utf-8")
    return load_config(path, environment={})


# -- the same Job ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="defaults"),
        pytest.param(EVERYTHING, id="everything"),
        pytest.param(EVERYTHING | {"ensemble": 3}, id="everything, of an ensemble"),
        pytest.param({"ensemble": 2, "gpus": 0, "run_options": ("--fresh",)}, id="ensemble"),
        pytest.param({"run_as_user": None, "require_gpu": False}, id="OpenShift"),
        pytest.param({"cpu": "1500m", "cpu_limit": 1.5}, id="limits"),
        pytest.param(
            {"node_selector": {"kubernetes.io/arch": "arm64"}}, id="an architecture of its own"
        ),
        pytest.param({"gpus": 2, "sections": {"training": {"max_iter": 0}}}, id="a linear fit"),
        pytest.param({"ttl_days": 0.0001, "cpu": 2.5, "backoff_limit": 0}, id="small numbers"),
        pytest.param({"generation": 123456, "family": "a" + "-" * 38 + "b"}, id="long names"),
        pytest.param({"sections": {"run": {"stop_timeout": 90.5}}}, id="checkpoints take long"),
        pytest.param(
            {
                "sections": {
                    "dataset": {"seed": 123456789, "max_force": 1e-7, "group_by": "yes"},
                    "training": {"cutoff": 6},
                }
            },
            id="numbers and texts that YAML may take for others",
        ),
        pytest.param(
            {
                "database": "/data/structures.db",
                "storage": "file:///data/a/store",
                "claims": [
                    {"claim": "x" * 60, "mount_path": "/data/a"},
                    {"claim": "x" * 60, "mount_path": "/data/", "read_only": True},
                ],
            },
            id="one claim, mounted twice",
        ),
    ],
)
def test_the_chart_makes_the_submitted_job(
    helm: Helm, request_for: Callable[..., JobRequest], arguments: dict[str, Any], tmp_path: Path
) -> None:
    """For the same settings; and its pod reads the same configuration."""
    request = request_for(**{"namespace": "alloys"} | arguments)
    submitted = from_yaml(plan_job(request).text)
    installed = helm.template(values_for(request))
    assert same_job(one_of_kind(installed, "Job")) == same_job(submitted["Job"])
    theirs, ours = one_of_kind(installed, "ConfigMap"), submitted["ConfigMap"]
    for path, config_map in {"a.yaml": theirs, "b.yaml": ours}.items():
        config = same_configuration(config_map, tmp_path / path)
        assert config.model_dump(exclude={"submit"}) == request.config.model_dump(
            exclude={"submit"}
        ) | {"work_dir": "/work"}
    assert theirs["immutable"] is ours["immutable"] is True


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None
)
@example(["08", "1e3", "0o17", "1_000", ".5", "+1.", "y", "N", "0x_f", "1:30"])
@given(st.lists(st.text(st.characters(exclude_categories=NOT_IN_A_LINE), max_size=30), max_size=8))
def test_hostile_texts_are_the_same(
    helm: Helm, request_for: Callable[..., JobRequest], texts: list[str]
) -> None:
    plain = [re.sub(UNPRINTABLE, "", text) for text in texts]  # these are rejected in `config`
    request = request_for(
        namespace="alloys",
        env={f"V{i}": text for i, text in enumerate(texts)},
        run_options=tuple(texts),
        annotations={f"example.com/a{i}": text for i, text in enumerate(texts)},
        sections={"dataset": {"group_by": " ".join(plain)}},
    )
    submitted = from_yaml(plan_job(request).text)
    installed = helm.template(values_for(request))
    assert same_job(one_of_kind(installed, "Job")) == same_job(submitted["Job"])
    config = yaml.safe_load(one_of_kind(installed, "ConfigMap")["data"]["mlip-job.yaml"])
    assert config["dataset"]["group_by"] == " ".join(plain)


def test_a_changed_configuration_is_another_config_map(helm: Helm) -> None:
    values = copy.deepcopy(LEAST)
    first = one_of_kind(helm.template(values), "ConfigMap")["metadata"]
    values["config"]["training"] = {"cutoff": 6.5}
    second = one_of_kind(helm.template(values), "ConfigMap")["metadata"]
    assert first["name"] != second["name"]


# -- all combinations in ci/ -----------------------------------------------------------------------


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_installed_objects_match_the_schemas(helm: Helm, values: Path, minor: str) -> None:
    """Strict, for the three newest minor versions; every object has the recommended labels."""
    documents = helm.template(values, minor=minor)
    family = yaml.safe_load(values.read_text())["config"]["family"]
    for document in documents:
        assert kubernetes_validate.validate(document, minor, strict=True) == minor
        labels = document["metadata"]["labels"]
        assert labels["helm.sh/chart"] == f"mlip-job-{__version__}"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/instance"] == "release"
        assert labels["mlip-job/family"] == labels["app.kubernetes.io/part-of"] == family
        assert document["metadata"]["namespace"] == "alloys"
    names = [(one["kind"], one["metadata"]["name"]) for one in documents]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("values", [None, *VALUES], ids=lambda path: path.stem if path else "none")
def test_lint_passes(helm: Helm, values: Path | None) -> None:
    options = ["--values", values] if values is not None else []
    done = helm.run("lint", "--strict", CHART, "--kube-version", MINORS[0], *options)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout
    assert "[INFO]" not in done.stdout


def test_the_matrix_is_complete(helm: Helm) -> None:
    """Each value is in a file of ci/, and each template renders something."""
    documented = yaml.safe_load((CHART / "values.yaml").read_text())
    used = [yaml.safe_load(path.read_text()) for path in VALUES]
    assert set().union(*used) == set(documented)
    for name in ("image", "serviceAccount"):
        assert set().union(*(one.get(name, {}) for one in used)) == set(documented[name])
    kinds = {one["kind"] for path in VALUES for one in helm.template(path)}
    assert kinds == {"ConfigMap", "Job", "Pod", "ServiceAccount"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("generation", ["check", "--set", "training.require_gpu=true"]),
        ("ensemble", ["check"]),
        ("openshift", ["check"]),
    ],
)
def test_helm_test_checks_the_requirements_of_the_run(
    helm: Helm, name: str, arguments: list[str]
) -> None:
    documents = helm.template(CHART / f"ci/{name}-values.yaml")
    test, job = one_of_kind(documents, "Pod"), one_of_kind(documents, "Job")
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert test["spec"]["containers"][0]["args"][2:] == arguments
    pod = job["spec"]["template"]["spec"]
    test["spec"]["containers"][0]["args"] = pod["containers"][0]["args"]
    assert test["spec"] == pod


# -- rejected values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generations": 4}, "generations"),
        ({"image": {"repo": "a"}}, "repo"),
        ({"claims": [{"claim": "a", "mountPath": "/a", "read_only": True}]}, "read_only"),
        ({"config": {"family": "cu-ni", "submit": {}}}, "submit"),
        ({"config": {"family": "cu-ni", "training": {"cut_off": 6}}}, "cut_off"),
        ({"generation": 0}, "generation"),
        ({"memory": "16 GB"}, "memory"),
        ({"cpu": 2, "cpuLimit": "1500m"}, "cpuLimit is 1500m, less than cpu, 2"),
        ({"ephemeralStorageLimit": "19Gi"}, "ephemeralStorageLimit is 19Gi, less than workSize"),
        ({"workSize": "1e3"}, "workSize"),
        ({"env": {"a-b": "1"}}, "a-b"),
        ({"env": {"MLIP_JOB_IMAGE": "1"}}, "MLIP_JOB_IMAGE"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "hunter2"}}, "AWS_SECRET"),
        ({"claims": [{"claim": "a", "mountPath": "/work/data"}]}, "mountPath"),
        ({"claims": [{"claim": "a", "mountPath": "/a/../etc"}]}, "mountPath"),
        ({"runAsUser": 0}, "runAsUser"),
        ({"generation": None}, "generation is required"),
        ({"config": {"family": None}}, "family"),
        ({"image": {"repository": ""}}, "image.repository is required"),
        ({"config": {"database": {"url": "/home/me/a.db"}}}, "a file that pods don't see"),
        ({"config": {"storage": {"url": "store"}}}, "a directory that pods don't see"),
        (
            {
                "config": {"storage": {"url": "/a/store"}},
                "claims": [{"claim": "a", "mountPath": "/a", "readOnly": True}],
            },
            "mounted read-only",
        ),
        ({"config": {"dataset": {"group_by": "a\ufeffb"}}}, "config has characters"),
        ({"config": {"dataset": {"group_by": "a\u2028b"}}}, "/config/dataset/group_by"),
        ({"config": {"training": {"overrides": {"a": [{"b": "c\nd"}]}}}}, "overrides/a/0/b"),
        ({"config": {"database": {"url": "postgresql://u:hunter2@h/d"}}}, "/config/database/url"),
        ({"config": {"training": {"overrides": {"password": "hunter2"}}}}, "overrides/password"),
        ({"env": {"HTTPS_PROXY": "http://u:hunter2@proxy:3128"}}, "/env/HTTPS_PROXY"),
        ({"env": {"MLIP_JOB__DATABASE__URL": "postgresql://u:hun/ter2@h/d"}}, "DATABASE__URL"),
        ({"extraEnv": [{"name": "PGPASSWORD", "value": "hunter2"}]}, "/extraEnv/0"),
        ({"extraEnv": [{"name": "A", "value": "AKIAIOSFODNN7EXAMPLE"}]}, "/extraEnv/0/value"),
        ({"annotations": {"example.com/a": "http://u:hunter2@h"}}, "example.com~1a"),
        ({"runOptions": ["--set=database.url=postgresql://u:hunter2@h/d"]}, "/runOptions/0"),
        ({"image": {"repository": "u:hunter2@registry/img"}}, "repository"),
        ({"config": {"dataset": {"seed": 12345678901234567}}}, SEED),
        ({"config": {"dataset": {"seed": -(2**53)}}}, "config.dataset.seed: Helm can't hold"),
        ({"activeDeadlineSeconds": 2**60}, "activeDeadlineSeconds: Helm can't hold"),
    ],
)
def test_bad_values_are_rejected(helm: Helm, values: dict[str, Any], message: str) -> None:
    """Values that the submitter rejects, and unknown keys; each message names the key."""
    merged = copy.deepcopy(LEAST)
    for key, value in values.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if nested else value
    done = helm.run("template", "x", CHART, "--kube-version", MINORS[-1], values=merged)
    assert done.returncode != 0
    assert message in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "AKIA" not in done.stderr


def _objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for part in schema for found in _objects(part)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if isinstance(schema.get("properties"), dict) else []
    return own + [found for part in schema.values() for found in _objects(part)]


def test_no_object_accepts_unknown_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    described = _objects(schema)
    assert len(described) > 10
    assert all(part["additionalProperties"] is False for part in described)


@pytest.mark.parametrize("how", ["in quotes", "--set-string", "--set"])
def test_a_seed_is_passed_on_unchanged(helm: Helm, tmp_path: Path, how: str) -> None:
    """A value of `--set` stays a whole number where float64 would round it."""
    seed, values = 12345678901234567, copy.deepcopy(LEAST)
    options = [] if how == "in quotes" else [how, f"config.dataset.seed={seed}"]
    values["config"]["dataset"] = {"seed": str(seed)} if how == "in quotes" else {}
    done = helm.run("template", "x", CHART, *options, "--kube-version", MINORS[-1], values=values)
    assert done.returncode == 0, done.stderr
    config_map = one_of_kind(list(yaml.safe_load_all(done.stdout)), "ConfigMap")
    assert same_configuration(config_map, tmp_path / "mlip-job.yaml").dataset.seed == seed


# -- consistency with the sources ------------------------------------------------------------------


def test_every_setting_of_a_submission_is_a_value() -> None:
    """With the same name, unless charts have a conventional one, and the same default."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, key in plain_values().items():
        default = KubernetesConfig().model_dump(mode="json")[name]
        assert (values[key] or None) == (default or None), key


def test_values_schema_and_readme_are_up_to_date() -> None:
    """`make chart` generates them from the models, the values and the icon."""
    tool = Path(__file__).parents[3] / "tools" / "make-chart"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__


def documented() -> list[dict[str, Any]]:
    pages = (DOCUMENT, DOCUMENT.parent / "tutorials" / "kubernetes.md")
    blocks = [
        block.partition("```")[0]
        for page in pages
        for block in page.read_text(encoding="utf-8").split("```yaml\n")[1:]
    ]
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def test_the_documented_values_make_the_job_of_the_documented_configuration(helm: Helm) -> None:
    """Except for the image's tag and additional requests of the two examples."""
    (values,) = (one for one in documented() if "existingSecret" in one)
    config = next(one for one in documented() if "family" in one)
    assert values["config"] == {k: v for k, v in config.items() if k != "submit"}
    config["submit"]["kubernetes"]["image"] = "registry.example/mlip-job:0.1.0"
    request = JobRequest(validate_config(config, source="docs"), 4, Path("/"))
    job = one_of_kind(helm.template({**values, "generation": 4}), "Job")
    submitted = from_yaml(plan_job(request).text)["Job"]
    submitted["metadata"]["namespace"] = "alloys"
    assert same_job(job) == same_job(submitted)
