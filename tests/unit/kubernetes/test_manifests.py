"""Manifests are a pure function of the request, valid for the three newest Kubernetes versions."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlip_job import __version__
from mlip_job.config.load import load_config
from mlip_job.config.schedulers import KubernetesConfig
from mlip_job.errors import ConfigError
from mlip_job.paths import kubernetes_job_name
from mlip_job.schedulers.base import JobRequest, Plan
from mlip_job.schedulers.kubernetes.manifest import SPEC_HASH, from_yaml, plan_job
from tests.unit.kubernetes.conftest import EVERYTHING, MINORS

GOLDEN = Path(__file__).parents[2] / "data" / "kubernetes"
ACCEPT = os.environ.get("MLIP_JOB_TEST_ACCEPT")


def pod_of(request: JobRequest) -> dict[str, Any]:
    pod: dict[str, Any] = from_yaml(plan_job(request).text)["Job"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("minimal", {}),
        ("everything", EVERYTHING),
        ("ensemble", {"ensemble": 3, "gpus": 0, "run_options": ("--fresh",)}),
    ],
)
def test_manifests_are_as_reviewed(
    request_for: Callable[..., JobRequest], name: str, arguments: dict[str, Any]
) -> None:
    """Compare with the reviewed files; MLIP_JOB_TEST_ACCEPT=1 accepts a change."""
    reviewed(plan_job(request_for(**arguments)), name)


def reviewed(plan: Plan, name: str) -> None:
    job = from_yaml(plan.text)["Job"]
    digest = job["metadata"]["annotations"][SPEC_HASH]
    # Without the configuration, which other tests cover, and fields that change with each release.
    text = plan.text.replace(digest, "DIGEST").replace(digest[:8], "DIGEST")
    text = text.replace(f'version: "{__version__}"', 'version: "VERSION"')
    text = re.sub(r"(  mlip-job\.yaml: \|\n)(    .*\n)+", r"\1    CONFIGURATION\n", text)
    path = GOLDEN / f"{name}.yaml"
    if ACCEPT:
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    difference = "\n".join(difflib.unified_diff(expected.splitlines(), text.splitlines(), n=3))
    assert not difference, f"{path} (MLIP_JOB_TEST_ACCEPT=1 accepts this):\n{difference}"


def test_everything_is_set() -> None:
    """The golden manifest with everything leaves out no setting."""
    assert set(EVERYTHING) == set(KubernetesConfig.model_fields) - {"context", "require_gpu"}


@pytest.mark.parametrize("version", MINORS)
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_reviewed_manifests_fit_the_schemas(path: Path, version: str) -> None:
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert [one["kind"] for one in documents] == ["ConfigMap", "Job"]
    for document in documents:
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_those_are_the_newest_minors() -> None:
    assert kubernetes_validate.latest_version().startswith(f"{MINORS[-1]}.")


def test_the_pod_reads_the_submitted_configuration(
    request_for: Callable[..., JobRequest], tmp_path: Path
) -> None:
    """The ConfigMap has the same configuration, except for the paths of the pod."""
    request = request_for(sections={"training": {"cutoff": 6.5, "elements": ["Cu", "Ni"]}})
    text = from_yaml(plan_job(request).text)["ConfigMap"]["data"]["mlip-job.yaml"]
    path = tmp_path / "mlip-job.yaml"
    path.write_text(text, encoding="utf-8")
    read = load_config(path, environment={})
    assert read.fingerprint() == request.config.fingerprint()
    assert read.work_dir == "/work"
    assert read.database == request.config.database


def test_the_same_request_has_the_same_name(request_for: Callable[..., JobRequest]) -> None:
    name = plan_job(request_for()).name
    assert name == plan_job(request_for()).name
    assert re.fullmatch("mlip-cu-ni-gen-04-[0-9a-f]{8}", name)
    others = [
        request_for(memory="32Gi"),
        request_for(sections={"training": {"cutoff": 6.5}}),
        request_for(run_options=("--fresh",)),
        request_for(ensemble=2),
        request_for(5),
    ]
    assert len({name, *(plan_job(other).name for other in others)}) == 6


def test_a_newer_submitter_makes_the_same_job(
    request_for: Callable[..., JobRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = plan_job(request_for()).name
    monkeypatch.setattr("mlip_job.schedulers.kubernetes.manifest.__version__", "99.0.0")
    assert plan_job(request_for()).name == name


@pytest.mark.parametrize("family", ["a", "cu-ni", "x" * 40, "a" + "-" * 38 + "b"])
@pytest.mark.parametrize("generation", [1, 123456])
def test_names_are_short_enough(family: str, generation: int) -> None:
    """With the number of a member appended; Kubernetes' limit is 63 characters."""
    name = kubernetes_job_name(family, generation, "0123456789abcdef")
    assert re.fullmatch("mlip-[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-9999") <= 63
    assert name.endswith(f"-gen-{generation:02d}-01234567")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40))
