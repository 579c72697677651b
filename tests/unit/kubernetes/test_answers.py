"""What a cluster may say that the real one of the integration tests does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlip_job.errors import ConfigError, ConflictError, UnavailableError
from mlip_job.schedulers.base import JobState
from mlip_job.schedulers.kubernetes.api_errors import api_error
from mlip_job.schedulers.kubernetes.ending import ending_of
from mlip_job.schedulers.kubernetes.layout import SPEC_HASH
from mlip_job.schedulers.kubernetes.status import status_of
from mlip_job.schedulers.kubernetes.submission import newest_submission


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


@pytest.mark.parametrize("ended_first", [True, False])
def test_what_has_not_ended_is_the_newest(ended_first: bool) -> None:
    """Where another one failed within the same second; Kubernetes keeps no more of the time."""

    def of(submission: str, **status: Any) -> dict[str, Any]:
        labelled = job(**status)
        labelled["metadata"] |= {"name": submission, "annotations": {SPEC_HASH: submission}}
        return labelled

    failed = of("a", conditions=[{"type": "Failed", "status": "True"}])
    jobs = [failed, of("b")] if ended_first else [of("b"), failed]
    assert [one["metadata"]["name"] for one in newest_submission(jobs)] == ["b"]
    assert newest_submission([failed]) == [failed]
    assert newest_submission([]) == []
