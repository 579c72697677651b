"""Responses of a cluster that do not occur in the integration tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlip_job.errors import ConfigError, ConflictError, UnavailableError
from mlip_job.schedulers.base import JobState
from mlip_job.schedulers.kubernetes.client import api_error
from mlip_job.schedulers.kubernetes.scheduler import release_of
from mlip_job.schedulers.kubernetes.status import ending_of, newest_job, status_of


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (403, "no JSON, but a proxy's page", ConfigError, "refuses to create the Job: no JSON"),
        (403, {"message": 'pods "x" is forbidden: policy'}, ConfigError, "policy"),
        (409, {"message": "object is being modified"}, ConflictError, "being modified"),
        (422, {"message": "spec: Invalid"}, ConfigError, "rejects the manifest"),
        (429, {"message": "slow down"}, UnavailableError, "create the Job: slow down"),
        (503, b"\xff", UnavailableError, "HTTP 503"),
        (504, None, UnavailableError, "no reason given"),
        (418, "", UnavailableError, "418"),
    ],
)
def test_every_api_error_becomes_our_error(
    status: int, body: Any, kind: type[Exception], words: str
) -> None:
    error = api_error(
        status, json.dumps(body) if isinstance(body, dict) else body, "create the Job"
    )
    assert type(error) is kind
    assert words in error.message
    if isinstance(error, UnavailableError):
        assert error.transient == (status in (429, 503, 504))


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("exceeded quota: gpus, requested: a=2, used: a=0, limited: a=1", "wait for other jobs"),
        ("failed quota: all: must specify limits.cpu for: mlip-job", "submit.kubernetes.cpu_limit"),
        (
            "failed quota: all: must specify limits.cpu for: mlip-job; limits.memory for: proxy",
            "submit.kubernetes.cpu_limit",
        ),
        ("failed quota: all: must specify limits.memory for: proxy", "injected ones too"),
        ('violates PodSecurity "restricted:latest": hostPath', "submit.kubernetes.volumes"),
        ("another refusal", None),
    ],
)
def test_the_job_controllers_message_explains_a_missing_pod(message: str, hint: str | None) -> None:
    event = {"reason": "FailedCreate", "message": message, "metadata": {}}
    status = status_of(job(), [], lambda _uid: [event])
    assert (status.state, status.native) == (JobState.PENDING, "FailedCreate")
    assert status.reason == message
    assert (hint is None and status.hint is None) or str(hint) in str(status.hint)


@pytest.mark.parametrize(
    ("reason", "message", "hint"),
    [
        ("ContainerCreating", "", None),
        ("ImagePullBackOff", "back-off", "submit.kubernetes.image, and image_pull_secrets"),
        ("InvalidImageName", "", "submit.kubernetes.image"),
        ("ErrImageNeverPull", "", "submit.kubernetes.image"),
        ("CreateContainerConfigError", 'secret "s3" not found', "create the Secret"),
        ("CreateContainerError", "no such runtime", None),
        ("SomethingNew", "of later versions", None),
    ],
)
def test_the_kubelet_says_why_a_container_waits(
    reason: str, message: str, hint: str | None
) -> None:
    waiting = of_state("Pending", {"state": {"waiting": {"reason": reason, "message": message}}})
    status = status_of(job(), [waiting], lambda _uid: ())
    assert (status.state, status.native) == (JobState.PENDING, reason)
    assert status.reason == (f"{reason}: {message}" if message else reason)
    assert (hint is None and status.hint is None) or str(hint) in str(status.hint)


@pytest.mark.parametrize(
    ("terminated", "reason"),
    [
        ({"exitCode": 137}, "exit code 137: it was killed, as for using too much memory"),
        (
            {"exitCode": 1, "message": "Traceback: boom"},
            "exit code 1: it failed without saying why: Traceback: boom",
        ),
    ],
)
def test_a_failed_job_shows_the_end_of_its_last_pod(
    terminated: dict[str, Any], reason: str
) -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
    ended = of_state("Failed", {"state": {"terminated": terminated}})
    seen = job(conditions=[failed | {"message": "Job has reached the specified backoff limit"}])
    status = status_of(seen, [ended], lambda _uid: ())
    assert (status.state, status.native) == (JobState.FAILED, "BackoffLimitExceeded")
    assert status.exit_code == terminated["exitCode"]
    assert status.reason == f"Job has reached the specified backoff limit; last, {reason}"


def pod(phase: str, *, name: str = "a", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": name},
        "spec": {"nodeName": "node", "containers": [{"name": "mlip-job"}]},
        "status": {"phase": phase, **status},
    }


def job(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "job", "uid": "job"}, "spec": {}, "status": status}


def finished(name: str = "mlip-job", **terminated: Any) -> dict[str, Any]:
    return {"name": name, "state": {"terminated": terminated}}


FULL = 'Usage of EmptyDir volume "work" exceeds the limit "20Gi".'


@pytest.mark.parametrize(
    ("status", "native", "code", "reason", "hint"),
    [
        (
            {"containerStatuses": [finished(exitCode=137, reason="OOMKilled")]},
            "OOMKilled", 137, "it used more memory than its limit of 16Gi",
            "submit.kubernetes.memory",
        ),
        # It would fill up on another node too.
        (
            {"reason": "Evicted", "message": FULL, "containerStatuses": [finished(exitCode=137)]},
            "Evicted", 137, f"it was evicted: {FULL}", "work_size",
        ),
        (
            {"reason": "NodeAffinity", "message": "node labels changed"},
            "NodeAffinity", None, "node labels changed", "",
        ),
        (
            {"containerStatuses": [finished("proxy", exitCode=64), finished(exitCode=0)]},
            None, 0, "", "",
        ),
    ],
    ids=["memory", "full volume", "never began", "only our container counts"],
)  # fmt: skip
def test_how_a_pod_ended(
    status: dict[str, Any], native: str | None, code: int | None, reason: str, hint: str
) -> None:
    ended = pod("Failed", **status)
    ended["spec"]["containers"][0]["resources"] = {"limits": {"memory": "16Gi"}}
    ending = ending_of(ended)
    assert ending.exit_code == code
    assert native is None or (ending.native, ending.reason) == (native, reason)
    assert hint in str(ending.hint)


@pytest.mark.parametrize(
    ("conditions", "seen", "state", "native"),
    [
        # Its pod may still be running.
        ([], pod("Unknown"), JobState.UNKNOWN, None),
        # A Job that was suspended and resumed keeps the condition.
        ([{"type": "Failed", "status": "False"}], pod("Running"), JobState.RUNNING, None),
        # The kubelet stops native sidecars within seconds; no action is needed.
        (
            [],
            pod("Running", containerStatuses=[finished(exitCode=0, message="published")]),
            JobState.RUNNING,
            "Completing",
        ),
    ],
    ids=["lost node", "false condition", "sidecars are being stopped"],
)
def test_a_job_that_has_not_ended(
    conditions: list[dict[str, str]], seen: dict[str, Any], state: JobState, native: str | None
) -> None:
    status = status_of(job(conditions=conditions), [seen], lambda _uid: ())
    assert status.state is state
    assert not status.state.ended
    assert native in (None, status.native)
    stopping = pod("Running")  # it stores its checkpoint
    stopping["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = status_of(job(), [stopping], lambda _uid: ())
    assert (status.state, status.native) == (JobState.RUNNING, "Terminating")


def test_a_job_with_deleted_pods_shows_the_rest() -> None:
    """They expired before the Job, or somebody deleted them."""
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


NO_QUOTA = (
    "couldn't assign flavors to pod set main: resource nvidia.com/gpu unavailable in ClusterQueue"
)


@pytest.mark.parametrize(
    ("conditions", "words", "hint"),
    [
        (None, "it is pending in Kueue's queue training", None),
        (
            {"QuotaReserved": ("False", "1 more needed")},
            "it is pending in Kueue's queue training; no quota: 1 more needed",
            None,
        ),
        # Such a Job is never admitted. The words are those of Kueue 0.17.
        ({"QuotaReserved": ("False", NO_QUOTA)}, "gpu", "the ClusterQueue needs a quota"),
        (
            {"Evicted": ("True", "Preempted"), "QuotaReserved": ("False", "1 more needed")},
            "queue training; evicted: Preempted; no quota: 1 more needed",
            None,
        ),
        ({"QuotaReserved": ("True", "reserved")}, "waits for admission checks", None),
        ({"QuotaReserved": ("True", ""), "Admitted": ("True", "")}, "Kueue has admitted it", None),
    ],
)
def test_why_kueue_suspends_a_job(
    conditions: dict[str, tuple[str, str]] | None, words: str, hint: str | None
) -> None:
    """By the conditions of its Workload."""
    queued = job()
    queued["spec"]["suspend"] = True
    queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "training"}
    found = [
        {"type": kind, "status": status, "message": message}
        for kind, (status, message) in (conditions or {}).items()
    ]
    workload = None if conditions is None else {"status": {"conditions": found}}
    status = status_of(queued, [], lambda _uid: (), lambda: workload)
    assert (status.state, status.native) == (JobState.PENDING, "Suspended")
    assert words in str(status.reason)
    assert hint is None or hint in str(status.hint)


@pytest.mark.parametrize("message", ["", "{", "[]", '{"hint": "no message"}', "plain text"])
def test_any_termination_message_is_accepted(message: str) -> None:
    state = {"terminated": {"exitCode": 70, "message": message}}
    ending = ending_of(pod("Failed", containerStatuses=[{"name": "mlip-job", "state": state}]))
    assert ending.exit_code == 70
    assert ending.reason.startswith("exit code 70: the training failed")
    assert message in ending.reason


# -- init containers and sidecars, which only webhooks of a cluster add ----------------------------


def waiting_pod(
    init: dict[str, Any], *, sidecar: bool = False, **statuses: dict[str, Any]
) -> dict[str, Any]:
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
        ({"running": {}}, "PodInitializing", "init container vault: running"),
        ({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
         "ImagePullBackOff", "init container vault: ImagePullBackOff: no such image"),
        ({"terminated": {"exitCode": 2}}, "Init:Error", "init container vault: exit code 2"),
        ({"waiting": {"reason": "PodInitializing"}}, "PodInitializing", "PodInitializing"),
        ({}, "PodInitializing", "PodInitializing"),
        ({"terminated": {"exitCode": 0}}, "PodInitializing", "PodInitializing"),
    ],
)  # fmt: skip
def test_a_run_pending_for_an_init_container(init: dict[str, Any], native: str, words: str) -> None:
    """The init container that is not finished is named."""
    status = status_of(job(), [waiting_pod({"state": init})], lambda _uid: ())
    assert (status.state, status.native) == (JobState.PENDING, native)
    assert words in str(status.reason)


def test_a_running_native_sidecar_blocks_nothing() -> None:
    """Once it has started, the run's own container is the one that is pending."""
    running = {"state": {"running": {}}}
    image = {"waiting": {"reason": "ImagePullBackOff", "message": "its image"}}
    for started, words in ((False, "init container vault"), (True, "its image")):
        seen = waiting_pod(running | {"started": started}, sidecar=True, **{"mlip-job": image})
        assert words in str(status_of(job(), [seen], lambda _uid: ()).reason)


