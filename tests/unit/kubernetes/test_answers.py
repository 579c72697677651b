"""What a cluster may say that the real one of the integration tests does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlip_job.errors import ConfigError, ConflictError, UnavailableError
from mlip_job.schedulers.base import JobState
from mlip_job.schedulers.kubernetes.api_errors import api_error
from mlip_job.schedulers.kubernetes.ending import ending_of
from mlip_job.schedulers.kubernetes.status import newest_job, status_of
from mlip_job.schedulers.kubernetes.submitter import release_of


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (403, "no JSON, but a proxy's page", ConfigError, "refuses to create the Job: no JSON"),
        (403, {"message": 'pods "x" is forbidden: policy'}, ConfigError, "policy"),
        (409, {"message": "object is being modified"}, ConflictError, "being modified"),
        (422, {"message": "spec: Invalid"}, ConfigError, "does not take the manifest"),
        (429, {"message": "slow down"}, UnavailableError, "for now: slow down"),
        (503, b"\xff", UnavailableError, "for now"),
        (504, None, UnavailableError, "no reason given"),
        (418, "", UnavailableError, "418"),
    ],
)
def test_every_answer_is_an_error_of_ours(
    status: int, body: Any, kind: type[Exception], words: str
) -> None:
    """Those that may pass are marked so."""
    error = api_error(
        status, json.dumps(body) if isinstance(body, dict) else body, "create the Job"
    )
    assert type(error) is kind
    assert words in error.message
    if isinstance(error, UnavailableError):
        assert error.transient == (status in (429, 503, 504))


@pytest.mark.parametrize(
    ("what", "resources", "hint"),
    [
        (
            "limits.cpu for: mlip-job",
            "state limits.cpu",
            "cancel it, set submit.kubernetes.cpu_limit, and submit it again",
        ),
        (
            "limits.cpu for: mlip-job,proxy; limits.memory for: proxy",
            "state limits.cpu, limits.memory",
            "set submit.kubernetes.cpu_limit, and",
        ),
        ("limits.memory for: proxy", "state limits.memory", "those that are injected too"),
    ],
)
def test_a_quota_on_what_the_pod_does_not_state(what: str, resources: str, hint: str) -> None:
    """The Job controller's event says so; ours names the setting."""
    message = f'Error creating: pods "a" is forbidden: failed quota: all: must specify {what}'
    event = {"reason": "FailedCreate", "message": message, "metadata": {}}
    status = status_of(job(), [], lambda _uid: [event])
    assert (status.state, status.native) == (JobState.PENDING, "QuotaNotStated")
    assert "quota all takes only pods that" in str(status.reason)
    assert str(status.reason).endswith(resources)
    assert hint in str(status.hint)


def pod(phase: str, *, name: str = "a", **status: Any) -> dict[str, Any]:
    """Return a pod as the API server has it."""
    return {
        "metadata": {"name": name, "uid": name},
        "spec": {"nodeName": "node", "containers": [{"name": "mlip-job"}]},
        "status": {"phase": phase, **status},
    }


def job(**status: Any) -> dict[str, Any]:
    """Return a Job as the API server has it."""
    return {"metadata": {"name": "job", "uid": "job"}, "spec": {}, "status": status}


def test_a_lost_node_is_unknown_and_no_failure() -> None:
    """Its pod may still run."""
    status = status_of(job(), [pod("Unknown")], lambda _uid: ())
    assert status.state is JobState.UNKNOWN
    assert not status.state.ended


def test_a_job_whose_pods_are_gone_tells_what_is_left() -> None:
    """Their time to live ended before the Job's, or somebody deleted them."""
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "PodFailurePolicy",
        "message": "code 70",
    }
    status = status_of(job(conditions=[failed]), [], lambda _uid: ())
    assert (status.state, status.reason) == (JobState.FAILED, "code 70")
    done = {"type": "Complete", "status": "True"}
    status = status_of(job(conditions=[done]), [], lambda _uid: ())
    assert (status.state, status.exit_code) == (JobState.SUCCEEDED, 0)


def test_a_condition_that_is_false_is_none() -> None:
    """A Job that was suspended and goes on keeps the condition."""
    failed = {"type": "Failed", "status": "False"}
    status = status_of(job(conditions=[failed]), [pod("Running")], lambda _uid: ())
    assert status.state is JobState.RUNNING


