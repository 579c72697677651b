"""Submissions to a real Slurm cluster: rejections, and quoting of values."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import Cli
from tests.integration.slurm.conftest import Family, make_family
from tests.servers.slurm import SlurmCluster

StandIn = Callable[[str], None]


def test_the_dry_run_prints_the_script_that_is_submitted(family: Family, stand_in: StandIn) -> None:
    stand_in("exit 0")
    before = sorted(family.directory.iterdir())
    shown = family.run("submit", "-g", 1, "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    assert sorted(family.directory.iterdir()) == before
    job = family.submit()
    assert (family.work() / "submit.sbatch").read_text() == shown.out
    # The controller stores the same text.
    assert family.cluster.run("scontrol", "write", "batch_script", job, "-").strip() in shown.out


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        (
            {"partition": "nosuch"},
            "Invalid partition name specified",
            "check submit.slurm.partition",
        ),
        ({"gres": "gpu:99"}, "node configuration is not available", "sinfo -o"),
        ({"gres": "fpga:1"}, "generic resource", "submit.slurm.gres"),
        ({"extra": ["--constraint=nosuch"]}, "Invalid feature specification", "submit.slurm.extra"),
        ({"mem": "9999G"}, "Memory specification", "submit.slurm.mem"),
        ({"extra": ["--reservation=nosuch"]}, "reservation is invalid", "submit.slurm.extra"),
        ({"extra": ["--exclude=node1"]}, "node configuration", "sinfo -o"),
        ({"extra": ["--nosuch=1"]}, "unrecognized option", "submit.slurm.extra"),
    ],
)
def test_rejections_by_slurm(
    family: Family, asked: dict[str, Any], message: str, hint: str
) -> None:
    family.configure(**asked)
    ended = family.run("submit", "-g", 1)
    assert ended.code == 64
    assert message in ended.err
    assert hint in ended.err
    assert "Traceback" not in ended.err
    assert family.status()["state"] in ("absent", "failed")


def test_errors_found_before_slurm_is_called(family: Family, tmp_path: Path) -> None:
    """A missing image, a missing database, secrets that others can read."""

    def refusal(**slurm: Any) -> str:
        family.configure(**slurm)
        ended = family.run("submit", "-g", 1)
        assert ended.code == 64
        assert not family.work().exists()
        return ended.err

    assert f"submit.slurm.image: there is no {tmp_path / 'x.sif'}" in refusal(image="x.sif")
    secrets = tmp_path / "secrets.env"
    assert "submit.slurm.env_file:" in refusal(image=None, env_file="secrets.env")
    secrets.write_text("AWS_SECRET_ACCESS_KEY='hunter2'\n")
    assert f"chmod 600 {secrets}" in refusal()
    secrets.chmod(0o600)
    assert "line 1: the value is quoted" in refusal()
    secrets.write_text("export AWS_SECRET_ACCESS_KEY=hunter2\n")
    message = refusal()
    assert "line 1 is no assignment" in message
    assert "hunter2" not in message
    secrets.write_bytes(b"AWS_SECRET_ACCESS_KEY=hunter2\r\n")
    message = refusal()
    assert "line 1 has a Windows line ending" in message
    assert "hunter2" not in message
    secrets.write_text("AWS_SECRET_ACCESS_KEY=hunter2\n")
    family.values["database"]["url"] = "nosuch.db"
    assert "database.url: there is no" in refusal(env_file=None)


def test_a_time_that_the_partition_does_not_allow(family: Family, stand_in: StandIn) -> None:
    """Slurm accepts such a job, and never starts it: status says so."""
    stand_in("exit 0")
    family.configure(partition="short", time="1:00:00")
    family.submit()
    found = family.wait_for("pending")
    while found["reason"] is None or "PartitionTimeLimit" not in found["reason"]:
        found = family.status()
    assert "change submit.slurm.time and submit it again" in found["remedy"]
    assert "is cancelled" in family.run("cancel", "-g", 1).out


def test_the_same_submission_again(family: Family, stand_in: StandIn) -> None:
    """It returns the existing job; a different one is rejected until that has ended."""
    stand_in("echo started; sleep 60")
    job = family.submit()
    assert family.submit() == job
    (family.work() / "submission.json").unlink()  # as if submitted from another machine
    assert family.submit() == job
    other = family.run("submit", "-g", 1, "--set", "training.cutoff=6.0")
    assert other.code == 73
    assert f"job {job} for gen_01 is pending or running" in other.err
    assert family.run("cancel", "-g", 1).code == 0
    assert family.submit("-g", 1, "--set", "training.cutoff=6.0") != job


def test_no_value_becomes_code_on_its_way_through_slurm(
    tmp_path: Path, slurm: SlurmCluster, cli: Cli
) -> None:
    """The real sbatch reads the directives, a real shell on the node the rest."""
    name = "a b'c\"d $(touch owned) `touch owned`; # %j & ü"
    directory = tmp_path / name
    directory.mkdir()
    family = make_family(directory, slurm, cli)
    program = directory / "run it"
    program.write_text('#!/bin/bash\nprintf "%s\\n" "$@"; pwd\n')
    program.chmod(0o755)
    family.configure(command="./run it", setup=[], extra=[f"--comment={name}"])
    job = family.submit()
    slurm.wait_for(job, "COMPLETED")
    assert family.log().splitlines() == [
        *("run", "--generation", "1", "--config", str(family.work() / "mlip-job.yaml")),
        str(family.work()),
    ]
    assert f"Comment={name} " in slurm.run("scontrol", "show", "job", "-o", job)
    assert not list(tmp_path.rglob("owned"))


def test_a_container_gets_gpu_job_and_secrets_by_name(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under srun, with one of the GPUs; the substitute prints the arguments of Apptainer."""
    record = tmp_path / "record"
    container = tmp_path / "apptainer"
    container.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" >{record}; env | grep ^APPTAINERENV_ | sort >>{record}\n'
    )
    container.chmod(0o755)
    (tmp_path / "mlip.sif").write_bytes(b"an image")
    value = "it's $ecret"
    (tmp_path / "secrets.env").write_text(f"MLIP_JOB_DATABASE_PASSWORD={value}\n")
    (tmp_path / "secrets.env").chmod(0o600)
    monkeypatch.setenv("MLIP_JOB_DATABASE_PASSWORD", "another")
    family.configure(
        container=str(container), image="mlip.sif", env_file="secrets.env", gres="gpu:1", setup=[]
    )
    job = family.submit()
    family.cluster.wait_for(job, "COMPLETED")
    lines = record.read_text().splitlines()
    assert lines[:3] == ["run", "--nv", "--cleanenv"]
    image = lines.index(str(tmp_path / "mlip.sif"))
    assert lines[3:image] == [
        f"--bind={tmp_path}/work",
        f"--bind={tmp_path}",
        f"--bind={tmp_path}/store",
    ]
    assert lines[image + 1 : image + 4] == ["run", "--generation", "1"]
    assert lines[image + 6] == "--require-gpu"
    found = dict(line.split("=", 1) for line in lines[image + 7 :])
    assert found["APPTAINERENV_SLURM_JOB_ID"] == job
    assert found["APPTAINERENV_CUDA_VISIBLE_DEVICES"] in ("0", "1", "2", "3")
    assert found["APPTAINERENV_MLIP_JOB_DATABASE_PASSWORD"] == value
    for path in family.work().iterdir():
        assert "$ecret" not in path.read_text()