def test_an_init_container_that_failed_is_named() -> None:
    failed = waiting_pod({"state": {"terminated": {"exitCode": 3, "message": "no token\n"}}})
    failed["status"]["phase"] = "Failed"
    ending = ending_of(failed)
    assert ending.reason == ("init container vault: exit code 3: no token")
    assert ending.exit_code is None
    assert ending.hint == "kubectl logs a -c vault has what it printed"


def test_a_side_container_that_fails_to_start_is_named() -> None:
    done = {"state": {"terminated": {"exitCode": 0}}}
    proxy = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    seen = waiting_pod(done, **{"mlip-job": {"running": {}}, "proxy": proxy})
    status = status_of(job(), [seen], lambda _uid: ())
    assert status.reason == "container proxy: ImagePullBackOff: no such image"
    assert "submit.kubernetes" not in str(status.hint)


def test_members_whose_pods_are_kept_do_not_run() -> None:
    """An ensemble is running as long as a member's own container is."""
    ended = {"name": "mlip-job", "state": {"terminated": {"exitCode": 70}}}
    proxy = {"name": "proxy", "state": {"running": {}}}
    kept, running = pod("Running", containerStatuses=[ended, proxy]), pod("Running", name="b")
    ensemble = job()
    ensemble["spec"] = {"completionMode": "Indexed", "completions": 2}
    status = status_of(ensemble, [running, kept], lambda _uid: ())
    assert status.state is JobState.RUNNING
    assert status.reason == "of 2 members 1 running, 1 ended in a pod that still runs"
    status = status_of(ensemble, [kept, kept], lambda _uid: ())
    assert status.state is JobState.FAILED
    assert "the container proxy still runs" in str(status.reason)