def test_hostile_values_are_passed_on_unchanged(
    request_for: Callable[..., JobRequest], value: str
) -> None:
    """YAML reads them back, and the kubelet expands nothing in them."""
    request = request_for(
        env={"VALUE": value}, run_options=(value,), sections={"dataset": {"group_by": value}}
    )
    manifests = from_yaml(plan_job(request).text)
    config = yaml.safe_load(manifests["ConfigMap"]["data"]["mlip-job.yaml"])
    assert config["dataset"]["group_by"] == value
    container = manifests["Job"]["spec"]["template"]["spec"]["containers"][0]
    (found,) = (one["value"] for one in container["env"] if one["name"] == "VALUE")
    assert found == value.replace("$", "$$")
    assert container["args"][-1] == found


@pytest.mark.parametrize(
    "value",
    ["08", "1e3", "0o17", "y", "$(HOME)", "yes", "null", "- a", "a: b", "# x", "'\"", "a  b "],
)
def test_yaml_does_not_change_texts(request_for: Callable[..., JobRequest], value: str) -> None:
    """Texts that look like numbers, booleans or structure stay texts."""
    plan = plan_job(request_for(annotations={"example.com/note": value}))
    job = list(yaml.safe_load_all(plan.text))[1]
    assert job["metadata"]["annotations"]["example.com/note"] == value
    bare = f"example.com/note: {value}\n" in plan.text
    assert not (bare and re.fullmatch(r"[-+\d.][\deo.]*|[yn]", value)), "kubectl reads it otherwise"
    assert job["spec"]["template"]["metadata"]["annotations"]["example.com/note"] == value


def test_own_labels_and_annotations_have_priority(request_for: Callable[..., JobRequest]) -> None:
    labels = {"mlip-job/family": "other", "team": "alloys"}
    plan = plan_job(request_for(labels=labels, annotations={SPEC_HASH: "other"}))
    metadata = from_yaml(plan.text)["Job"]["metadata"]
    assert metadata["labels"]["mlip-job/family"] == "cu-ni"
    assert metadata["labels"]["team"] == "alloys"
    assert metadata["annotations"][SPEC_HASH].startswith(plan.name[-8:])


def test_the_grace_period_is_sized_to_a_checkpoint(request_for: Callable[..., JobRequest]) -> None:
    """Storing it and releasing the claim may each take run.stop_timeout."""
    long = {"run": {"stop_timeout": 90.5}}
    assert pod_of(request_for())["terminationGracePeriodSeconds"] == 60
    assert pod_of(request_for(sections=long))["terminationGracePeriodSeconds"] == 201


def test_a_gpu_is_required_if_requested(request_for: Callable[..., JobRequest]) -> None:
    """Unless the settings say otherwise."""
    assert "--require-gpu" in pod_of(request_for())["containers"][0]["args"]
    for settings_ in ({"gpus": 0}, {"require_gpu": False}):
        assert "--require-gpu" not in pod_of(request_for(**settings_))["containers"][0]["args"]
    assert "tolerations" not in pod_of(request_for(gpus=0))