def test_a_drained_pod_stores_its_checkpoint() -> None:
    """It runs until then."""
    stopping = pod("Running")
    stopping["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = status_of(job(), [stopping], lambda _uid: ())
    assert (status.state, status.native) == (JobState.RUNNING, "Terminating")


def test_a_pod_that_never_began_has_no_exit_code() -> None:
    """Its own reason is told."""
    ending = ending_of(pod("Failed", reason="NodeAffinity", message="node labels changed"))
    assert (ending.native, ending.reason) == ("NodeAffinity", "node labels changed")
    assert ending.exit_code is None


@pytest.mark.parametrize("message", ["", "{", "[]", '{"hint": "no message"}', "plain text"])
def test_any_termination_message_is_taken(message: str) -> None:
    """It is the end of the log where the run wrote none."""
    state = {"terminated": {"exitCode": 70, "message": message}}
    ending = ending_of(pod("Failed", containerStatuses=[{"name": "mlip-job", "state": state}]))
    assert ending.exit_code == 70
    assert ending.reason.startswith("exit code 70: the training failed")
    assert message in ending.reason


def test_the_end_of_a_sidecar_is_not_the_runs() -> None:
    """Only our container's exit code counts."""
    statuses = [
        {"name": "proxy", "state": {"terminated": {"exitCode": 64}}},
        {"name": "mlip-job", "state": {"terminated": {"exitCode": 0, "message": "done"}}},
    ]
    assert ending_of(pod("Failed", containerStatuses=statuses)).exit_code == 0


# -- init containers and sidecars, which only a cluster's own webhooks add -------------------------


def waiting_pod(
    init: dict[str, Any], *, sidecar: bool = False, **statuses: dict[str, Any]
) -> dict[str, Any]:
    """Return a pod with an init container in some state, and other containers' states."""
    policy = {"restartPolicy": "Always"} if sidecar else {}
    others = {"mlip-job": {"waiting": {"reason": "PodInitializing"}}} | statuses
    found = pod("Pending")
    found["spec"]["initContainers"] = [{"name": "vault", **policy}]
    found["status"] |= {
        "initContainerStatuses": [{"name": "vault", **init}],
        "containerStatuses": [{"name": name, "state": state} for name, state in others.items()],
    }
    return found


@pytest.mark.parametrize(
    ("init", "native", "words"),
    [
        ({"running": {}}, "PodInitializing", "the run waits for the init container vault"),
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
            "ImagePullBackOff",
            "the init container vault can't be started: no such image",
        ),
        (
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
            "CrashLoopBackOff",
            "the init container vault can't be started: back-off 5m0s",
        ),
        ({"terminated": {"exitCode": 2}}, "Init:Error", "container vault failed with exit code 2"),
        ({"waiting": {"reason": "PodInitializing"}}, "PodInitializing", "being made"),
        ({}, "PodInitializing", "being made"),
        ({"terminated": {"exitCode": 0}}, "PodInitializing", "being made"),
    ],
)
def test_the_run_waits_for_an_init_container(init: dict[str, Any], native: str, words: str) -> None:
    """Which is named, where it is one that keeps it waiting."""
    status = status_of(job(), [waiting_pod({"state": init})], lambda _uid: ())
    assert (status.state, status.native) == (JobState.PENDING, native)
    assert words in str(status.reason)


def test_a_native_sidecar_that_runs_keeps_nothing_waiting() -> None:
    """Once it has started; the run's own container is what is being waited for then."""
    running = {"state": {"running": {}}}
    image = {"waiting": {"reason": "ImagePullBackOff", "message": "its image"}}
    for started, words in ((False, "init container vault"), (True, "its image")):
        seen = waiting_pod(running | {"started": started}, sidecar=True, **{"mlip-job": image})
        assert words in str(status_of(job(), [seen], lambda _uid: ()).reason)


def test_an_init_container_that_failed_is_named() -> None:
    """With its exit code, which is none of the run's."""
    failed = waiting_pod({"state": {"terminated": {"exitCode": 3, "message": "no token\n"}}})
    failed["status"]["phase"] = "Failed"
    ending = ending_of(failed)
    assert ending.reason == (
        "init container vault failed with exit code 3, and the run did not begin: no token"
    )
    assert ending.exit_code is None
    assert ending.hint == "kubectl logs a -c vault has what it printed"


def test_a_side_container_that_can_not_start_is_named() -> None:
    """It is none of mlip-job's, and neither is what to do about it."""
    done = {"state": {"terminated": {"exitCode": 0}}}
    proxy = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    seen = waiting_pod(done, **{"mlip-job": {"running": {}}, "proxy": proxy})
    status = status_of(job(), [seen], lambda _uid: ())
    assert status.reason == "the side container proxy can't be started: no such image"
    assert "submit.kubernetes" not in str(status.hint)


def test_a_pod_whose_sidecars_are_being_stopped_is_ending() -> None:
    """Native ones, by the kubelet: it takes seconds, and nothing has to be done."""
    ended = {"name": "mlip-job", "state": {"terminated": {"exitCode": 0, "message": "published"}}}
    status = status_of(job(), [pod("Running", containerStatuses=[ended])], lambda _uid: ())
    assert (status.state, status.native) == (JobState.RUNNING, "Completing")
    assert (status.exit_code, status.hint) == (0, None)


