"""The role in docs/kubernetes.md is sufficient, and every verb of it is needed.

All other tests of this folder run with that role; these remove one verb at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlip_job.errors import ConfigError
from mlip_job.schedulers.base import JobRequest, JobState
from mlip_job.schedulers.kubernetes.scheduler import KubernetesScheduler
from tests.integration.kubernetes.conftest import documented_rules
from tests.servers.kubernetes import SUBMITTER, ControlPlane
from tests.servers.node import Node, wait_for

VERBS = [
    (resource, verb)
    for rule in documented_rules()
    for resource in rule["resources"]
    for verb in rule["verbs"]
]


def without(resource: str, verb: str) -> list[dict[str, Any]]:
    rules = [
        {
            **rule,
            "verbs": [v for v in rule["verbs"] if (rule["resources"], v) != ([resource], verb)],
        }
        for rule in documented_rules()
    ]
    return [rule for rule in rules if rule["verbs"]]


@pytest.fixture
def life(
    control_plane: ControlPlane, request_for: Callable[..., JobRequest], node: Node
) -> Callable[[str], None]:
    """Return a function that performs all operations of mlip-job in a namespace."""

    def live(namespace: str) -> None:
        request = request_for(namespace=namespace)
        scheduler = KubernetesScheduler(request.config.submit.kubernetes, poll_seconds=0.1)
        plan = scheduler.plan(request)
        handle = scheduler.submit(plan)
        assert scheduler.find("cu-ni", 4) == handle
        scheduler.status(handle)
        pod = node.pod(namespace, handle.name)
        node.log(pod).say("begun")
        node.end(pod, 70)
        wait_for(lambda: scheduler.status(handle).state is JobState.FAILED, "the end")
        assert list(scheduler.logs(handle, follow=False)) == ["begun"]
        handle = scheduler.submit(plan)
        pod = node.pod(namespace, handle.name)
        node.end(pod, 0)
        wait_for(lambda: scheduler.status(handle).state is JobState.SUCCEEDED, "the end")

    return live


@pytest.mark.parametrize(("resource", "verb"), VERBS)
def test_a_missing_verb_is_named(
    control_plane: ControlPlane, life: Callable[[str], None], node: Node, resource: str, verb: str
) -> None:
    """With its resource and namespace; events and workloads only explain why a Job is pending."""
    namespace = control_plane.new_namespace()
    control_plane.allow(namespace, without(resource, verb), SUBMITTER)
    if resource in ("events", "workloads"):
        life(namespace)
        return
    with pytest.raises(ConfigError) as refused:
        life(namespace)
    group = ".batch" if resource == "jobs" else ""
    what = f"{verb} {resource}{group}"
    assert f"not allowed to {what} in namespace {namespace}" in refused.value.message
    assert f"verb {verb} on {resource}{group} in namespace {namespace}" in str(refused.value.hint)
    if (resource, verb) == ("configmaps", "create"):
        jobs = node.batch.list_namespaced_job(namespace).items
        assert all(job.metadata.deletion_timestamp for job in jobs)


def test_the_whole_role_is_sufficient(namespace: str, life: Callable[[str], None]) -> None:
    life(namespace)
