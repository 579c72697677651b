"""Output of status, logs and cancel if the store or the scheduler can't be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from mlip_job.cli.generation_status import State, StatusReader
from mlip_job.cli.submit import wait_until_published
from mlip_job.config.load import load_config
from mlip_job.errors import UnavailableError
from mlip_job.registry import Registry
from mlip_job.schedulers import open_scheduler
from mlip_job.schedulers.base import JobHandle, JobName, JobRequest, JobState, JobStatus, Scheduler
from mlip_job.schedulers.records import SubmitFiles, SubmittedJob
from mlip_job.store.open import open_store
from tests.cli import Ended
from tests.manifests import make_manifest

NO_CREDENTIALS = "s3://bucket/potentials: no credentials"


class Site:
    """A family whose jobs are records in its work directory.

    Parameters
    ----------
    directory
        Of the configuration.
    cli
        Runs the command line.
    """

    def __init__(self, directory: Path, cli: Callable[..., Ended]) -> None:
        self.directory = directory
        self._cli = cli
        self.configure()

    def configure(self, *, store: str = "s3://bucket/potentials", scheduler: str = "local") -> None:
        values = {
            "family": "cu",
            "database": {"url": "structures.db"},
            "storage": {"url": store},
            "submit": {"scheduler": scheduler, "slurm": {"command": "/bin/true"}},
        }
        self.path.write_text(yaml.safe_dump(values))

    @property
    def path(self) -> Path:
        return self.directory / "mlip-job.yaml"

    def run(self, *arguments: object) -> Ended:
        return self._cli("-c", self.path, *arguments)

    def record(self, generation: int = 1, *, scheduler: str = "local", job: str = "4-2") -> str:
        """Record a submission; return the job's name."""
        config = load_config(self.path, environment={})
        name = str(JobName.of(JobRequest(config, generation, self.directory)))
        files = SubmitFiles.of(config, generation)
        files.directory.mkdir(parents=True)
        files.record(scheduler, SubmittedJob(id=job, name=name, submitted=datetime.now(UTC)))
        return name

    def end(self, exit_code: int, log: str = "a line\n", generation: int = 1) -> None:
        files = SubmitFiles.of(load_config(self.path, environment={}), generation)
        files.of_id("ended", "local", "4-2").write_text(
            json.dumps({"exit_code": exit_code, "resubmit": False})
        )
        files.of_id("log", "local", "4-2").write_text(log)


@pytest.fixture
def site(tmp_path: Path, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return Site(tmp_path, cli)


def test_a_failure_is_shown_without_the_store(site: Site) -> None:
    """Its cause, its log, and one line about the unreadable store."""
    site.record()
    site.end(65, "error: the rows are bad\n  hint: fix them\n")
    one = site.run("status", "-g", 1)
    assert one.code == 0
    assert one.out.splitlines()[:2] == ["gen_01 failed (process 4-2)", "  the rows are bad"]
    assert one.err.startswith("note: the store can't be read: ")
    assert one.err.endswith(f"{NO_CREDENTIALS}\n")
    assert one.err.count("\n") == 1
    logs = site.run("logs", "-g", 1)
    assert (logs.code, logs.out.splitlines()[0]) == (0, "error: the rows are bad")


def test_all_generations_of_the_scheduler_are_shown_without_the_store(site: Site) -> None:
    for generation in (3, 5):
        site.record(generation)
        site.end(70, generation=generation)
    document = json.loads(site.run("status", "--json").out)
    views = document["generations"]
    assert [(view["generation"], view["state"]) for view in views] == [(3, "failed"), (5, "failed")]
    assert document["unread"]["store"].endswith(NO_CREDENTIALS)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("s3://bucket/potentials", "whether it is published is not known"),
        ("store", "but the store has no manifest of it"),
    ],
)
def test_a_job_that_ended_with_0_and_no_manifest(site: Site, store: str, words: str) -> None:
    """It is neither published nor running, and the output says so."""
    site.configure(store=store)
    site.record()
    site.end(0)
    shown = site.run("status", "-g", 1)
    assert (shown.code, shown.out.splitlines()[0]) == (0, "gen_01 ended (process 4-2)")
    assert f"its job has ended with exit code 0{'; ' if 's3' in store else ', '}{words}" in (
        shown.out
    )
    assert ("check that storage.url is the job's" in shown.out) is (store == "store")