# -- images that can't run on their node -----------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        'no match for platform in manifest: not found: "mlip-job:1"',
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
        "exec /usr/bin/tini: exec format error",
    ],
)
def test_an_image_of_another_architecture_has_its_own_hint(message: str) -> None:
    """By the messages of containerd, Docker and the kernel, before and after the start."""
    waiting = {"state": {"waiting": {"reason": "ErrImagePull", "message": message}}}
    status = status_of(job(), [of_state("Pending", waiting)], lambda _uid: ())
    assert (status.state, status.native) == (JobState.PENDING, "ErrImagePull")
    assert status.reason == f"ErrImagePull: {message}"
    assert "kubernetes.io/arch" in str(status.hint)
    ended = {"state": {"terminated": {"exitCode": 255, "message": message}}}
    ending = ending_of(of_state("Failed", ended))
    assert ending.reason == f"exit code 255: it failed without saying why: {message}"
    assert "kubernetes.io/arch" in str(ending.hint)


@pytest.mark.parametrize(
    "state",
    [
        {"waiting": {"reason": "RunContainerError", "message": "no such file"}},
        {"terminated": {"exitCode": 128, "reason": "StartError", "message": "no such file"}},
        {"terminated": {"exitCode": 127, "message": "no such file"}},
    ],
)
def test_a_program_that_fails_to_execute_is_an_error_of_the_image(state: dict[str, Any]) -> None:
    ended = "terminated" in state
    seen = of_state("Failed" if ended else "Pending", {"state": state})
    status = ending_of(seen) if ended else status_of(job(), [seen], lambda _: ())
    assert str(status.reason).endswith(": no such file")
    assert status.hint == "check the image: its entry point has to be mlip-job"


def of_state(phase: str, state: dict[str, Any]) -> dict[str, Any]:
    return pod(phase, containerStatuses=[{"name": "mlip-job", **state}])


# -- creator of a Job ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manager", "instance", "annotations", "release"),
    [
        ("Helm", "other", {"meta.helm.sh/release-name": "four"}, "four"),
        ("Helm", "four", {}, "four"),  # by Argo CD, which renders the chart itself
        ("mlip-job", "cu-gen_04", {}, None),
        ("", "", {}, None),
    ],
)
def test_the_release_of_a_job_is_known(
    manager: str, instance: str, annotations: dict[str, str], release: str | None
) -> None:
    made = job()
    labels = {"managed-by": manager, "instance": instance}
    made["metadata"]["labels"] = {f"app.kubernetes.io/{k}": v for k, v in labels.items() if v}
    made["metadata"]["annotations"] = annotations
    assert release_of(made) == release


@pytest.mark.parametrize("ended_first", [True, False])
def test_an_active_job_counts_as_the_newest(ended_first: bool) -> None:
    """Even if another one failed within the same second, the resolution of Kubernetes' times."""

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
