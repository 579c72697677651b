"""The image on a real kubelet: fits, stops, limits, side containers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from mlip_job.config import StorageConfig
from mlip_job.registry import Registry
from mlip_job.schedulers.kubernetes.manifest import from_yaml
from mlip_job.schedulers.kubernetes.status import has_ended
from mlip_job.store.open import open_store
from tests.faults.jobs import iterations_safe
from tests.integration.kubernetes.families import Family
from tests.servers.containers import CPU_IMAGE
from tests.servers.helm import CHART, Helm
from tests.servers.kubernetes import ADMIN

pytestmark = pytest.mark.pacemaker

UID = 10001
ENDLESS = {"functions_per_element": 8, "max_iter": 100_000}


def test_a_deleted_pod_is_replaced_and_a_deadline_stops_the_job(family: Family) -> None:
    """Both pods store a checkpoint and end with 75; status names the setting of the deadline."""
    family.configure(training=ENDLESS, active_deadline_seconds=3600)
    job = family.submit()
    family.wait_for_checkpoint()
    (pod,) = family.node.pods(family.namespace, job)
    ended = family.node.delete(pod)
    assert ended.exit_code == 75, ended
    assert "checkpoint" in json.loads(ended.message)["message"]
    stored = iterations_safe(family.config)
    assert stored > 0

    family.wait_for("another checkpoint", lambda: iterations_safe(family.config) > stored)
    assert "resuming from iteration" in family.run("logs", "-g", "1").out
    pod = family.node.pods(family.namespace, job)[-1]
    deadline = {"spec": {"activeDeadlineSeconds": 1}}
    family.node.batch.patch_namespaced_job(job, family.namespace, deadline)
    ended = family.node.end_of(pod)
    assert ended.exit_code == 75, ended
    assert "checkpoint" in json.loads(ended.message)["message"]
    status = family.wait_for_end(job)
    assert (status["state"], status["native_state"]) == ("failed", "DeadlineExceeded"), status
    assert "submit.kubernetes.active_deadline_seconds" in status["remedy"]
    assert family.registry.find(1) is None


def test_a_release_trains_with_a_native_sidecar(family: Family, helm: Helm, tmp_path: Path) -> None:
    """A linear fit to a store on a volume; the injected proxy ends after the run."""
    plane, namespace = family.node.plane, family.namespace
    rights = "Object.spec.initContainers.securityContext"
    plane.add_init_container(
        namespace,
        f"""Object.spec.initContainers{{
            name: "proxy", image: "{CPU_IMAGE}", restartPolicy: "Always",
            command: ["tini", "--", "sleep", "infinity"],
            securityContext: {rights}{{
                allowPrivilegeEscalation: false, runAsNonRoot: true,
                capabilities: {rights}.capabilities{{drop: ["ALL"]}},
                seccompProfile: {rights}.seccompProfile{{type: "RuntimeDefault"}}
            }}
        }}""",
    )
    store = tmp_path / "store"
    store.mkdir()
    os.chown(store, UID, UID)
    values = yaml.safe_load(family.path.read_text())
    settings = values.pop("submit")["kubernetes"]
    values["training"] = {"max_iter": 0, "functions_per_element": 3}
    values["storage"] = {"url": "/store"}
    claims = [
        {"claim": "structures", "mountPath": "/data", "readOnly": True},
        {"claim": family.node.claim(namespace, "store", store), "mountPath": "/store"},
    ]
    repository, _, tag = CPU_IMAGE.rpartition(":")
    kubeconfig = str(plane.kubeconfig(ADMIN, namespace=namespace))
    done = helm.run(
        *("install", "gen-01", CHART),
        values={
            "generation": 1,
            "config": values,
            "image": {"repository": repository, "tag": tag},
            "cpu": "1",
            "memory": "2Gi",
            "workSize": "1Gi",
            "claims": claims,
            "nodeSelector": settings["node_selector"],
            "tolerations": settings["tolerations"],
        },
        KUBECONFIG=kubeconfig,
    )
    assert done.returncode == 0, done.stderr
    (job,) = (one.metadata.name for one in family.node.batch.list_namespaced_job(namespace).items)
    family.wait_for("a finished Job", lambda: has_ended(family.job(job)))
    (pod,) = family.node.pods(namespace, job)
    assert pod.status.phase == "Succeeded", pod.status
    (proxy,) = pod.status.init_container_statuses
    assert proxy.state.terminated is not None
    registry = Registry(open_store(StorageConfig(url=str(store))), "cu")
    assert registry.verify(registry.get(1)) == []


def test_a_container_has_few_rights(family: Family) -> None:
    """Neither root nor capabilities; all but its volumes is read-only; one core is one thread."""
    text = family.run("submit", "-g", "1", "--dry-run").out
    manifests = from_yaml(text)
    script = (
        "id -u; id -g; grep CapBnd /proc/self/status | cut -f2; echo $MLIP_JOB_CORES; "
        "for path in / /opt/mlip-job /etc/mlip-job /work /tmp /dev/shm; do "
        "touch $path/x 2>/dev/null && echo $path; done; echo bye >/dev/termination-log"
    )
    container = manifests["Job"]["spec"]["template"]["spec"]["containers"][0]
    container |= {"command": ["sh", "-c", script], "args": []}
    name = manifests["Job"]["metadata"]["name"]
    family.node.core.create_namespaced_config_map(family.namespace, manifests["ConfigMap"])
    family.node.batch.create_namespaced_job(family.namespace, manifests["Job"])
    family.wait_for("a finished Job", lambda: has_ended(family.job(name)))
    (pod,) = family.node.pods(family.namespace, name)
    log = family.node.core.read_namespaced_pod_log(pod.metadata.name, family.namespace)
    user, writable = f"{UID} {UID} 0000000000000000 1", "/work /tmp /dev/shm"
    assert log.split() == f"{user} {writable}".split()
    (status,) = pod.status.container_statuses
    assert status.state.terminated.message == "bye\n"


def test_the_memory_limit_is_explained(family: Family) -> None:
    """The kernel kills a run that exceeds it; status names the limit and the setting."""
    family.configure(memory="100Mi", backoff_limit=0)
    status = family.wait_for_end(family.submit())
    assert (status["state"], status["native_state"]) == ("failed", "OOMKilled"), status
    assert "used more memory than its limit of 100Mi" in status["reason"]
    assert "submit.kubernetes.memory" in status["remedy"]


def test_a_missing_gpu_fails_the_job(family: Family) -> None:
    """The container lacks the device file of the requested GPU: 71, without a retry."""
    family.configure(require_gpu=True)
    job = family.submit()
    status = family.wait_for_end(job)
    assert (status["state"], status["exit_code"]) == ("failed", 71), status
    assert "GPU" in status["reason"]
    assert len(family.node.pods(family.namespace, job)) == 1