def test_members_whose_pods_are_kept_do_not_run() -> None:
    """An ensemble runs for as long as a member's own container does."""
    ended = {"name": "mlip-job", "state": {"terminated": {"exitCode": 70}}}
    proxy = {"name": "proxy", "state": {"running": {}}}
    kept, running = pod("Running", containerStatuses=[ended, proxy]), pod("Running", name="b")
    ensemble = job()
    ensemble["spec"] = {"completionMode": "Indexed", "completions": 2}
    status = status_of(ensemble, [running, kept], lambda _uid: ())
    assert status.state is JobState.RUNNING
    assert status.reason == "of 2 members 1 running, 1 ended in a pod that goes on"
    status = status_of(ensemble, [kept, kept], lambda _uid: ())
    assert status.state is JobState.FAILED
    assert "the container proxy still runs" in str(status.reason)


# -- images that can't run on their node -----------------------------------------------------------

IMAGE = "image mlip-job:1 on node node (kubernetes.io/arch=amd64)"


def imaged(phase: str, state: dict[str, Any]) -> dict[str, Any]:
    """Return a pod whose node and image are known."""
    found = pod(phase, containerStatuses=[{"name": "mlip-job", "state": state}])
    found["spec"]["containers"][0]["image"] = "mlip-job:1"
    found["spec"]["nodeSelector"] = {"kubernetes.io/arch": "amd64"}
    return found


@pytest.mark.parametrize(
    "message",
    [
        'no match for platform in manifest: not found: "mlip-job:1"',
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
    ],
)
def test_a_registry_without_the_architecture_is_said(message: str) -> None:
    """By containerd and by Docker; the image is there, but for other machines."""
    state = {"waiting": {"reason": "ErrImagePull", "message": message}}
    status = status_of(job(), [imaged("Pending", state)], lambda _uid: ())
    assert (status.state, status.native) == (JobState.PENDING, "ErrImagePull")
    assert status.reason == f"the image is not of the node's architecture: {IMAGE}: {message}"
    assert "submit.kubernetes.architecture" in str(status.hint)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"waiting": {"reason": "RunContainerError", "message": "no such file"}},
            f"the container can't be started; {IMAGE}: no such file",
        ),
        (
            {"terminated": {"exitCode": 128, "reason": "StartError", "message": "no such file"}},
            f"exit code 128: the container could not be started; {IMAGE}: no such file",
        ),
        (
            {"terminated": {"exitCode": 127}},
            f"exit code 127: the program to run was not found on the node; {IMAGE}",
        ),
        (
            {"terminated": {"exitCode": 1, "message": "exec /usr/bin/tini: exec format error"}},
            f"the image is not of the node's architecture: {IMAGE}: exec /usr/bin/tini: exec "
            "format error",
        ),
    ],
)
def test_what_can_not_be_executed_names_its_image(state: dict[str, Any], words: str) -> None:
    """And what was asked of the node."""
    ended = "terminated" in state
    seen = imaged("Failed" if ended else "Pending", state)
    reason = ending_of(seen).reason if ended else status_of(job(), [seen], lambda _: ()).reason
    assert reason == words


# -- who made a Job --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "annotations", "release"),
    [
        ({"app.kubernetes.io/managed-by": "Helm"}, {"meta.helm.sh/release-name": "four"}, "four"),
        # As Argo CD has it, which renders the chart itself.
        (
            {"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/instance": "four"},
            {},
            "four",
        ),
        (
            {"app.kubernetes.io/managed-by": "mlip-job", "app.kubernetes.io/instance": "cu-gen_04"},
            {},
            None,
        ),
        ({}, {}, None),
    ],
)
def test_a_job_tells_its_release(
    labels: dict[str, str], annotations: dict[str, str], release: str | None
) -> None:
    """By what helm and the chart write."""
    made = job()
    made["metadata"] |= {"labels": labels, "annotations": annotations}
    assert release_of(made) == release


@pytest.mark.parametrize("ended_first", [True, False])
def test_what_has_not_ended_is_the_newest(ended_first: bool) -> None:
    """Where another one failed within the same second; Kubernetes keeps no more of the time."""

    def of(name: str, **status: Any) -> dict[str, Any]:
        named = job(**status)
        named["metadata"]["name"] = name
        return named

    failed = of("a", conditions=[{"type": "Failed", "status": "True"}])
    jobs = [failed, of("b")] if ended_first else [of("b"), failed]
    newest = newest_job(jobs)
    assert newest is not None
    assert newest["metadata"]["name"] == "b"
    assert newest_job([failed]) == failed
    assert newest_job([]) is None
