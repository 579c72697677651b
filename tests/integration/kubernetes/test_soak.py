"""Generations under a real kubelet and a real Slurm, disturbed at random: ``make soak``.

`MLIP_JOB_TEST_SOAK_SECONDS` says how long, `MLIP_JOB_TEST_SOAK_SEED` repeats the choices.
At the end all generations are complete and published once, and neither process nor Job is left.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from kubernetes.client import ApiException

from mlip_job.config.load import load_config
from mlip_job.registry import Registry
from mlip_job.schedulers.kubernetes.status import has_ended
from mlip_job.store.open import open_store
from tests.cli import Cli, Ended
from tests.generations import TINY
from tests.integration.kubernetes.families import Family
from tests.integration.slurm.conftest import make_family
from tests.servers.kubelet import NODE
from tests.servers.processes import wait_until
from tests.servers.s3 import S3Server
from tests.servers.s3_faults import FaultProxy, fault_proxy
from tests.servers.slurm import NODE as SLURM_NODE
from tests.servers.slurm import SlurmCluster

pytestmark = pytest.mark.pacemaker

SECONDS = float(os.environ.get("MLIP_JOB_TEST_SOAK_SECONDS", "25"))
SEED = int(os.environ.get("MLIP_JOB_TEST_SOAK_SEED", "0"))
PATIENCE = 900.0
FITS: tuple[dict[str, Any], ...] = (
    {"max_iter": 0, "functions_per_element": 3},
    TINY,
    TINY | {"functions_per_element": 8, "max_iter": 12},
)
UID_OF_PODS = 10001


@dataclass
class Lane:
    """One family under one scheduler, generation after generation.

    `disturbances` are by name, `counts` by event, `seen` has the hash of each published manifest.
    """

    name: str
    path: Path
    run_command: Cli
    endpoint_url: str  # of the store, without faults
    choose: random.Random
    generation: int = 0
    disturbances: dict[str, Callable[[], object]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    seen: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start_next()

    def start_next(self) -> None:
        self.generation += 1
        values = yaml.safe_load(self.path.read_text())
        values["training"] = {**self.choose.choice(FITS), "start_from": "none"}
        self.path.write_text(yaml.safe_dump(values))

    @property
    def registry(self) -> Registry:
        config = load_config(self.path, environment={})
        storage = config.storage.model_copy(update={"endpoint_url": self.endpoint_url})
        return Registry(open_store(storage), config.family)

    def run(self, command: str, *arguments: str) -> Ended:
        ended = self.run_command(command, "-g", str(self.generation), *arguments)
        if ended.code != 0:
            self.log(f"{command} ended with {ended.code}: {ended.err.strip()}")
            self.counts[f"{command} ended with {ended.code}"] += 1
        return ended

    def log(self, text: str) -> None:
        stream = sys.__stdout__
        assert stream is not None
        stream.write(f"{time.strftime('%H:%M:%S')} {self.name} gen {self.generation}: {text}\n")
        stream.flush()

    def advance(self) -> bool:
        """Submit the generation unless its job is active; return whether it was published."""
        ended = self.run("status", "--json")
        status = json.loads(ended.out) if ended.code == 0 else {"state": "unknown"}
        state = status["state"]
        if state == "published":
            self.record()
            self.start_next()
            return True
        if state not in ("running", "pending", "unknown"):
            if state == "failed":
                self.log(f"failed: {status['native_state']}: {status['reason']}")
                self.counts[f"failed: {status['native_state']}"] += 1
            if self.run("submit").code == 0:
                self.counts["submitted"] += 1
        return False

    def record(self) -> None:
        registry = self.registry
        manifest = registry.get(self.generation)
        # Copies for people are made afterwards.
        assert [one for one in registry.verify(manifest) if "/potentials/" not in one] == []
        self.seen[self.generation] = _hash(registry, self.generation)
        self.counts["published"] += 1
        self.log("published")

    def disturb(self) -> None:
        name = self.choose.choice(list(self.disturbances))
        self.log(name)
        self.disturbances[name]()
        self.counts[name] += 1

    def finish(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.advance():
            assert time.monotonic() < deadline, self.run("status").out
            time.sleep(1)

    def require_published_once(self, writes: Counter[str]) -> None:
        registry = self.registry
        numbers = registry.numbers()
        assert numbers == sorted(self.seen) == list(range(1, self.generation))
        for number in numbers:
            verified = self.run_command("verify", "-g", str(number))
            assert verified.code == 0, verified.err
            assert _hash(registry, number) == self.seen[number]
            key = registry.keys.manifest(number)
            created = sum(n for path, n in writes.items() if path.endswith(f"/{key}"))
            self.counts["duplicates"] += created - 1
            manifest = registry.get(number)
            iterations = sum(part.iterations for part in manifest.attempts)
            assert iterations == manifest.headline.iterations
            self.counts["attempts"] += len(manifest.attempts)
            self.counts["resumed"] += len(manifest.attempts) > 1
        assert self.counts["duplicates"] == 0


def _hash(registry: Registry, generation: int) -> str:
    return hashlib.sha256(registry.store.get(registry.keys.manifest(generation))).hexdigest()


@pytest.fixture
def proxy(s3_for_pods: S3Server, family: Family) -> Iterator[FaultProxy]:
    with fault_proxy(s3_for_pods.endpoint_url, host=family.node.address, seed=SEED) as proxy:
        yield proxy


@pytest.fixture
def kubernetes(family: Family, s3_for_pods: S3Server, proxy: FaultProxy) -> Lane:
    values = yaml.safe_load(family.path.read_text())
    values["storage"]["endpoint_url"] = proxy.endpoint_url
    values["run"] |= {"heartbeat_interval": 0.5, "retry_timeout": 60}
    family.path.write_text(yaml.safe_dump(values))
    choose = random.Random(SEED)
    lane = Lane("Kubernetes", family.path, family.run, s3_for_pods.endpoint_url, choose)
    core = family.node.core

    def each_pod(action: Callable[[str], object]) -> None:
        for pod in core.list_namespaced_pod(family.namespace).items:
            if pod.status.phase in ("Pending", "Running"):
                with suppress(ApiException):  # it has just ended
                    action(pod.metadata.name)

    def delete(name: str) -> None:
        core.delete_namespaced_pod(name, family.namespace)

    def force_delete(name: str) -> None:
        core.delete_namespaced_pod(name, family.namespace, grace_period_seconds=0)

    def evict(name: str) -> None:
        eviction = {"metadata": {"name": name, "namespace": family.namespace}}
        core.create_namespaced_pod_eviction(name, family.namespace, eviction)

    def drain() -> None:
        core.patch_node(NODE, {"spec": {"unschedulable": True}})
        each_pod(evict)
        time.sleep(5)
        core.patch_node(NODE, {"spec": {"unschedulable": False}})

    lane.disturbances = {
        "pod deleted": lambda: each_pod(delete),
        "pod deleted by force": lambda: each_pod(force_delete),
        "node drained": drain,
    }
    return lane


@pytest.fixture
def slurm_lane(slurm: SlurmCluster, kubernetes: Lane, cli: Cli, tmp_path: Path) -> Lane:
    directory = tmp_path / "slurm"
    directory.mkdir()
    family = make_family(directory, slurm, cli)
    secrets = directory / "secrets.env"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    secrets.write_text("".join(f"{name}={os.environ[name]}\n" for name in names))
    secrets.chmod(0o600)
    family.values["family"] = "cu-slurm"
    family.values["storage"] = yaml.safe_load(kubernetes.path.read_text())["storage"]
    family.values["run"] |= {"retry_timeout": 60}
    family.configure(env_file=str(secrets))
    choose = random.Random(SEED + 1)
    lane = Lane("Slurm", family.path, family.run, kubernetes.endpoint_url, choose)

    def set_state(state: str) -> None:
        slurm.run("scontrol", "update", f"nodename={SLURM_NODE}", f"state={state}", "reason=soak")

    def requeue() -> None:
        for job in slurm.run("squeue", "-h", "-t", "running", "-o", "%i").split():
            with suppress(RuntimeError):  # it has just ended
                slurm.run("scontrol", "requeue", job)

    def drain() -> None:
        set_state("drain")
        requeue()
        time.sleep(5)
        set_state("resume")

    def lose_node() -> None:
        slurm.kill_node()
        slurm.start_node()

    lane.disturbances = {
        "preempted": family.preempt,
        "requeued": requeue,
        "node drained": drain,
        "node lost": lose_node,
    }
    return lane


@pytest.mark.timeout(SECONDS + 3 * PATIENCE)
def test_soak(
    kubernetes: Lane,
    slurm_lane: Lane,
    slurm: SlurmCluster,
    family: Family,
    proxy: FaultProxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is published in part or twice; no process or Job of a cancelled run is left."""
    choose = random.Random(SEED)
    lanes = (kubernetes, slurm_lane)
    cancelled: set[str] = set()

    def jobs() -> dict[str, Any]:
        api = family.node.batch
        found = api.list_namespaced_job(family.namespace).items
        return {job.metadata.uid: api.api_client.sanitize_for_serialization(job) for job in found}

    def cancel(lane: Lane) -> None:
        active = {uid for uid, job in jobs().items() if not has_ended(job)}
        if lane.run("cancel").code == 0:
            lane.log("cancelled")
            lane.counts["cancelled"] += 1
            cancelled.update(active if lane is kubernetes else ())

    def break_store(lane: Lane) -> None:
        proxy.rate = 0.3
        threading.Timer(choose.uniform(3, 15), proxy.cancel).start()
        lane.log("requests to the store fail")

    common: tuple[Callable[[Lane], object], ...] = (
        cancel,
        lambda lane: lane.run("submit"),  # while it may be active
        break_store,
        *(3 * [Lane.disturb]),
    )
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for lane in lanes:
            lane.advance()
        time.sleep(choose.uniform(1, 15))
        choose.choice(common)(choose.choice(lanes))
    proxy.cancel()
    for lane in lanes:
        lane.finish()
    wait_until(lambda: all(has_ended(job) for job in jobs().values()), "the end of all Jobs")
    wait_until(lambda: not slurm.run("squeue", "-h").strip(), "the end of all Slurm jobs")
    for lane in lanes:
        lane.require_published_once(proxy.writes)
    left = jobs()
    # A Job that completed while it was cancelled stays.
    assert [job for uid, job in left.items() if uid in cancelled and not _succeeded(job)] == []
    maps = family.node.core.list_namespaced_config_map(family.namespace).items
    owners = {owner.uid for one in maps for owner in one.metadata.owner_references or ()}
    assert owners <= set(left)
    assert list(slurm.processes_of_jobs()) == []
    wait_until(lambda: not _processes_of_pods(), "the end of all containers")
    with capsys.disabled():
        sys.stdout.write(_summary(lanes, proxy))


def _succeeded(job: dict[str, Any]) -> bool:
    return bool(job["status"].get("succeeded"))


def _processes_of_pods() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.uids().real == UID_OF_PODS:
                found.append(process)
    return found


def _summary(lanes: tuple[Lane, ...], proxy: FaultProxy) -> str:
    names = list(dict.fromkeys(name for lane in lanes for name in sorted(lane.counts)))
    rows = [f"\n{SECONDS:.0f} s, seed {SEED}", f"{'':40}" + "".join(f"{x.name:>12}" for x in lanes)]
    rows += [f"{name:40}" + "".join(f"{x.counts[name]:12}" for x in lanes) for name in names]
    rows.append(f"requests to the store: {proxy.requests.total()}, failed by the proxy: ")
    return "\n".join(rows) + f"{proxy.injected.total()} {dict(proxy.injected)}\n"