def test_limits_are_those_that_are_set(request_for: Callable[..., JobRequest]) -> None:
    """By default only memory has one. Threads follow the request, not the limit."""

    def resources(**settings_: Any) -> Any:
        return pod_of(request_for(gpus=0, **settings_))["containers"][0]["resources"]

    least = resources()
    assert least["limits"] == {"memory": "16Gi"}
    same = {"cpu_limit": "4000m", "ephemeral_storage_limit": "0.1Ti"}
    assert resources(**same) == {
        "requests": least["requests"],
        "limits": {"cpu": "4000m", "memory": "16Gi", "ephemeral-storage": "0.1Ti"},
    }
    (cores,) = (
        one["valueFrom"]["resourceFieldRef"]
        for one in pod_of(request_for(**same))["containers"][0]["env"]
        if one["name"] == "MLIP_JOB_CORES"
    )
    assert cores == {"resource": "requests.cpu", "divisor": "1"}


def test_a_linear_fit_requests_no_gpu(request_for: Callable[..., JobRequest]) -> None:
    """Nor a GPU node; settings for Jobs without a GPU apply."""
    linear = {"training": {"max_iter": 0}}
    settings = {
        "gpus": 2,
        "runtime_class": "nvidia",
        "node_selector": {"gpu": "a100"},
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "priority_class": "batch",
    }
    plain = pod_of(request_for(**settings, sections=linear))
    container = plain["containers"][0]
    assert container["resources"]["limits"] == {"memory": "16Gi"}
    assert "--require-gpu" not in container["args"]
    assert not {"affinity", "runtimeClassName"} & plain.keys()
    assert plain["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert plain["tolerations"] == settings["tolerations"]
    assert plain["priorityClassName"] == "batch"
    own = EVERYTHING["without_gpu"]
    overridden = pod_of(request_for(**settings, without_gpu=own, sections=linear))
    resources = overridden["containers"][0]["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]) == ("16", {"memory": "8Gi"})
    assert overridden["tolerations"] == settings["tolerations"]
    assert overridden["priorityClassName"] == "batch"
    assert overridden["nodeSelector"] == {"kubernetes.io/arch": "amd64", **own["node_selector"]}
    assert "affinity" not in overridden


def test_a_claim_mounted_several_times_is_one_volume(
    request_for: Callable[..., JobRequest],
) -> None:
    long = ".".join(["x" * 60] * 3)
    claims = [
        {"claim": long, "mount_path": "/data", "read_only": True},
        {"claim": long, "mount_path": "/store"},
    ]
    pod = pod_of(request_for(claims=claims))
    volumes = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert volumes == [{"name": "claim-0", "persistentVolumeClaim": {"claimName": long}}]
    mounts = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "claim-0"]
    assert [m["mountPath"] for m in mounts] == ["/data", "/store"]


def test_planning_needs_no_client() -> None:
    """A dry run imports neither Kubernetes' client, which takes seconds, nor the trainer."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mlip_job.config.load import validate_config\n"
        "from mlip_job.schedulers.base import JobRequest\n"
        "from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler\n"
        "values = {'family': 'a', 'database': {'url': 'mysql://a@b/c'}, 'storage': {'url': 's3://a'},\n"
        "          'submit': {'kubernetes': {'image': 'a'}}}\n"
        "config = validate_config(values, source='test')\n"
        "KubernetesScheduler(config.submit.kubernetes).plan(JobRequest(config, 1, Path('/')))\n"
        "print({'kubernetes', 'ase', 'numpy', 'boto3', 'pandas', 'urllib3'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -- invalid requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"image": None}, r"submit\.kubernetes\.image is not set"),
        ({"after": "mlip-cu-ni-gen-03-01234567"}, "no job that waits for another"),
        ({"labels": {"x" * 2000: "a"}}, r"submit\.kubernetes can't be written as YAML"),
    ],
)
def test_impossible_requests(
    request_for: Callable[..., JobRequest], request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_job(request_for(**request_))


@pytest.mark.parametrize("database", ["/home/me/structures.db", "/data2/structures.db"])
def test_a_database_that_pods_do_not_see_is_rejected(
    request_for: Callable[..., JobRequest], database: str
) -> None:
    claims = [{"claim": "data", "mount_path": "/data"}]
    with pytest.raises(ConfigError, match=f"{database} is a file that pods don't see") as refused:
        plan_job(request_for(database=database, claims=claims))
    assert "PersistentVolumeClaim" in str(refused.value.hint)
    plan_job(request_for(database="/data/structures.db", claims=claims))
    nfs = {"name": "nfs", "nfs": {"server": "nfs.example", "path": "/export"}}
    mounts = [{"name": "nfs", "mountPath": "/nfs/"}]
    plan_job(request_for(database="/nfs/a.db", volumes=[nfs], volume_mounts=mounts))


@pytest.mark.parametrize("storage", ["/home/me/store", "file:///home/me/store"])
def test_a_store_that_pods_do_not_see_is_rejected(
    request_for: Callable[..., JobRequest], storage: str
) -> None:
    """With the remedy; so is a store that pods can't write to."""
    with pytest.raises(ConfigError, match="/home/me/store is a directory that pods don't") as no:
        plan_job(request_for(storage=storage))
    assert "s3://" in str(no.value.hint)
    claim = {"claim": "store", "mount_path": "/home/me"}
    plan_job(request_for(storage=storage, claims=[claim]))
    with pytest.raises(ConfigError, match="read-only"):
        plan_job(request_for(storage=storage, claims=[claim | {"read_only": True}]))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"memory": "16 GB"}, "memory: '16 GB' is no quantity"),
        ({"memory": "0Gi"}, "is no quantity above 0"),
        ({"cpu": -1}, "is no quantity"),
        ({"work_size": "1e3"}, "is no quantity"),
        ({"cpu": 2, "cpu_limit": "1500m"}, "cpu_limit is 1500m, less than cpu, 2"),
        ({"ephemeral_storage_limit": "19.9Gi"}, "ephemeral_storage_limit is 19.9Gi, less than"),
        ({"gpus": -1}, "greater than or equal to 0"),
        ({"gpu_resource": "nvidia.com/"}, "is no name of a resource"),
        ({"namespace": "Alloys"}, "is no name"),
        ({"namespace": "x" * 64}, "is no name"),
        ({"secrets": ["a_b"]}, "is no name"),
        ({"image": "registry example/x"}, "is no reference of an image"),
        ({"image": ""}, "is no reference of an image"),
        ({"env": {"a-b": "1"}}, "is no name of a variable"),
        ({"env": {"MLIP_JOB_IMAGE": "1"}}, "is set by mlip-job itself"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "hunter2"}}, "; put it into a Secret"),
        ({"env": {"MLIP_JOB_DATABASE_PASSWORD": "hunter2"}}, "; put it into a Secret"),
        ({"env": {"MYSQL_PWD": "hunter2"}}, "; put it into a Secret"),
        ({"claims": [{"claim": "a", "mount_path": "data"}]}, "takes an absolute path"),
        ({"claims": [{"claim": "a", "mount_path": "/work/data"}]}, "is the pod's own"),
        ({"claims": [{"claim": "a", "mount_path": "/a/../etc"}]}, "takes an absolute path"),
        ({"claims": [{"claim": "a", "mount_path": "/a"}, {"claim": "b", "mount_path": "/a"}]},
         "mounted twice"),
        ({"ttl_days": 0}, "greater than 0"),
        ({"run_as_user": 0}, "greater than or equal to 1"),
        ({"tolleration": []}, "did you mean submit.kubernetes.tolerations?"),
    ],
)  # fmt: skip
def test_settings_are_validated_when_they_are_read(
    request_for: Callable[..., JobRequest], settings_: dict[str, Any], message: str
) -> None:
    """Each message names the key, and none contains a secret's value."""
    with pytest.raises(ConfigError) as refused:
        request_for(**settings_)
    assert message in refused.value.message
    assert "submit.kubernetes" in refused.value.message
    assert "hunter2" not in str(refused.value)