def test_unreadable_sources_are_not_reported_absent(site: Site) -> None:
    assert site.run("status", "-g", 1).out == "gen_01 unknown\n"
    site.configure(store="store", scheduler="kubernetes")
    shown = site.run("status", "-g", 1)
    assert (shown.code, shown.out) == (0, "gen_01 unknown\n")
    assert "note: the scheduler can't be read: no kubeconfig" in shown.err
    assert site.run("status").out == (
        "nothing is known of any generation of cu, with the scheduler unread\n"
    )
    site.configure(store="store")
    assert site.run("status", "-g", 1).out == "gen_01 absent\n"


def test_without_any_source_nothing_is_shown(site: Site) -> None:
    site.configure(scheduler="kubernetes")
    for arguments in (("status",), ("status", "-g", 1)):
        ended = site.run(*arguments)
        assert (ended.code, ended.out) == (69, "")
        assert NO_CREDENTIALS in ended.err
        assert "no kubeconfig" in ended.err
    ended = site.run("logs", "-g", 1)
    assert ended.code == 69
    assert "note: no kubeconfig" in ended.err


def test_waiting_ends_if_the_store_is_unreadable(site: Site) -> None:
    """After a job that ended with 0; the user may read the store with its credentials."""
    site.record()
    site.end(0)
    config = load_config(site.path, environment={}, assignments=["submit.poll_interval=0.01"])
    registry = Registry(open_store(config.storage), config.family)
    logged: list[str] = []
    with pytest.raises(UnavailableError, match="whether it is published is not known"):
        wait_until_published(
            1,
            lambda: pytest.fail("nothing is to be submitted"),
            lambda: StatusReader(config, registry, open_scheduler(config)),
            config.submit,
            logged.append,
        )
    assert len(logged) == 1


class _Kept:
    """A scheduler with a job whose run has ended, in a pod that another container keeps."""

    job = JobHandle("kubernetes", "alloys/mlip-cu", "mlip-cu")

    def active(self, family: str, generation: int) -> list[JobHandle]:
        return [self.job] if (family, generation) == ("cu", 1) else []

    def status(self, handle: JobHandle) -> JobStatus:
        assert handle == self.job
        return JobStatus(JobState.SUCCEEDED, "NotReady", "proxy keeps the pod", "cancel it", 0)


def test_a_job_that_still_runs_after_publishing_is_shown(site: Site) -> None:
    site.configure(store="store")
    config = load_config(site.path, environment={})
    registry = Registry(open_store(config.storage), config.family)
    for number in (1, 2):
        manifest = make_manifest(number, family="cu")
        registry.store.put(registry.keys.manifest(number), manifest.to_json())
    reader = StatusReader(config, registry, cast("Scheduler", _Kept()))
    status = reader.read(1)
    assert (status.state, status.job) == (State.PUBLISHED, _Kept.job)
    assert status.details().endswith("UTC; proxy keeps the pod")
    assert status.remedy() == "cancel it"
    other = reader.read(2)
    assert (other.state, other.job, other.remedy()) == (State.PUBLISHED, None, None)


# -- a job on Slurm --------------------------------------------------------------------------------


@pytest.fixture
def slurm(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    site.configure(scheduler="slurm")
    name = site.record(scheduler="slurm", job="7")
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")

    def put(program: str, lines: str) -> None:
        (bin_dir / program).write_text(f"#!/bin/sh\n{lines}\n")
        (bin_dir / program).chmod(0o755)

    put("sacct", "exit 1")
    put("scontrol", "echo 'Invalid job id specified' >&2; exit 1")

    def be(state: str, reason: str = "None") -> None:
        put("squeue", f"echo '7|{state}|{reason}|{name}'")
        put("scancel", f'echo "$@" >>{tmp_path / "cancelled"}')

    return be


def test_a_job_that_waits_has_no_log(site: Site, slurm: Callable[..., None]) -> None:
    """The reason why it is pending is shown instead, also without the store."""
    slurm("PENDING", "Priority")
    ended = site.run("logs", "-g", 1)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("note: slurm job 7 is pending and has printed nothing: ")
    document: dict[str, Any] = json.loads(site.run("logs", "-g", 1, "--json").out)
    assert (document["lines"], document["job_state"]) == ([], "pending")


def test_cancelling_need_not_wait(site: Site, slurm: Callable[..., None], tmp_path: Path) -> None:
    """Without waiting, the job may still be running; its last state is logged."""
    slurm("RUNNING")
    ended = site.run("cancel", "-g", 1, "--no-wait")
    assert ended.code == 0, ended.err
    assert ended.out == "slurm job 7 of gen_01 is being cancelled, and still running\n"
    assert (tmp_path / "cancelled").read_text().strip() == "7"
    slurm("CANCELLED")
    ended = site.run("cancel", "-g", 1)
    assert ended.out == "slurm job 7 of gen_01 had ended: cancelled\n"