def test_secrets_that_became_readable_are_not_used(
    family: Family, stand_in: StandIn, tmp_path: Path
) -> None:
    """Changed between submission and start; the job says so and ends."""
    stand_in("exit 0")
    secrets = tmp_path / "secrets.env"
    secrets.write_text("KEY=1\n")
    secrets.chmod(0o600)
    family.configure(env_file="secrets.env")
    blocker = family.cluster.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 1")
    family.submit("-g", 1, "--after", blocker.strip())
    secrets.chmod(0o640)
    found = family.wait_for("failed")
    assert found["exit_code"] == 64
    assert "others have access to it" in found["reason"]


def test_missing_secrets_of_the_terminal_are_reported_on_submission(
    family: Family, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    stand_in("env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    job = family.submit()
    assert "a job does not get AWS_SECRET_ACCESS_KEY from here" in caplog.text
    family.cluster.wait_for(job, "COMPLETED")
    assert "hunter2" not in family.log()


def test_a_failed_module_ends_the_job(family: Family, stand_in: StandIn) -> None:
    stand_in("exit 0")
    family.configure(modules=["nosuch/1.0"])
    family.submit()
    found = family.wait_for("failed")
    assert (found["exit_code"], found["reason"]) == (64, "can't load the module nosuch/1.0")


def test_accounts_are_checked_and_ended_jobs_remembered(
    tmp_path: Path, slurm_with_accounting: SlurmCluster, cli: Cli
) -> None:
    """On a cluster with accounting, after its controller has forgotten the job."""
    family = make_family(tmp_path, slurm_with_accounting, cli)
    family.configure(account="nosuch")
    ended = family.run("submit", "-g", 1)
    assert ended.code == 64
    assert "Invalid account or account/partition combination specified" in ended.err
    assert "check submit.slurm.account" in ended.err

    program = tmp_path / "stand-in"
    program.write_text("#!/bin/bash\necho 'error: bad luck'; exit 70\n")
    program.chmod(0o755)
    family.configure(account="science", command=str(program), setup=[])
    job = family.submit()
    family.wait_for("failed")
    _wait_for_accounting(slurm_with_accounting, job)
    slurm_with_accounting.stop_controller()
    slurm_with_accounting.start_controller(forgetting=True)
    (family.work() / f"slurm-{job}.ended").unlink()
    found = family.status()
    assert (found["native_state"], found["exit_code"]) == ("FAILED", 70)
    assert found["reason"] == "bad luck"


@pytest.fixture
def limited(slurm_with_accounting: SlurmCluster) -> Iterator[Callable[..., None]]:
    account = ("sacctmgr", "-i", "-Q", "modify", "account", "science", "set")

    def limit(**limits: str) -> None:
        slurm_with_accounting.run(*account, *(f"{name}={value}" for name, value in limits.items()))

    yield limit
    limit(GrpSubmitJobs="-1", GrpTRESMins="cpu=-1", GrpTRES="cpu=-1")


def test_limits_of_an_account_are_named(
    tmp_path: Path, slurm_with_accounting: SlurmCluster, cli: Cli, limited: Callable[..., None]
) -> None:
    """Too many jobs is a transient error; a limit that keeps a job pending is named."""
    family = make_family(tmp_path, slurm_with_accounting, cli)
    family.configure(account="science", cpus=2)
    limited(GrpTRESMins="cpu=0")
    family.submit()
    _wait_for_reason(family, "AssocGrpCPUMinutesLimit")
    limited(GrpTRESMins="cpu=-1", GrpTRES="cpu=1")
    _wait_for_reason(family, "AssocGrpCpuLimit")
    limited(GrpSubmitJobs="1")
    ended = family.run("submit", "-g", 2)
    assert ended.code == 69
    assert "accounting/QOS policy" in ended.err
    assert "AssocGrpSubmitJobsLimit" in ended.err
    assert "submit.slurm.time" not in ended.err
    assert family.run("cancel", "-g", 1).code == 0
    limited(GrpTRES="cpu=-1")
    family.submit("-g", 2)


def _wait_for_reason(family: Family, words: str) -> None:
    end = time.monotonic() + 60
    while words not in (said := family.run("status", "-g", 1).out):
        assert time.monotonic() < end, said
        time.sleep(0.5)


def _wait_for_accounting(cluster: SlurmCluster, job: str) -> None:
    for _ in range(600):
        if "FAILED" in cluster.run("sacct", "-n", "-X", "-j", job, "-o", "State"):
            return
    raise AssertionError("the accounting does not know the job")


def test_json_is_one_document(family: Family, stand_in: StandIn) -> None:
    stand_in("echo a line; sleep 60")

    def submit() -> dict[str, Any]:
        job: dict[str, Any]
        (job,) = json.loads(family.run("submit", "-g", 1, "--json").out)["jobs"]
        return job

    job = submit()
    assert set(job) == {"generation", "scheduler", "id", "name"}
    family.wait_for_log("a line")
    listed = json.loads(family.run("status", "--json").out)
    assert [g["job"]["id"] for g in listed["generations"]] == [job["id"]]
    assert json.loads(family.run("logs", "-g", 1, "--json").out)["lines"] == ["a line"]
    assert family.run("logs", "-g", 1, "-f", "--json").code == 64
    ended = family.run("cancel", "-g", 1, "--no-wait")
    assert (ended.code, "is being cancelled, and still" in ended.out) == (0, True)
    family.wait_for("cancelled")
    job = submit()
    cancelled = json.loads(family.run("cancel", "-g", 1, "--json").out)
    state = {"release": None, "state": "cancelled"}
    assert cancelled == {
        "generation": 1,
        "job": job["id"],
        "cancelled": True,
        "state": "cancelled",
        "jobs": [{key: job[key] for key in ("scheduler", "id", "name")} | state],
    }


def test_logs_are_followed_to_the_end(family: Family, stand_in: StandIn) -> None:
    stand_in("for n in 1 2 3; do echo line $n; sleep 0.7; done; printf 'no newline'")
    family.submit()
    assert family.run("logs", "-g", 1, "-f").out == "line 1\nline 2\nline 3\nno newline\n"


def test_the_configuration_next_to_the_script_is_complete(
    family: Family, stand_in: StandIn
) -> None:
    """It loads to the same settings, from any directory; no partial file remains."""
    stand_in("exit 0")
    family.submit()
    shown = family.run("config", "show")
    again = family.cli("-c", family.work() / "mlip-job.yaml", "config", "show")
    assert again.out == shown.out
    assert not list(family.work().glob(".*"))
