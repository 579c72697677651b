"""Contract of all schedulers: jobs of the real ``mlip-job`` on each of them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import mlip_job
from mlip_job.config import JobConfig
from mlip_job.errors import ConfigError, ConflictError
from mlip_job.registry import Registry
from mlip_job.schedulers import open_scheduler
from mlip_job.schedulers.base import JobHandle, JobRequest, JobState, JobStatus, Scheduler
from mlip_job.store.open import open_store
from tests.generations import TINY
from tests.servers.kubernetes import ADMIN, ControlPlane
from tests.servers.node import Node
from tests.servers.pods import PodRunner
from tests.support import rattled, write_database

_FOR_EVER = {"functions_per_element": 8, "max_iter": 100_000}
_NO_ROWS = {"select": "status=nosuch"}
_TIMEOUT = 300
_ENDED = tuple(state for state in JobState if state.ended)


@dataclass
class Site:
    """A scheduler and a family whose jobs it runs."""

    scheduler: Scheduler
    config: JobConfig
    directory: Path

    def request(
        self, generation: int = 1, *, training: dict[str, Any] | None = None, **sections: Any
    ) -> JobRequest:
        values = self.config.model_dump(mode="json")
        values["training"] |= training or {}
        for section, changes in sections.items():
            values[section] |= changes
        return JobRequest(JobConfig.model_validate(values), generation, self.directory)

    def submit(self, request: JobRequest) -> JobHandle:
        return self.scheduler.submit(self.scheduler.plan(request))

    def find(self) -> JobHandle:
        found = self.scheduler.find("cu", 1)
        assert found is not None
        return found

    def wait(self, handle: JobHandle, *states: JobState) -> JobStatus:
        end = time.monotonic() + _TIMEOUT
        while (status := self.scheduler.status(handle)).state not in states:
            assert time.monotonic() < end, (status, self.log(handle))
            time.sleep(0.3)
        return status

    def wait_for_log(self, handle: JobHandle, text: str) -> None:
        end = time.monotonic() + _TIMEOUT
        while text not in self.log(handle):
            assert time.monotonic() < end, self.log(handle)
            time.sleep(0.3)

    @property
    def gone(self) -> tuple[JobState, ...]:
        """States of a cancelled job; Kubernetes deletes it at once."""
        return _ENDED

    @property
    def registry(self) -> Registry:
        """Registry of the jobs."""
        return Registry(open_store(self.config.storage), "cu")

    def wait_for_checkpoint(self) -> int:
        end = time.monotonic() + _TIMEOUT
        while not (found := self.registry.checkpoints(1).found()):
            assert time.monotonic() < end
            time.sleep(0.3)
        return found[0].iterations

    def log(self, handle: JobHandle) -> str:
        return "\n".join(self.scheduler.logs(handle, follow=False))


@pytest.fixture
def namespace(
    control_plane: ControlPlane,
    node: Node,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    name = control_plane.new_namespace()
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig(ADMIN, namespace=name)))
    with PodRunner(node, name, tmp_path_factory.mktemp("pods")):
        yield name


_SERVERS = {
    "slurm": "slurm",
    "slurm with accounting": "slurm_with_accounting",
    "kubernetes": "namespace",
}


@pytest.fixture(params=[*_SERVERS, "local"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if request.param in _SERVERS:
        request.getfixturevalue(_SERVERS[request.param])
    write_database(tmp_path / "structures.db", rattled(8))
    package = shlex.quote(str(Path(mlip_job.__file__).parent.parent))
    config = JobConfig.model_validate(
        {
            "family": "cu",
            "database": {"url": str(tmp_path / "structures.db")},
            "training": dict(TINY),
            "evaluation": {"active_set": False, "gate": {"require_physics": False}},
            "storage": {"url": str(tmp_path / "store")},
            "run": {"checkpoint_interval": 1, "heartbeat_interval": 0.5, "stop_timeout": 5},
            "work_dir": str(tmp_path / "work"),
            "submit": {
                "scheduler": request.param.partition(" ")[0],
                "poll_interval": 0.5,
                "slurm": {
                    "command": str(Path(sys.executable).parent / "mlip-job"),
                    "setup": [f"export PYTHONPATH={package}"],
                    "account": "science" if "accounting" in request.param else None,
                    "cpus": 1,
                },
                "kubernetes": {
                    "image": "mlip-job:tests",
                    "gpus": 0,
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                    "volume_mounts": [{"name": "data", "mountPath": str(tmp_path)}],
                },
            },
        }
    )
    found = Site(open_scheduler(config), config, tmp_path)
    yield found
    for generation in (1, 2):
        if (handle := found.scheduler.find("cu", generation)) is not None:
            found.scheduler.cancel(handle)
            found.wait(handle, *found.gone)


def test_a_plan_is_a_function_of_its_request(site: Site) -> None:
    """Planning writes nothing, and a different request gets a different name."""
    request = site.request()
    before = sorted(site.directory.rglob("*"))
    plan = site.scheduler.plan(request)
    assert plan == site.scheduler.plan(request)
    assert plan.request == request
    assert "--generation" in plan.text
    others = (site.request(2), replace(request, run_options=("--fresh",)))
    assert len({plan.name, *(site.scheduler.plan(other).name for other in others)}) == 3
    assert sorted(site.directory.rglob("*")) == before


def test_a_job_that_was_never_submitted(site: Site) -> None:
    """It is not found, and its state is unknown; that is no failure."""
    assert site.scheduler.find("cu", 1) is None
    name = site.scheduler.plan(site.request()).name
    unknown = {"local": "999999999-1", "kubernetes": f"default/{name}"}.get(
        site.scheduler.name, "999999999"
    )
    status = site.scheduler.status(JobHandle(site.scheduler.name, unknown, name))
    expected = {"kubernetes": JobState.GONE}.get(site.scheduler.name, JobState.UNKNOWN)
    assert status.state is expected
    assert site.scheduler.active("cu", 1) == []
    assert site.scheduler.generations("cu") == set()


@pytest.mark.pacemaker
def test_a_job_from_its_submission_to_its_cancellation(site: Site) -> None:
    """Submitted once, found, followed, stopped with time for a checkpoint, and resumed."""
    request = site.request(training=_FOR_EVER)
    handle = site.submit(request)
    assert handle.scheduler == site.scheduler.name
    assert site.submit(request) == handle
    with pytest.raises(ConflictError, match="gen_01"):
        site.submit(site.request())
    assert site.scheduler.find("cu", 1) == handle
    assert site.scheduler.find("cu", 2) is None
    assert list(site.scheduler.active("cu", 1)) == [handle]
    assert site.scheduler.active("cu", 2) == []
    assert site.scheduler.generations("cu") == {1}
    assert site.scheduler.generations("cu-2") == set()
    site.wait(handle, JobState.RUNNING)
    site.wait_for_log(handle, "iteration 0/100000")
    site.wait_for_checkpoint()

    site.scheduler.cancel(handle)
    status = site.wait(handle, *site.gone)
    assert site.scheduler.active("cu", 1) == []
    site.scheduler.cancel(handle)
    if site.scheduler.name == "kubernetes":
        # A cancelled Job is deleted, with its log.
        assert status.state is JobState.GONE
        assert site.scheduler.find("cu", 1) is None
    else:
        assert status.state is JobState.CANCELLED
        assert site.scheduler.find("cu", 1) == handle
        lines = list(site.scheduler.logs(handle, follow=True))
        assert any("the checkpoint of iteration" in line for line in lines)

    saved = site.wait_for_checkpoint()
    again = site.submit(site.request(training=_FOR_EVER | {"max_iter": saved + 1}))
    assert again.id != handle.id
    assert site.scheduler.find("cu", 1) == again
    status = site.wait(again, *_ENDED)
    assert (status.state, status.exit_code) == (JobState.SUCCEEDED, 0)
    assert site.registry.get(1).headline.iterations > saved


def test_a_job_that_fails(site: Site) -> None:
    """Exit code and message of the run; a dependent job is not started."""
    handle = site.submit(site.request(database=_NO_ROWS))
    follower = replace(site.request(2), after=handle.id)
    if site.scheduler.name == "kubernetes":
        with pytest.raises(ConfigError, match="no job that waits for another"):
            site.scheduler.plan(follower)
        following = None
    else:
        following = site.submit(follower)
    status = site.wait(handle, *_ENDED)
    assert (status.state, status.exit_code, status.resubmit) == (JobState.FAILED, 65, False)
    assert "status=nosuch" in (status.reason or "")
    assert status.hint is not None
    assert "error: " in site.log(handle)
    if following is not None:
        status = site.wait(following, *_ENDED)
        assert status.state is not JobState.SUCCEEDED
    assert not list((site.directory / "work" / "gen_02").glob("*/"))
